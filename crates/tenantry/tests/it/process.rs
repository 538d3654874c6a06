//! The program as a process, with a home of its own.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use domain::{AuditFilter, PageRequest, TenantId};
use models::{audit, tenants};
use reqwest::{Client, StatusCode, redirect};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;
use tempfile::TempDir;
use testkit::{Persona, TestDatabases, TestKafka, TestObjects, invariants};

/// How long a process may take to do what takes it milliseconds: a busy machine is no failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A temporary folder with everything that the program keeps, and databases of its own. Outlives the processes that run on
/// it, one after the other.
pub(crate) struct Home {
    folder: TempDir,
    databases: TestDatabases,
    objects: TestObjects,
    kafka: Option<TestKafka>,
}

impl Home {
    /// An empty one, on the engine that the test run is for.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let databases = TestDatabases::new(folder.path());
        let objects = TestObjects::new(folder.path());
        Self { folder, databases, objects, kafka: None }
    }

    /// The same home with events on Kafka, where there is one.
    pub(crate) fn with_events_on(mut self, kafka: Option<TestKafka>) -> Self {
        self.kafka = kafka;
        self
    }

    /// Where events are, unless the server handles them itself.
    pub(crate) fn kafka(&self) -> Option<&TestKafka> {
        self.kafka.as_ref()
    }

    /// The same home with a further server for tenants' databases.
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

    /// The program, to be run in the home with nothing else in its environment.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(arguments).env_clear().envs(self.databases.environment()).envs(self.objects.environment());
        command.env("DATA_DIR", self.path()).env("PORT", "0").env("GARBAGE_GRACE", "0").env("TRASH_RETENTION", "0");
        command.envs(self.kafka.iter().flat_map(TestKafka::environment));
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

    /// The server. What is deleted waits for `gc`, which has no patience with it.
    fn server_command(&self, variables: &[(&str, &str)]) -> Command {
        let mut command = self.command(["serve"]);
        command.env("GARBAGE_GRACE", "3600").envs(variables.iter().copied());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        Ran::of(&mut self.command(arguments))
    }

    /// Starts the server, and waits until it answers.
    pub(crate) async fn serve(&self) -> Server {
        self.serve_with(&[]).await
    }

    /// Starts the server with more in its environment.
    pub(crate) async fn serve_with(&self, variables: &[(&str, &str)]) -> Server {
        Server::start(self.server_command(variables), self.path()).await
    }

    /// Starts a server that dies before anybody asks it anything.
    pub(crate) fn serve_doomed(&self, variables: &[(&str, &str)]) -> Server {
        Server::spawn(self.server_command(variables), self.path())
    }

    /// Forgets what a dead instance holds, which expires by itself.
    pub(crate) async fn forget_leases(&self) {
        let mut tx = self.databases.open().0.begin().await.unwrap();
        tx.execute("DELETE FROM leases", Vec::new()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// The particulars of the one act of this kind that the platform's audit log has of a tenant, as soon as it has it.
    pub(crate) async fn audited(&self, tenant_id: TenantId, action: &str) -> Value {
        let (main, _) = self.databases.open();
        let filter = AuditFilter { action: Some(action.to_owned()), ..AuditFilter::default() };
        let began = Instant::now();
        loop {
            let mut connection = main.read().await.unwrap();
            let found = audit::list_platform(&mut connection, Some(tenant_id), &filter, PageRequest::default()).await.unwrap().items;
            drop(connection);
            match &found[..] {
                [] => assert!(began.elapsed() < PATIENCE, "{action} was not audited"),
                [entry] => return serde_json::from_str(&entry.data).unwrap(),
                _ => panic!("{action} was audited more than once: {found:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Forgets the tenants on a server that only this test knows, for the checks at the end.
    pub(crate) async fn forget_tenants_on(&self, server: &str) {
        let mut tx = self.databases.open().0.begin().await.unwrap();
        tx.execute("DELETE FROM tenants WHERE server = $1", vec![server.into()]).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Collects the garbage, stops the server, and finds nothing broken.
    pub(crate) async fn settle(&self, server: Server) {
        self.run(["gc"]).expect(0);
        server.stop().await;
        assert_eq!(self.broken().await, Vec::<String>::new());
    }

    /// What must always hold and does not.
    pub(crate) async fn broken(&self) -> Vec<String> {
        invariants::find_broken(&self.databases, &self.objects).await
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let databases = self.databases.clone();
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // Not every test has come so far that there is one.
                databases.open().0.migrate().await.unwrap();
                invariants::drop_databases(&databases).await;
            });
        });
        // A test that failed has said more than this could.
        assert!(dropping.join().is_ok() || std::thread::panicking(), "the test's databases can't be dropped");
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// The answer of a command with `--json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:#?}"))
    }

    /// The one line on standard error of a command that failed.
    #[track_caller]
    pub(crate) fn complaint(&self, code: i32) -> &str {
        assert_eq!((self.code, self.err.lines().count()), (Some(code), 1), "{self:#?}");
        self.err.trim_end()
    }
}

/// Runs a command whose standard error is a terminal of 100 columns. Answers how it ended, and what somebody who sat there saw.
pub(crate) fn on_terminal(command: &mut Command) -> (Ran, String) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&ours, size).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(Path::new(path.to_str().unwrap())).unwrap();
    let mut ours = File::from(ours);
    let seen = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // Ends with an error when nobody has the other side open any more.
        drop(ours.read_to_end(&mut seen));
        String::from_utf8_lossy(&seen).into_owned()
    });
    let child = command.env("TERM", "xterm").stderr(theirs).stdout(Stdio::piped()).spawn().unwrap();
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    // The command still holds its copy of the other side.
    command.stderr(Stdio::null());
    let ran = Ran { code: status.code(), out: String::from_utf8(stdout).unwrap(), err: String::new() };
    (ran, seen.join().unwrap())
}

