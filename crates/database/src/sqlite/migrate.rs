//! Applying migrations to SQLite files.

use std::{fs, path::Path};

use rusqlite::{Connection, ErrorCode};

use super::{
    error::from_rusqlite,
    open::{Access, check_identity, open_file},
};
use crate::{
    error::{Error, Result},
    schema::{Applied, Migrated, Schema, retryable},
};

/// Applies all pending migrations to a file; the main database's is created when it is missing. Blocks.
pub(super) fn migrate_file(path: &Path, schema: Schema) -> Result<Migrated> {
    let access = if schema == Schema::Main {
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(Error::unavailable)?;
        Access::Create
    } else {
        // A tenant's file is created elsewhere; one that is lost must not come back empty.
        fs::metadata(path).map_err(Error::unavailable)?;
        Access::Write
    };
    let connection = open_file(path, access, schema.identity()).map_err(retryable)?;
    migrate(&connection, schema)
}

/// Applies all pending migrations.
pub(crate) fn migrate(connection: &Connection, schema: Schema) -> Result<Migrated> {
    // EXCLUSIVE is the lock: a second migrator waits for its busy time-out.
    connection.execute_batch("BEGIN EXCLUSIVE").map_err(outside_migration)?;
    let result = apply(connection, schema);
    if result.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").map_err(outside_migration)?;
    }
    result
}

fn apply(connection: &Connection, schema: Schema) -> Result<Migrated> {
    connection.execute_batch(&Schema::ledger().for_sqlite()).map_err(outside_migration)?;
    let applied = applied_to(connection).map_err(outside_migration)?;
    for migration in schema.pending(&applied)? {
        connection.execute_batch(&migration.for_sqlite()).map_err(in_migration)?;
        let entry = (migration.version, migration.name, migration.checksum());
        connection
            .execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (?1, ?2, ?3)", entry)
            .map_err(outside_migration)?;
    }
    if let Some(tenant_id) = schema.new_identity() {
        connection
            .execute(
                "INSERT INTO tenant_identity (tenant_id) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM tenant_identity)",
                [tenant_id.uuid().as_bytes()],
            )
            .map_err(outside_migration)?;
        // Another tenant's database is found out here and not at the first upload.
        check_identity(connection, tenant_id)?;
    }
    connection.execute_batch("COMMIT").map_err(outside_migration)?;
    Ok(schema.migrated(&applied))
}

fn applied_to(connection: &Connection) -> rusqlite::Result<Applied> {
    let mut statement = connection.prepare("SELECT version, checksum FROM schema_migrations ORDER BY version")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The error of a statement that belongs to no migration.
fn outside_migration(error: rusqlite::Error) -> Error {
    retryable(from_rusqlite(error))
}

/// The error of a migration's statement: internal when it shows that the migration does not work on this database.
fn in_migration(error: rusqlite::Error) -> Error {
    let code = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        _ => None,
    };
    match code {
        Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => Error::internal(error),
        _ => outside_migration(error),
    }
}
