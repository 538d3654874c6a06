//! The data of the measured server: a temporary directory and, on PostgreSQL, databases of its own.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use models::documents;
use tempfile::TempDir;
use tokio_postgres::NoTls;
use url::Url;
use uuid::Uuid;

use crate::{fixture::Fixture, floors::DatabaseFloor, histogram::Histogram, process::Tenantry, report::median};

/// An environment that is empty at first and removed at the end.
pub(crate) struct Environment {
    directory: TempDir,
    postgres: Option<Postgres>,
}

struct Postgres {
    /// The URL from which those of the databases are derived.
    url: Url,
    main: String,
}

impl Environment {
    /// An environment below `parent`, with its databases on the server at `database`: `sqlite` or `postgres://…`.
    pub(crate) async fn create(parent: &Path, database: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tenantry-bench.").tempdir_in(parent)?;
        let postgres = match database {
            "sqlite" => None,
            url => Some(Postgres::create(url).await?),
        };
        Ok(Self { directory, postgres })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn engine(&self) -> &'static str {
        if self.postgres.is_some() { "PostgreSQL" } else { "SQLite" }
    }

    pub(crate) fn tenantry(&self, program: PathBuf, variables: &[String]) -> Tenantry {
        let database_url = self.postgres.as_ref().map(|postgres| postgres.url_of(&postgres.main));
        let variables = variables.iter().filter_map(|text| text.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();
        Tenantry { program, directory: self.directory().to_owned(), database_url, variables }
    }

    /// Finds the library's documents without the product.
    pub(crate) fn database_floor(&self, fixture: &Fixture) -> DatabaseFloor {
        let database = &fixture.library.database;
        match &self.postgres {
            Some(postgres) => DatabaseFloor::Postgres { url: postgres.url_of(database), document: fixture.documents[0] },
            None => DatabaseFloor::Sqlite {
                file: self.directory().join(format!("data/tenants/{database}.sqlite3")),
                documents: fixture.documents.clone(),
            },
        }
    }

    /// The warm pool, on PostgreSQL.
    pub(crate) fn warm_pool(&self) -> Option<WarmPool<'_>> {
        self.postgres.as_ref().map(WarmPool)
    }

    /// The sessions of tenant databases, on PostgreSQL.
    pub(crate) fn sessions(&self) -> Option<Sessions<'_>> {
        self.postgres.as_ref().map(Sessions)
    }

    /// Removes everything. The server must have stopped.
    pub(crate) async fn remove(self) -> Result<()> {
        if let Some(postgres) = &self.postgres {
            postgres.remove().await?;
        }
        Ok(self.directory.close()?)
    }
}

impl Postgres {
    async fn create(url: &str) -> Result<Self> {
        let url = Url::parse(url).context("the database is neither sqlite nor a URL")?;
        let postgres = Self { url, main: format!("tenantry_bench_{}", std::process::id()) };
        let server = connect(postgres.url.as_str()).await?;
        let fsync: String = server.query_one("SHOW fsync", &[]).await?.get(0);
        ensure!(fsync == "on", "the PostgreSQL server runs without fsync, which makes its figures meaningless");
        server.batch_execute(&format!("CREATE DATABASE {}", postgres.main)).await?;
        Ok(postgres)
    }

    fn url_of(&self, database: &str) -> String {
        let mut url = self.url.clone();
        url.set_path(database);
        url.into()
    }

    async fn remove(&self) -> Result<()> {
        let databases = "SELECT database_name FROM tenants UNION ALL
             SELECT 'tenantry_spare_' || replace(tenant_id::text, '-', '') FROM spare_databases";
        let created = connect(&self.url_of(&self.main)).await?.query(databases, &[]).await?;
        let tenants = created.iter().map(|row| row.get(0));
        let server = connect(self.url.as_str()).await?;
        for database in tenants.chain([self.main.as_str()]) {
            server.batch_execute(&format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)")).await?;
        }
        Ok(())
    }
}

/// The warm databases of a PostgreSQL server.
pub(crate) struct WarmPool<'a>(&'a Postgres);

