//! The main database.

use std::sync::Arc;

use crate::{
    Connection, DatabaseUrl, Error, Main, MainTx, Migrated, PostgresLimits, PostgresServer, PostgresUrl, Result, SqliteThreads, Tx,
    connection::Engine,
    migrations::{Schema, migrate_postgres, migrate_sqlite},
    postgres::{PostgresDatabase, create_database, database_exists, from_postgres},
    sqlite::{Access, SqliteFile, from_rusqlite, open_file},
    url::tls_for,
};

/// The tables of the main database, in an order in which they can be dropped.
const TABLES: &[&str] = &[
    "outbox",
    "dirty_tenants",
    "handled_events",
    "dead_letters",
    "audit_log",
    "idempotency_keys",
    "access_changes",
    "access_version",
    "sessions",
    "spare_databases",
    "leases",
    "user_tenant_associations",
    "tenant_tombstones",
    "tenant_moves",
    "tenant_migrations",
    "tenants",
    "users",
    "schema_migrations",
];

/// The main database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MainDatabase {
    at: At,
}

#[derive(Clone, Debug)]
enum At {
    Sqlite(Arc<SqliteFile>),
    Postgres(Arc<PostgresDatabase>),
}

impl MainDatabase {
    /// A handle on the database at `url`. Connects to nothing yet.
    #[must_use]
    pub fn new(url: &DatabaseUrl, threads: &SqliteThreads, limits: PostgresLimits) -> Self {
        let at = match url {
            DatabaseUrl::Sqlite(path) => At::Sqlite(SqliteFile::new(path.clone(), None, threads.clone())),
            DatabaseUrl::Postgres(PostgresUrl { config, .. }) => {
                let server = PostgresServer::new((**config).clone(), tls_for(config), limits);
                let name = config.get_dbname().unwrap_or("postgres").to_owned();
                At::Postgres(PostgresDatabase::new(server, name, None))
            }
        };
        Self { at }
    }

    /// A connection for reading outside a transaction.
    ///
    /// # Errors
    /// When the database is down or every connection in use for too long.
    pub async fn read(&self) -> Result<Connection<Main>> {
        let engine = match &self.at {
            At::Sqlite(file) => Engine::Sqlite(file.read().await?),
            At::Postgres(database) => Engine::PostgresReader(database.read().await?),
        };
        Ok(Connection::new(engine))
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the database is down or every connection in use for too long.
    pub async fn begin(&self) -> Result<MainTx> {
        let engine = match &self.at {
            At::Sqlite(file) => Engine::Sqlite(file.write()),
            At::Postgres(database) => Engine::Postgres(database.write().await?),
        };
        Ok(Tx::begin(engine))
    }

    /// Makes the database where it is missing, and brings its schema up to date. Safe to run from several processes at once.
    ///
    /// # Errors
    /// When the database is down, or an applied migration was edited.
    pub async fn migrate(&self) -> Result<Migrated> {
        match &self.at {
            At::Sqlite(file) => {
                file.exclusively(|path| {
                    if let Some(folder) = path.parent() {
                        std::fs::create_dir_all(folder).map_err(Error::unavailable)?;
                    }
                    migrate_sqlite(path, Schema::Main)
                })
                .await
            }
            At::Postgres(database) => {
                let mut client = match database.server.administer(database.name()).await {
                    Ok(client) => client,
                    Err(_) => {
                        // Perhaps it does not exist yet. When that is not it, the second connect says what is.
                        create_if_missing(&database.server, database.name()).await?;
                        database.server.administer(database.name()).await?
                    }
                };
                migrate_postgres(&mut client, Schema::Main).await
            }
        }
    }

    /// Drops all tables of the main database, with everything in them.
    ///
    /// # Errors
    /// When the database is down or held by others.
    pub async fn erase(&self) -> Result<()> {
        let drop_all = TABLES.iter().map(|table| format!("DROP TABLE IF EXISTS {table};")).collect::<String>();
        let drop_all = format!("BEGIN; {drop_all} COMMIT;");
        match &self.at {
            At::Sqlite(file) => {
                file.exclusively(move |path| open_file(path, Access::Write, None)?.execute_batch(&drop_all).map_err(from_rusqlite)).await
            }
            At::Postgres(database) => {
                let client = database.server.administer(database.name()).await?;
                client.batch_execute(&drop_all).await.map_err(from_postgres)
            }
        }
    }
}

/// Makes a PostgreSQL database unless it is there, connected to the server's maintenance database.
async fn create_if_missing(server: &PostgresServer, name: &str) -> Result<()> {
    let client = server.administer("postgres").await?;
    if database_exists(&client, name).await? {
        return Ok(());
    }
    // A name can't be a parameter. It comes from the configuration, not from a request; quoted all the same.
    let quoted = name.replace('"', "\"\"");
    create_database(&client, &quoted, "template0").await
}
