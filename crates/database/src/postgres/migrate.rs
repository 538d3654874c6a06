//! Applying migrations to PostgreSQL databases.

use tokio_postgres::{Client, Transaction, error::SqlState};

use super::{error::from_postgres, identity::check_identity};
use crate::{
    error::{Error, Result},
    schema::{Applied, Migrated, Schema, retryable},
    value::Value,
};

/// The advisory lock of migrations: "Tenantry" in ASCII, so that other programs hardly take it for theirs.
pub(crate) const ADVISORY_LOCK: i64 = 0x5465_6e61_6e74_7279;

/// How long a migration of a tenant's database waits for the transactions before it. Later transactions wait behind it, so it
/// gives up instead of delaying them, and is tried again.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

/// The classes of SQLSTATE that show that a migration does not work on this database: unsupported, cardinality, data, constraints,
/// dependent objects, syntax and names, raised by the migration itself.
const MIGRATION_AT_FAULT: [&str; 7] = ["0A", "21", "22", "23", "2B", "42", "P0"];

/// Applies all pending migrations, over a connection of its own.
pub(super) async fn migrate(client: &mut Client, schema: Schema) -> Result<Migrated> {
    // Dropped without a commit, the transaction is rolled back.
    let tx = client.transaction().await.map_err(outside_migration)?;
    if schema.identity().is_some() {
        tx.batch_execute(LOCK_TIMEOUT).await.map_err(outside_migration)?;
    }
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).await.map_err(outside_migration)?;
    if let Some(tenant_id) = schema.identity() {
        check_identity(&tx, tenant_id).await?;
    }
    let applied = apply_pending(&tx, schema).await?;
    if let Some(tenant_id) = schema.new_identity() {
        tx.execute(
            "INSERT INTO tenant_identity (tenant_id) SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM tenant_identity)",
            &[&Value::from(tenant_id)],
        )
        .await
        .map_err(outside_migration)?;
        check_identity(&tx, tenant_id).await?;
    }
    tx.commit().await.map_err(outside_migration)?;
    Ok(schema.migrated(&applied))
}

/// Applies the pending migrations, and returns those that had been applied before.
async fn apply_pending(tx: &Transaction<'_>, schema: Schema) -> Result<Applied> {
    tx.batch_execute(&Schema::ledger().for_postgres()).await.map_err(outside_migration)?;
    let rows = tx.query("SELECT version, checksum FROM schema_migrations ORDER BY version", &[]).await.map_err(outside_migration)?;
    let applied: Applied = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for migration in schema.pending(&applied)? {
        tx.batch_execute(&migration.for_postgres()).await.map_err(in_migration)?;
        tx.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            &[&migration.version, &migration.name, &migration.checksum()],
        )
        .await
        .map_err(outside_migration)?;
    }
    Ok(applied)
}

/// The error of a statement that belongs to no migration.
fn outside_migration(error: tokio_postgres::Error) -> Error {
    retryable(from_postgres(error))
}

/// The error of a migration's statement: internal when it shows that the migration does not work on this database.
fn in_migration(error: tokio_postgres::Error) -> Error {
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) | None => outside_migration(error),
        Some(code) if MIGRATION_AT_FAULT.iter().any(|class| code.code().starts_with(class)) => Error::internal(error),
        Some(_) => outside_migration(error),
    }
}
