//! One database on a server.

use std::{fmt, sync::Arc};

use domain::TenantId;
use tokio_postgres::Client;

use super::{
    catalog::{create_database, database_exists},
    connection::PostgresConnection,
    error::from_postgres,
    lease::Pool,
    migrate::migrate,
    server::PostgresServer,
    shared_reader::{PostgresReader, SharedReaders},
};
use crate::{
    error::Result,
    schema::{Migrated, Schema},
};

/// One database on a server.
pub(crate) struct PostgresDatabase {
    pool: Pool,
    readers: Arc<SharedReaders>,
}

impl fmt::Debug for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresDatabase").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl PostgresDatabase {
    /// A handle on a database. Connects to nothing yet. When `identity` is given, every connection checks that the database is
    /// that tenant's.
    pub(crate) fn new(server: Arc<PostgresServer>, name: String, identity: Option<TenantId>) -> Arc<Self> {
        let pool = Pool::new(server, name, identity);
        Arc::new(Self { readers: SharedReaders::new(pool.clone()), pool })
    }

    /// A reader outside of transactions, on a connection that others may share.
    pub(crate) async fn read(&self) -> Result<PostgresReader> {
        PostgresReader::join(&self.readers).await
    }

    /// A connection of its own, for a transaction.
    pub(crate) async fn write(&self) -> Result<PostgresConnection> {
        PostgresConnection::lease(&self.pool).await
    }

    /// Applies all pending migrations. The main database is created when it is missing.
    pub(crate) async fn migrate(&self, schema: Schema) -> Result<Migrated> {
        let mut client = match self.administer().await {
            // It may not exist yet. If that is not the reason, the second attempt to connect fails with the reason.
            Err(_) if schema == Schema::Main => {
                self.create_if_missing().await?;
                self.administer().await?
            }
            connected => connected?,
        };
        migrate(&mut client, schema).await
    }

    /// Runs a script that brings its own transaction.
    pub(crate) async fn execute(&self, script: &str) -> Result<()> {
        self.administer().await?.batch_execute(script).await.map_err(from_postgres)
    }

    async fn administer(&self) -> Result<Client> {
        self.pool.server.administer(self.pool.database()).await
    }

    async fn create_if_missing(&self) -> Result<()> {
        let client = self.pool.server.administer("postgres").await?;
        let name = self.pool.database();
        if database_exists(&client, name).await? {
            return Ok(());
        }
        // A name can't be a parameter. It comes from the configuration, not from a request, but is quoted all the same.
        create_database(&client, &name.replace('"', "\"\""), "template0").await
    }
}
