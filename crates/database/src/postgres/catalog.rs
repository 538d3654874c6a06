//! The databases of a server.

use tokio_postgres::{Client, error::SqlState};

use super::error::from_postgres;
use crate::error::Result;

/// Whether the server has a database of this name.
pub(super) async fn database_exists(client: &Client, name: &str) -> Result<bool> {
    let found = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await.map_err(from_postgres)?;
    Ok(found.is_some())
}

/// Creates a database from a template, unless it exists. The names are already quoted where they have to be.
pub(super) async fn create_database(client: &Client, name: &str, template: &str) -> Result<()> {
    match client.batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\" ENCODING 'UTF8'")).await {
        Err(error) if is_taken(&error) => Ok(()),
        created => created.map_err(from_postgres),
    }
}

/// Whether there is another database of this name: an older one, or one that was created at the same moment.
pub(super) fn is_taken(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&(SqlState::DUPLICATE_DATABASE | SqlState::UNIQUE_VIOLATION)))
}

/// Drops a template. A missing one is no error.
pub(super) async fn drop_template(client: &Client, name: &str) -> Result<()> {
    if database_exists(client, name).await? {
        client.batch_execute(&format!("ALTER DATABASE \"{name}\" IS_TEMPLATE false")).await.map_err(from_postgres)?;
    }
    drop_database(client, name).await
}

/// Drops a database with its connections. A missing one is no error.
pub(super) async fn drop_database(client: &Client, name: &str) -> Result<()> {
    client.batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await.map_err(from_postgres)
}
