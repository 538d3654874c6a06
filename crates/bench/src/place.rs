//! Where the measured server keeps its data: a temporary directory, and for PostgreSQL a database of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio_postgres::NoTls;
use url::Url;

use crate::{fixture::Fixture, floors::DatabaseFloor, process::Tenantry};

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
        let made = connect(&self.url_of(&self.main)).await?.query("SELECT database_name FROM tenants", &[]).await?;
        let tenants = made.iter().map(|row| row.get(0));
        let server = connect(self.url.as_str()).await?;
        for database in tenants.chain([self.main.as_str()]) {
            server.batch_execute(&format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)")).await?;
        }
        Ok(())
    }
}

async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}
