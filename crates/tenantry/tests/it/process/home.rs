//! Where the program keeps its data.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use domain::{AuditFilter, PageRequest, TenantId};
use models::{audit, tenants};
use serde_json::Value;
use tempfile::TempDir;
use testkit::{TestDatabases, TestKafka, TestObjects, invariants};

use super::{CommandOutput, Server, WAIT_TIMEOUT};

/// A temporary folder with the data of the program, and databases of its own. Outlives the processes that use it.
pub(crate) struct Home {
    folder: TempDir,
    databases: TestDatabases,
    objects: TestObjects,
    kafka: Option<TestKafka>,
}

impl Home {
    /// An empty home, on the engine of the test run.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let databases = TestDatabases::new(folder.path());
        let objects = TestObjects::new(folder.path());
        Self { folder, databases, objects, kafka: None }
    }

    /// The same home with events on Kafka, if there is one.
    pub(crate) fn with_events_on(mut self, kafka: Option<TestKafka>) -> Self {
        self.kafka = kafka;
        self
    }

    /// The Kafka cluster, unless the server handles events itself.
    pub(crate) fn kafka(&self) -> Option<&TestKafka> {
        self.kafka.as_ref()
    }

    /// The same home with a further server for tenant databases.
    pub(crate) fn with_server(mut self, name: &str, url: &str) -> Self {
        self.databases = self.databases.clone().with_server(name, url);
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn databases(&self) -> &TestDatabases {
        &self.databases
    }

    pub(crate) fn objects(&self) -> &TestObjects {
        &self.objects
    }

    /// The keys of the objects of all tenants.
    pub(crate) async fn object_keys(&self) -> BTreeSet<String> {
        let tenants = tenants::list(&mut self.databases.open().0.read().await.unwrap()).await.unwrap();
        self.objects.list(&tenants.iter().map(|tenant| tenant.id).collect::<Vec<_>>()).await
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self.databases.engine() == "sqlite"
    }

    /// The program in this home, with a clean environment.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(arguments).env_clear().envs(self.databases.environment()).envs(self.objects.environment());
        command.env("DATA_DIR", self.path()).env("PORT", "0").env("GARBAGE_GRACE", "0").env("TRASH_RETENTION", "0");
        // What a test does in a second is more than a person does in a minute.
        command.env("RATE_LIMIT_ENABLED", "false").env("TENANTS_PER_USER", "100000");
        command.envs(self.kafka.iter().flat_map(TestKafka::environment)).envs(profile());
        command.current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// A worker, where events are on Kafka.
    pub(crate) async fn worker(&self, variables: &[(&str, &str)]) -> Option<Server> {
        self.kafka.as_ref()?;
        let mut command = self.command(["worker"]);
        command.env("METRICS_ADDRESS", "127.0.0.1:0").envs(variables.iter().copied());
        let mut worker = Server::spawn(command, self.path());
        let log = worker.wait_for("handling events", |log| log.contains("handling events")).await;
        worker.base = log.split("metrics at ").nth(1).unwrap().split("/metrics").next().unwrap().to_owned();
        Some(worker)
    }

    /// The server. It leaves garbage to `gc`, which has no grace period.
    fn server_command(&self, variables: &[(&str, &str)]) -> Command {
        let mut command = self.command(["serve"]);
        command.env("GARBAGE_GRACE", "3600").envs(variables.iter().copied());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> CommandOutput {
        CommandOutput::of(&mut self.command(arguments))
    }

    /// Starts the server, and waits until it is healthy.
    pub(crate) async fn serve(&self) -> Server {
        self.serve_with(&[]).await
    }

    /// Starts the server with further environment variables.
    pub(crate) async fn serve_with(&self, variables: &[(&str, &str)]) -> Server {
        Server::start(self.server_command(variables), self.path()).await
    }

    /// Starts a server that crashes before its first request.
    pub(crate) fn spawn(&self, variables: &[(&str, &str)]) -> Server {
        Server::spawn(self.server_command(variables), self.path())
    }

    /// Deletes all leases, as if those of a dead instance had expired.
    pub(crate) async fn expire_leases(&self) {
        let mut tx = self.databases.open().0.begin().await.unwrap();
        tx.execute("DELETE FROM leases", Vec::new()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Waits until the platform's audit log has an entry for this action on a tenant, and returns its data. There must be only
    /// one.
    pub(crate) async fn audited(&self, tenant_id: TenantId, action: &str) -> Value {
        let (main, _) = self.databases.open();
        let filter = AuditFilter { action: Some(action.to_owned()), ..AuditFilter::default() };
        let began = Instant::now();
        loop {
            let mut connection = main.read().await.unwrap();
            let found = audit::list_platform(&mut connection, Some(tenant_id), &filter, PageRequest::default()).await.unwrap().items;
            drop(connection);
            match &found[..] {
                [] => assert!(began.elapsed() < WAIT_TIMEOUT, "{action} was not audited"),
                [entry] => return serde_json::from_str(&entry.data).unwrap(),
                _ => panic!("{action} was audited more than once: {found:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes the tenants on a server that the checks at the end do not know.
    pub(crate) async fn remove_tenants_on(&self, server: &str) {
        let mut tx = self.databases.open().0.begin().await.unwrap();
        tx.execute("DELETE FROM tenants WHERE server = $1", vec![server.into()]).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Collects garbage, stops the server, and checks the invariants.
    pub(crate) async fn stop_and_check(&self, server: Server) {
        self.run(["gc"]).expect(0);
        server.stop().await;
        self.assert_consistent().await;
    }

    /// Checks the invariants of databases and objects.
    pub(crate) async fn assert_consistent(&self) {
        assert_eq!(invariants::find_broken(&self.databases, &self.objects).await, Vec::<String>::new());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let databases = self.databases.clone();
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // Some tests create no main database.
                databases.open().0.migrate().await.unwrap();
                invariants::drop_databases(&databases).await;
            });
        });
        // The failure of a test matters more than this one.
        assert!(dropping.join().is_ok() || std::thread::panicking(), "cannot drop the databases of the test");
    }
}

/// The variable that tells an instrumented program where to write its coverage.
#[expect(clippy::disallowed_methods, reason = "the environment of a test run decides about coverage")]
fn profile() -> Option<(&'static str, String)> {
    Some(("LLVM_PROFILE_FILE", std::env::var("LLVM_PROFILE_FILE").ok()?))
}
