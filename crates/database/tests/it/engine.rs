//! The engines that tests run on, each with databases of the test's own.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use database::{DatabaseUrl, MainDatabase, PostgresLimits, SqliteThreads, TenantDatabase, TenantDatabases};
use domain::{DatabaseName, SystemClock, TenantId, TenantName, TenantPlace};
use futures_util::FutureExt;
use tokio_postgres::NoTls;

/// Takes longer than any test waits, on both engines.
pub(crate) const SLOW: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000000) SELECT max(i) FROM n";

/// The only server that tests create tenants on.
pub(crate) const SERVER: &str = "server";

/// An engine with a main database, migrated, and room for tenants.
pub(crate) struct Engine {
    pub(crate) main: MainDatabase,
    pub(crate) tenants: TenantDatabases,
    kind: Kind,
    limits: PostgresLimits,
    main_url: DatabaseUrl,
    tenant_url: DatabaseUrl,
    created: Mutex<Vec<TenantPlace>>,
}

enum Kind {
    Sqlite(tempfile::TempDir),
    Postgres { url: String, main_name: String },
}

/// Runs a test on every available engine.
pub(crate) async fn on_every_engine(test: impl AsyncFn(&Engine)) {
    on_every_engine_with(PostgresLimits { per_server: 20, per_database: 10 }, test).await;
}

pub(crate) async fn on_every_engine_with(limits: PostgresLimits, test: impl AsyncFn(&Engine)) {
    Engine::sqlite(limits).run(&test).await;
    on_postgres(limits, test).await;
}

pub(crate) async fn on_postgres(limits: PostgresLimits, test: impl AsyncFn(&Engine)) {
    if let Some(url) = server_url() {
        Engine::postgres(url, limits).run(&test).await;
    }
}

fn server_url() -> Option<String> {
    service("TEST_DATABASE_URL")
}

#[expect(clippy::disallowed_methods, reason = "the environment names the services of a test run")]
pub(crate) fn service(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

/// Separate threads, as another process has them.
pub(crate) fn threads() -> SqliteThreads {
    SqliteThreads::start(2, 2).unwrap()
}

impl Engine {
    fn sqlite(limits: PostgresLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let main_url = DatabaseUrl::Sqlite(folder.path().join("main.sqlite3"));
        let tenant_url = DatabaseUrl::Sqlite(folder.path().join("tenants"));
        Self::new(Kind::Sqlite(folder), main_url, tenant_url, limits)
    }

    fn postgres(url: String, limits: PostgresLimits) -> Self {
        let main_name = format!("test_{}_{}", std::process::id(), hex::encode(domain::random_bytes::<6>()));
        let main_url = with_database(&url, &main_name).parse().unwrap();
        let tenant_url = url.parse().unwrap();
        Self::new(Kind::Postgres { url, main_name }, main_url, tenant_url, limits)
    }

    fn new(kind: Kind, main_url: DatabaseUrl, tenant_url: DatabaseUrl, limits: PostgresLimits) -> Self {
        let threads = threads();
        let main = MainDatabase::new(&main_url, &threads, limits);
        let tenants = TenantDatabases::new(&BTreeMap::from([(SERVER.to_owned(), tenant_url.clone())]), &threads, limits);
        Self { main, tenants, kind, limits, main_url, tenant_url, created: Mutex::default() }
    }

    async fn run(self, test: &impl AsyncFn(&Self)) {
        println!("on {}", self.name());
        let prepared_and_tested = async {
            self.main.migrate().await.unwrap();
            test(&self).await;
        };
        let outcome = AssertUnwindSafe(prepared_and_tested).catch_unwind().await;
        self.clean_up().await;
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    }

    async fn clean_up(&self) {
        let Kind::Postgres { main_name, .. } = &self.kind else { return };
        let created = std::mem::take(&mut *self.created.lock().unwrap());
        let names = created.iter().map(|location| location.database.as_str()).chain([main_name.as_str()]);
        let admin = self.admin().await;
        for name in names {
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await.unwrap();
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.is_postgres() { "PostgreSQL" } else { "SQLite" }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.kind, Kind::Postgres { .. })
    }

    /// A second process's view of the same databases: only the stored data is shared.
    pub(crate) fn other_process(&self) -> (MainDatabase, TenantDatabases) {
        (MainDatabase::new(&self.main_url, &threads(), self.limits), self.tenants_with(self.limits))
    }

    /// A second process's view of the tenants' databases.
    pub(crate) fn tenants_with(&self, limits: PostgresLimits) -> TenantDatabases {
        TenantDatabases::new(&BTreeMap::from([(SERVER.to_owned(), self.tenant_url.clone())]), &threads(), limits)
    }

    /// Ends every connection to these PostgreSQL databases.
    pub(crate) async fn close_idle(&self, locations: &[TenantPlace]) {
        let names: Vec<_> = locations.iter().map(|location| location.database.as_str()).collect();
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = ANY ($1)";
        self.admin().await.execute(end, &[&names]).await.unwrap();
    }

    /// A location without a database.
    pub(crate) fn location(&self) -> TenantPlace {
        let tenant_id = TenantId::generate(&SystemClock);
        let name = TenantName::parse("Test").unwrap();
        let location = TenantPlace { tenant_id, server: SERVER.to_owned(), database: DatabaseName::derive(&name, tenant_id) };
        self.created.lock().unwrap().push(location.clone());
        location
    }

    /// A new tenant's database.
    pub(crate) async fn tenant(&self) -> TenantDatabase {
        let location = self.location();
        self.create(&location).await;
        self.tenants.open(&location).unwrap()
    }

    pub(crate) async fn create(&self, location: &TenantPlace) {
        self.tenants.create(location).await.unwrap();
        self.tenants.finish(location).await.unwrap();
    }

    /// The SQLite file of a tenant.
    pub(crate) fn file_of(&self, location: &TenantPlace) -> Option<PathBuf> {
        match &self.kind {
            Kind::Sqlite(folder) => Some(folder.path().join("tenants").join(format!("{}.sqlite3", location.database))),
            Kind::Postgres { .. } => None,
        }
    }

    /// The PostgreSQL name of the main database.
    pub(crate) fn main_name(&self) -> &str {
        match &self.kind {
            Kind::Postgres { main_name, .. } => main_name,
            Kind::Sqlite(_) => "",
        }
    }

    /// The PostgreSQL URL of the main database.
    pub(crate) fn main_url(&self) -> String {
        let Kind::Postgres { url, main_name } = &self.kind else { panic!("SQLite has no server") };
        with_database(url, main_name)
    }

    /// A connection to the PostgreSQL server that bypasses the database layer.
    pub(crate) async fn admin(&self) -> tokio_postgres::Client {
        self.admin_of("postgres").await
    }

    /// A connection to one database of the PostgreSQL server that bypasses the database layer.
    pub(crate) async fn admin_of(&self, database: &str) -> tokio_postgres::Client {
        let Kind::Postgres { url, .. } = &self.kind else { panic!("SQLite has no server") };
        connect(&with_database(url, database)).await
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn with_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// Waits until a condition holds, for a few seconds at most.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
