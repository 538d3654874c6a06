//! Databases of both kinds: the main database, and tenants' databases.

use crate::{
    DatabaseUrl, PostgresLimits, SqliteThreads,
    connection::{Connection, Main, Scope, Tenant, Tx},
    engine::EngineDatabase,
    error::Result,
    postgres::{PostgresDatabase, PostgresServer},
    schema::{Migrated, Schema},
    sqlite::SqliteFile,
};

/// The tables of the main database, in an order in which they can be dropped.
const MAIN_TABLES: &[&str] = &[
    "outbox",
    "dirty_tenants",
    "handled_events",
    "dead_letters",
    "audit_log",
    "idempotency_keys",
    "access_changes",
    "access_version",
    "login_throttles",
    "login_sources",
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

/// A handle on a database. Cheap to clone.
#[derive(Debug)]
pub struct Database<S: Scope> {
    engine: EngineDatabase,
    identity: S::Identity,
}

/// The main database.
pub type MainDatabase = Database<Main>;

/// A tenant's database.
pub type TenantDatabase = Database<Tenant>;

impl<S: Scope> Clone for Database<S> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), identity: self.identity }
    }
}

impl<S: Scope> Database<S> {
    /// A connection for reading outside of transactions.
    ///
    /// # Errors
    /// When the database is missing, down or another tenant's, or every connection is in use for too long.
    pub async fn read(&self) -> Result<Connection<S>> {
        Ok(Connection::new(self.engine.read().await?))
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub async fn begin(&self) -> Result<Tx<S>> {
        Ok(Tx::new(self.engine.begin().await?))
    }
}

impl Database<Main> {
    /// A handle on the database at `url`. Connects to nothing yet.
    #[must_use]
    pub fn new(url: &DatabaseUrl, threads: &SqliteThreads, limits: PostgresLimits) -> Self {
        let engine = match url {
            DatabaseUrl::Sqlite(path) => EngineDatabase::Sqlite(SqliteFile::new(path.clone(), None, threads.clone())),
            DatabaseUrl::Postgres(url) => {
                let server = PostgresServer::new(url.config(), url.tls(), limits);
                EngineDatabase::Postgres(PostgresDatabase::new(server, url.database().to_owned(), None))
            }
        };
        Self { engine, identity: () }
    }

    /// Creates the database if it is missing, and applies all pending migrations. Safe to run from several processes at once.
    ///
    /// # Errors
    /// When the database is down, or an applied migration was edited.
    pub async fn migrate(&self) -> Result<Migrated> {
        self.engine.migrate(Schema::Main).await
    }

    /// Drops all tables of the main database, with all data.
    ///
    /// # Errors
    /// When the database is down, or other transactions hold it for too long.
    pub async fn erase(&self) -> Result<()> {
        let drop_all = MAIN_TABLES.iter().map(|table| format!("DROP TABLE IF EXISTS {table};")).collect::<String>();
        self.engine.execute(format!("BEGIN; {drop_all} COMMIT;")).await
    }
}

impl Database<Tenant> {
    pub(crate) fn of_tenant(engine: EngineDatabase, identity: domain::TenantId) -> Self {
        Self { engine, identity }
    }

    /// The tenant whose database it is.
    #[must_use]
    pub fn tenant_id(&self) -> domain::TenantId {
        self.identity
    }

    pub(crate) async fn migrate_to(&self, schema: Schema) -> Result<Migrated> {
        self.engine.migrate(schema).await
    }
}
