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

/// Answers long after any test has given up waiting, on both engines.
pub(crate) const SLOW: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000000) SELECT max(i) FROM n";

/// The one server that tests place tenants on.
pub(crate) const SERVER: &str = "server";

/// An engine with a main database, migrated, and room for tenants.
pub(crate) struct Engine {
    pub(crate) main: MainDatabase,
    pub(crate) tenants: TenantDatabases,
    kind: Kind,
    limits: PostgresLimits,
    main_url: DatabaseUrl,
    tenant_url: DatabaseUrl,
    made: Mutex<Vec<TenantPlace>>,
}

enum Kind {
    Sqlite(tempfile::TempDir),
    Postgres { url: String, main_name: String },
}

/// Runs a test on every engine that is there.
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

#[expect(clippy::disallowed_methods, reason = "how tests are told of the services that are there")]
pub(crate) fn service(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

/// Threads of their own, as another process has them.
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
        Self { main, tenants, kind, limits, main_url, tenant_url, made: Mutex::default() }
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
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        let names = made.iter().map(|place| place.database.as_str()).chain([main_name.as_str()]);
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

    /// A second process's view of the same databases: nothing is shared but what is stored.
    pub(crate) fn other_process(&self) -> (MainDatabase, TenantDatabases) {
        (MainDatabase::new(&self.main_url, &threads(), self.limits), self.tenants_with(self.limits))
    }

    /// A second process's view of the tenants' databases.
    pub(crate) fn tenants_with(&self, limits: PostgresLimits) -> TenantDatabases {
        TenantDatabases::new(&BTreeMap::from([(SERVER.to_owned(), self.tenant_url.clone())]), &threads(), limits)
    }

    /// Ends every connection to these PostgreSQL databases.
    pub(crate) async fn close_idle(&self, places: &[TenantPlace]) {
        let names: Vec<_> = places.iter().map(|place| place.database.as_str()).collect();
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = ANY ($1)";
        self.admin().await.execute(end, &[&names]).await.unwrap();
    }

    /// A place where no database is yet.
    pub(crate) fn place(&self) -> TenantPlace {
        let tenant_id = TenantId::generate(&SystemClock);
        let name = TenantName::parse("Test").unwrap();
        let place = TenantPlace { tenant_id, server: SERVER.to_owned(), database: DatabaseName::derive(&name, tenant_id) };
        self.made.lock().unwrap().push(place.clone());
        place
    }

    /// A new tenant's database.
    pub(crate) async fn tenant(&self) -> TenantDatabase {
        let place = self.place();
        self.make(&place).await;
        self.tenants.open(&place).unwrap()
    }

    pub(crate) async fn make(&self, place: &TenantPlace) {
        self.tenants.create(place).await.unwrap();
        self.tenants.finish(place).await.unwrap();
    }

    /// The SQLite file of a tenant.
    pub(crate) fn file_of(&self, place: &TenantPlace) -> Option<PathBuf> {
        match &self.kind {
            Kind::Sqlite(folder) => Some(folder.path().join("tenants").join(format!("{}.sqlite3", place.database))),
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

    /// A connection past the database layer to the PostgreSQL server.
    pub(crate) async fn admin(&self) -> tokio_postgres::Client {
        self.admin_of("postgres").await
    }

    /// A connection past the database layer to one database of the PostgreSQL server.
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

/// Waits until a condition holds, which it does within moments.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
