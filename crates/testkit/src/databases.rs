//! Databases for one test.

use std::{collections::BTreeMap, path::Path};

use database::{DatabaseUrl, MainDatabase, PostgresLimits, SqliteThreads, TenantDatabases};
use tokio_postgres::NoTls;
use uuid::Uuid;

/// The main database and the tenant databases of one test, on the engine of the test run.
#[derive(Clone, Debug)]
pub struct TestDatabases {
    /// The main database.
    pub main: DatabaseUrl,
    /// The servers of the tenant databases, by name.
    pub servers: BTreeMap<String, DatabaseUrl>,
    /// The server's maintenance URL and the name of the main database, to drop it at the end.
    postgres: Option<(String, String)>,
    /// Additional servers of tenant databases, as in `TENANT_DATABASE_URLS`.
    further: Vec<(String, String)>,
}

impl TestDatabases {
    /// Databases in `folder`, or on the server of `TEST_DATABASE_URL`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        match server_url() {
            None => {
                let url = |name: &str| DatabaseUrl::Sqlite(folder.join(name));
                Self {
                    main: url("main.sqlite3"),
                    servers: [("main".to_owned(), url("tenants"))].into(),
                    postgres: None,
                    further: Vec::new(),
                }
            }
            Some(server) => {
                let name = format!("tenantry_test_{}", Uuid::from_bytes(domain::random_bytes()).simple());
                let main: DatabaseUrl = with_database(&server, &name).parse().expect("TEST_DATABASE_URL is an address");
                Self { servers: [("main".to_owned(), main.clone())].into(), main, postgres: Some((server, name)), further: Vec::new() }
            }
        }
    }

    /// Adds a server for tenant databases.
    #[must_use]
    pub fn with_server(mut self, name: &str, url: &str) -> Self {
        self.servers.insert(name.to_owned(), url.parse().expect("the address of a database server"));
        self.further.push((name.to_owned(), url.to_owned()));
        self
    }

    /// Opens new handles on the databases, for use on the current runtime.
    #[must_use]
    pub fn open(&self) -> (MainDatabase, TenantDatabases) {
        let threads = SqliteThreads::start(2, 2).unwrap();
        let limits = PostgresLimits { per_server: 16, per_database: 8 };
        (MainDatabase::new(&self.main, &threads, limits), TenantDatabases::new(&self.servers, &threads, limits))
    }

    /// The engine's name.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        if self.postgres.is_some() { "postgres" } else { "sqlite" }
    }

    /// The environment of a child process: `DATABASE_URL` and `TENANT_DATABASE_URLS`.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let (main, tenants) = match &self.postgres {
            Some((server, name)) => (with_database(server, name), with_database(server, name)),
            None => (self.main.to_string(), self.servers["main"].to_string()),
        };
        let mut variables = vec![("DATABASE_URL", main)];
        if !self.further.is_empty() {
            let further: String = self.further.iter().map(|(name, url)| format!(",{name}={url}")).collect();
            variables.push(("TENANT_DATABASE_URLS", format!("main={tenants}{further}")));
        }
        variables
    }

    /// Which of these databases exist on the PostgreSQL server.
    pub async fn db_existing(&self, names: &[String]) -> Vec<String> {
        let (server, _) = self.postgres.as_ref().expect("the test is on PostgreSQL");
        let (client, connection) = tokio_postgres::connect(server, NoTls).await.expect("the PostgreSQL of TEST_DATABASE_URL answers");
        let driver = tokio::spawn(connection);
        let found = client.query("SELECT datname FROM pg_database WHERE datname = ANY ($1)", &[&names]).await.unwrap();
        drop(client);
        driver.await.unwrap().unwrap();
        found.iter().map(|row| row.get::<_, String>(0)).collect()
    }

    /// Drops the main database if it is on a server. The tenant databases must be dropped already.
    pub async fn drop_main(&self) {
        let Some((server, name)) = &self.postgres else { return };
        let (client, connection) = tokio_postgres::connect(server, NoTls).await.expect("the PostgreSQL of TEST_DATABASE_URL answers");
        let driver = tokio::spawn(connection);
        client.batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await.expect("drop the test's database");
        drop(client);
        driver.await.unwrap().unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "the environment selects the server of a test run")]
fn server_url() -> Option<String> {
    std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty())
}

/// Replaces the database name in a URL.
fn with_database(url: &str, name: &str) -> String {
    let (place, parameters) = url.split_once('?').map_or((url, String::new()), |(place, parameters)| (place, format!("?{parameters}")));
    let server = place.rsplit_once('/').expect("TEST_DATABASE_URL names a database").0;
    format!("{server}/{name}{parameters}")
}
