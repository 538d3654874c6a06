//! Where the measured server keeps its data: a temporary directory, and for PostgreSQL a database of its own.

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

/// A place that is empty at first and gone at the end.
pub(crate) struct Place {
    directory: TempDir,
    postgres: Option<Postgres>,
}

struct Postgres {
    /// Of the database that the others are made from.
    url: Url,
    main: String,
}

impl Place {
    /// A place below `parent`, with its databases on the server at `database`: `sqlite` or `postgres://…`.
    pub(crate) async fn make(parent: &Path, database: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tenantry-bench.").tempdir_in(parent)?;
        let postgres = match database {
            "sqlite" => None,
            url => Some(Postgres::make(url).await?),
        };
        Ok(Self { directory, postgres })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn engine(&self) -> &'static str {
        if self.postgres.is_some() { "PostgreSQL" } else { "SQLite" }
    }

    pub(crate) fn tenantry(&self, program: PathBuf) -> Tenantry {
        let database_url = self.postgres.as_ref().map(|postgres| postgres.url_of(&postgres.main));
        Tenantry { program, directory: self.directory().to_owned(), database_url }
    }

    /// Finding the library's documents without the product.
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

    /// The databases that are kept ready, where there are such.
    pub(crate) fn spares(&self) -> Option<Spares<'_>> {
        self.postgres.as_ref().map(Spares)
    }

    /// The connections to tenants' databases, where there are such.
    pub(crate) fn sessions(&self) -> Option<Sessions<'_>> {
        self.postgres.as_ref().map(Sessions)
    }

    /// Removes everything. The server must have ended.
    pub(crate) async fn remove(self) -> Result<()> {
        if let Some(postgres) = &self.postgres {
            postgres.remove().await?;
        }
        Ok(self.directory.close()?)
    }
}

impl Postgres {
    async fn make(url: &str) -> Result<Self> {
        let url = Url::parse(url).context("the database is neither sqlite nor a URL")?;
        let postgres = Self { url, main: format!("tenantry_bench_{}", std::process::id()) };
        let server = connect(postgres.url.as_str()).await?;
        let fsync: String = server.query_one("SHOW fsync", &[]).await?.get(0);
        ensure!(fsync == "on", "the PostgreSQL server runs without fsync: its figures would mean nothing");
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
        let made = connect(&self.url_of(&self.main)).await?.query(databases, &[]).await?;
        let tenants = made.iter().map(|row| row.get(0));
        let server = connect(self.url.as_str()).await?;
        for database in tenants.chain([self.main.as_str()]) {
            server.batch_execute(&format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)")).await?;
        }
        Ok(())
    }
}

/// What a PostgreSQL server keeps ready.
pub(crate) struct Spares<'a>(&'a Postgres);

impl Spares<'_> {
    /// Waits until so many are ready.
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

/// What a PostgreSQL server knows of the connections to tenants' databases.
pub(crate) struct Sessions<'a>(&'a Postgres);

impl Sessions<'_> {
    /// How many were opened so far.
    pub(crate) async fn opened(&self) -> Result<f64> {
        // A session is counted when it has reported, which it does at its end at the latest.
        let sum = "SELECT SUM(sessions)::double precision FROM pg_stat_database WHERE datname LIKE 'tenant\\_%'";
        Ok(connect(self.0.url.as_str()).await?.query_one(sum, &[]).await?.get(0))
    }

    /// How much memory a session to a tenant's database takes that nobody else shares, in MiB: the median of those that there
    /// are. Only where the server runs on this machine.
    pub(crate) async fn private_memory(&self) -> Result<f64> {
        let pids = "SELECT pid FROM pg_stat_activity WHERE datname LIKE 'tenant\\_%' AND backend_type = 'client backend'";
        let rows = connect(self.0.url.as_str()).await?.query(pids, &[]).await?;
        let private: Vec<f64> = rows.iter().filter_map(|row| private_memory_of(row.get(0))).collect();
        Ok(if private.is_empty() { f64::NAN } else { median(private.into_iter()) })
    }

    /// A connection to each of these databases, with nothing of the product around it.
    pub(crate) async fn finders(&self, databases: &[(&str, Uuid)]) -> Result<Finders> {
        let mut finders = Vec::new();
        for (database, document) in databases {
            finders.push(self.finder(database, *document).await?);
        }
        Ok(Finders(finders))
    }

    /// Finds one document after the other, each over a connection that is opened for it, until the time is over.
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

    /// The outcome of some work, and how many were open at most meanwhile.
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

/// Anonymous memory that a process shares with nobody.
fn private_memory_of(pid: i32) -> Option<f64> {
    let told = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Some((kib("Private_Dirty:")? + kib("Private_Clean:")?) / 1024.0)
}

/// Bare connections that find documents with the product's own statement.
pub(crate) struct Finders(Vec<(tokio_postgres::Client, tokio_postgres::Statement)>);

impl Finders {
    /// Finds documents, so many at the same time, in an order of databases, until the time is over. Several who ask one database
    /// share its connection, as in the product.
    pub(crate) async fn find(&self, order: &[usize], askers: usize, duration: Duration) -> Result<Histogram> {
        let began = Instant::now();
        let ask = async |asker: usize| -> Result<Histogram> {
            let mut latencies = Histogram::default();
            let from_here = order.iter().cycle().skip(asker * order.len() / askers);
            for n in from_here.take_while(|_| began.elapsed() < duration) {
                let (client, statement) = &self.0[*n];
                let asked = Instant::now();
                client.query_one(statement, &[]).await?;
                latencies.record(asked.elapsed());
            }
            Ok(latencies)
        };
        let found = try_join_all((0..askers).map(ask)).await?;
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