impl WarmPool<'_> {
    /// Waits until `count` databases are ready.
    pub(crate) async fn wait_for(&self, count: i64) -> Result<()> {
        let main = connect(&self.0.url_of(&self.0.main)).await?;
        loop {
            let ready: i64 = main.query_one("SELECT COUNT(*) FROM spare_databases WHERE is_ready", &[]).await?.get(0);
            if ready >= count {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

/// The sessions of tenant databases on a PostgreSQL server.
pub(crate) struct Sessions<'a>(&'a Postgres);

impl Sessions<'_> {
    /// The number of sessions opened so far.
    pub(crate) async fn opened(&self) -> Result<f64> {
        // The server counts a session when the session reports its statistics, at the latest at its end.
        let sum = "SELECT SUM(sessions)::double precision FROM pg_stat_database WHERE datname LIKE 'tenant\\_%'";
        Ok(connect(self.0.url.as_str()).await?.query_one(sum, &[]).await?.get(0))
    }

    /// The median private memory of a session in MiB. Only when the server runs on this machine.
    pub(crate) async fn private_memory(&self) -> Result<f64> {
        let pids = "SELECT pid FROM pg_stat_activity WHERE datname LIKE 'tenant\\_%' AND backend_type = 'client backend'";
        let rows = connect(self.0.url.as_str()).await?.query(pids, &[]).await?;
        let private: Vec<f64> = rows.iter().filter_map(|row| private_memory_of(row.get(0))).collect();
        Ok(if private.is_empty() { f64::NAN } else { median(private.into_iter()) })
    }

    /// A bare connection to each of these databases.
    pub(crate) async fn finders(&self, databases: &[(&str, Uuid)]) -> Result<Finders> {
        let mut finders = Vec::new();
        for (database, document) in databases {
            finders.push(self.finder(database, *document).await?);
        }
        Ok(Finders(finders))
    }

    /// Finds documents for this duration, each over a new connection.
    pub(crate) async fn open_and_find(&self, databases: &[(&str, Uuid)], duration: Duration) -> Result<()> {
        let began = Instant::now();
        for (database, document) in databases.iter().cycle().take_while(|_| began.elapsed() < duration) {
            let (client, statement) = self.finder(database, *document).await?;
            client.query_one(&statement, &[]).await?;
        }
        Ok(())
    }

    async fn finder(&self, database: &str, document: Uuid) -> Result<(tokio_postgres::Client, tokio_postgres::Statement)> {
        let client = connect(&self.0.url_of(database)).await?;
        let statement = client.prepare(&documents::FIND.replace("$1", &format!("'{document}'"))).await?;
        Ok((client, statement))
    }

    /// The outcome of some work, and the maximum number of open sessions during it.
    pub(crate) async fn watch<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
        let server = connect(self.0.url.as_str()).await?;
        let count =
            "SELECT COUNT(*)::double precision FROM pg_stat_activity WHERE datname LIKE 'tenant\\_%' AND backend_type = 'client backend'";
        let mut most: f64 = 0.0;
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return Ok((outcome?, most)),
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {
                    most = most.max(server.query_one(count, &[]).await?.get(0));
                }
            }
        }
    }
}

/// The private memory of a process in MiB.
fn private_memory_of(pid: i32) -> Option<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |name: &str| rollup.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Some((kib("Private_Dirty:")? + kib("Private_Clean:")?) / 1024.0)
}

/// Bare connections that find documents with the product's own statement.
pub(crate) struct Finders(Vec<(tokio_postgres::Client, tokio_postgres::Statement)>);

impl Finders {
    /// Finds documents in this order of databases for this duration. Clients of one database share its connection, as in the
    /// product.
    pub(crate) async fn find(&self, order: &[usize], clients: usize, duration: Duration) -> Result<Histogram> {
        let began = Instant::now();
        let find = async |n: usize| -> Result<Histogram> {
            let mut latencies = Histogram::default();
            let databases = order.iter().cycle().skip(n * order.len() / clients);
            for n in databases.take_while(|_| began.elapsed() < duration) {
                let (client, statement) = &self.0[*n];
                let sent = Instant::now();
                client.query_one(statement, &[]).await?;
                latencies.record(sent.elapsed());
            }
            Ok(latencies)
        };
        let found = try_join_all((0..clients).map(find)).await?;
        Ok(found.into_iter().fold(Histogram::default(), |mut all, one| {
            all.merge(&one);
            all
        }))
    }
}

async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}