/// Runs a test of crashes as often as `CRASH_RUNS` says, once when it says nothing: several at a time, for they mostly wait, each
/// in a home of its own.
pub(crate) fn repeatedly(test: impl AsyncFn() + Sync) {
    let left = AtomicUsize::new(crash_runs());
    let run = || {
        while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(test());
        }
    };
    // The failure once more, at the end, where whoever reads the tail of a long output finds it.
    let failure = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..CRASHES_AT_ONCE.min(crash_runs())).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(std::thread::ScopedJoinHandle::join).fold(None, |failure, run| run.err().or(failure))
    });
    if let Some(failure) = failure {
        let told = failure.downcast_ref::<String>().map(String::as_str).or_else(|| failure.downcast_ref::<&str>().copied());
        panic!("one of the runs failed: {}", told.unwrap_or("it said nothing"));
    }
}

const CRASHES_AT_ONCE: usize = 8;

#[expect(clippy::disallowed_methods, reason = "how often is for whoever runs the tests to say")]
fn crash_runs() -> usize {
    std::env::var("CRASH_RUNS").map_or(1, |runs| runs.parse().expect("CRASH_RUNS is a number"))
}

/// A running server. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    /// `http://ADDRESS:PORT`
    pub(crate) base: String,
    log: std::path::PathBuf,
}

impl Server {
    /// Starts a server by a command of one's own, and waits until it answers.
    pub(crate) async fn start(command: Command, home: &Path) -> Self {
        let mut server = Self::spawn(command, home);
        assert!(server.listens().await, "the server ended: {}", server.log());
        let started = Instant::now();
        while !server.is_healthy().await {
            assert!(started.elapsed() < PATIENCE, "the server is not healthy: {}", server.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    fn spawn(mut command: Command, home: &Path) -> Self {
        let log = home.join(format!("log-{:?}", Instant::now()).replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', ""));
        let child = command.stderr(File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
        Self { child, base: String::new(), log }
    }

    /// Waits until it listens. False when it has died before.
    pub(crate) async fn listens(&mut self) -> bool {
        let started = Instant::now();
        loop {
            let log = self.log();
            if let Some((before, _)) = log.split_once(": documentation at") {
                self.base = before.rsplit("listening on ").next().unwrap().to_owned();
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "it does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the log says something, and answers the log.
    pub(crate) async fn wait_for(&mut self, what: &str, said: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            if said(&log) {
                return log;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && started.elapsed() < PATIENCE, "no {what:?}, {ended:?}: {log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn is_healthy(&self) -> bool {
        let answer = client().get(format!("{}/health", self.base)).timeout(Duration::from_secs(5)).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Somebody without an account.
    pub(crate) fn stranger(&self) -> Persona {
        Persona::stranger(self.base.clone(), client())
    }

    /// A new user, logged in.
    pub(crate) async fn user(&self, name: &str) -> Persona {
        Persona::registered(&self.stranger(), name).await
    }

    /// The same user at this server, with the tokens that another gave out.
    pub(crate) fn known(&self, persona: &Persona) -> Persona {
        persona.at_base(&self.base)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing is finished, nothing is flushed.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGTERM, and an orderly end.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A client that follows no redirects and keeps no connection that a dead server had. It gives up at last: a request in which a
/// server died was seen to wait for ever, with no connection any more.
pub(crate) fn client() -> Client {
    Client::builder().redirect(redirect::Policy::none()).no_proxy().timeout(3 * PATIENCE).build().unwrap()
}
