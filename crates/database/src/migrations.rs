//! Schema migrations: numbered, in one transaction under a lock of the database, refused when an applied one was edited.
//!
//! The text is PostgreSQL's. SQLite gets the same text with its own names of types, and its tables strict. What the two can't
//! share stands below a line of its own, `--- SQLite` or `--- PostgreSQL`, up to the next of them.

use std::sync::LazyLock;

use domain::TenantId;
use rusqlite::ErrorCode;
use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;

use crate::{
    Error, Result, Value,
    postgres::{check_identity, from_postgres},
    sqlite::{self, Access, from_rusqlite, open_file},
};

#[derive(Clone, Copy)]
struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

macro_rules! migrations {
    ($($version:literal => $path:literal),+ $(,)?) => {
        &[$(Migration { version: $version, name: $path, sql: include_str!(concat!("../migrations/", $path)) }),+]
    };
}

const MAIN: &[Migration] = migrations! {
    1 => "main/0001_accounts.sql",
    2 => "main/0002_moves.sql",
    3 => "main/0003_quotas.sql",
    4 => "main/0004_events.sql",
    5 => "main/0005_outbox_by_id.sql",
};
static TENANT: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    let released: &[Migration] = migrations! {
        1 => "tenant/0001_documents.sql",
        2 => "tenant/0002_versions.sql",
        3 => "tenant/0003_trash_by_owner.sql",
        4 => "tenant/0004_events.sql",
        5 => "tenant/0005_audit_by_user.sql",
        6 => "tenant/0006_outbox_by_id.sql",
    };
    [released, &injected(latest(released))].concat()
});

/// Nothing: this is not a build for tests.
#[cfg(not(feature = "failpoints"))]
fn injected(_: i64) -> Vec<Migration> {
    Vec::new()
}

/// Further migrations of tenants' databases, for tests of what a fleet goes through: the files of the folder that
/// `TEST_MIGRATIONS` names, in the order of their names.
#[cfg(feature = "failpoints")]
#[expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "not configuration: builds for users have no such migrations")]
fn injected(released: i64) -> Vec<Migration> {
    let Ok(folder) = std::env::var("TEST_MIGRATIONS") else { return Vec::new() };
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let leak = |text: String| -> &'static str { text.leak() };
    let migration = |(version, path): (i64, &std::path::PathBuf)| Migration {
        version,
        name: leak(path.display().to_string()),
        sql: leak(std::fs::read_to_string(path).unwrap()),
    };
    (released + 1..).zip(&files).map(migration).collect()
}

/// Any number will do that other programs don't take for their advisory lock: "Tenantry" in ASCII.
pub(crate) const ADVISORY_LOCK: i64 = 0x5465_6e61_6e74_7279;

/// How long a migration of a tenant's database waits for the transactions before it. Those that come after it wait behind it,
/// so it gives way rather than hold them up, and is tried again.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

const LEDGER: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT NOT NULL PRIMARY KEY, \
     name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT;";

/// What a migration did to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The schema's version before; 0 for none.
    pub from: i64,
    /// The schema's version now.
    pub to: i64,
}

/// The schema version that this program gives the main database.
#[must_use]
pub fn main_schema_version() -> i64 {
    latest(MAIN)
}

/// The schema version that this program gives tenants' databases.
#[must_use]
pub fn tenant_schema_version() -> i64 {
    latest(&TENANT)
}

/// Tells the schema of tenants' databases from every other one, in hexadecimal.
pub fn tenant_schema_digest() -> String {
    let checksums: String = TENANT.iter().map(checksum).collect();
    hex::encode(Sha256::digest(checksums))
}

/// The schema of tenants' databases, migration by migration: as what is noted in such a database.
pub(crate) fn tenant_checksums() -> impl Iterator<Item = (i64, String)> {
    TENANT.iter().map(|migration| (migration.version, checksum(migration)))
}

fn latest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |migration| migration.version)
}

/// Which schema a database has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Schema {
    Main,
    /// One that bears the tenant's identity; any other is refused.
    Tenant(TenantId),
    /// One that is given the tenant's identity, unless it has one.
    NewTenant(TenantId),
    /// Without one: what tenants' databases are copied from.
    TenantTemplate,
}

impl Schema {
    fn migrations(self) -> &'static [Migration] {
        match self {
            Self::Main => MAIN,
            Self::Tenant(_) | Self::NewTenant(_) | Self::TenantTemplate => &TENANT,
        }
    }
}

/// Which migrations are to be applied, given those that were.
fn pending(migrations: &'static [Migration], applied: &[(i64, String)]) -> Result<&'static [Migration]> {
    for (applied, expected) in applied.iter().zip(migrations) {
        if applied.0 != expected.version || applied.1 != checksum(expected) {
            // It is this program that does not fit the database, not the migration.
            return Err(Error::unavailable(format!("migration {} was edited after it had been applied", expected.name)));
        }
    }
    // A database of a newer program is left as it is: that program keeps its schema usable for this one.
    Ok(migrations.get(applied.len()..).unwrap_or_default())
}

fn checksum(migration: &Migration) -> String {
    hex::encode(Sha256::digest(migration.sql))
}

fn migrated(migrations: &[Migration], applied: &[(i64, String)]) -> Migrated {
    let from = applied.last().map_or(0, |last| last.0);
    Migrated { from, to: from.max(latest(migrations)) }
}

/// An error beside a migration's own statements, whatever it is: it says nothing of the migration, and trying again may work.
fn around(error: Error) -> Error {
    match error {
        Error::Unavailable(_) | Error::Busy(_) => error,
        other => Error::unavailable(other),
    }
}

/// An error of a migration's statement. What shows that it does not work on this database is an internal one: unsupported,
/// cardinality, data, constraints, dependent objects, syntax and names, raised by the migration itself.
fn of_postgres_statement(error: tokio_postgres::Error) -> Error {
    const ITS_OWN: [&str; 7] = ["0A", "21", "22", "23", "2B", "42", "P0"];
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) | None => around(from_postgres(error)),
        Some(code) if ITS_OWN.iter().any(|class| code.code().starts_with(class)) => Error::internal(error),
        Some(_) => around(from_postgres(error)),
    }
}

/// As [`of_postgres_statement`]: SQLite tells less.
fn of_sqlite_statement(error: rusqlite::Error) -> Error {
    let code = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        _ => None,
    };
    match code {
        Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => Error::internal(error),
        _ => around(from_rusqlite(error)),
    }
}

/// Brings a SQLite file up to date; the main database's is made when it is not there. Blocks.
pub(crate) fn migrate_sqlite(path: &std::path::Path, schema: Schema) -> Result<Migrated> {
    // A tenant's file is made elsewhere; one that is gone shall not come back empty.
    let access = if matches!(schema, Schema::Main) { Access::Create } else { Access::Write };
    let identity = if let Schema::Tenant(tenant_id) = schema { Some(tenant_id) } else { None };
    let connection = open_file(path, access, identity).map_err(around)?;
    migrate_sqlite_connection(&connection, schema)
}

pub(crate) fn migrate_sqlite_connection(connection: &rusqlite::Connection, schema: Schema) -> Result<Migrated> {
    let migrations = schema.migrations();
    // EXCLUSIVE is the lock: a second migrator waits for its busy time-out.
    let not_to_blame = |error| around(from_rusqlite(error));
    connection.execute_batch("BEGIN EXCLUSIVE").map_err(not_to_blame)?;
    let apply = || {
        connection.execute_batch(&for_sqlite(LEDGER)).map_err(not_to_blame)?;
        let applied = applied_to_sqlite(connection).map_err(not_to_blame)?;
        for migration in pending(migrations, &applied)? {
            connection.execute_batch(&for_sqlite(migration.sql)).map_err(of_sqlite_statement)?;
            let entry = (migration.version, migration.name, checksum(migration));
            connection
                .execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (?1, ?2, ?3)", entry)
                .map_err(not_to_blame)?;
        }
        if let Schema::NewTenant(tenant_id) = schema {
            connection
                .execute(
                    "INSERT INTO tenant_identity (tenant_id) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM tenant_identity)",
                    [tenant_id.uuid().as_bytes()],
                )
                .map_err(not_to_blame)?;
            // A database of somebody else's is found here and not at the first upload.
            sqlite::check_identity(connection, tenant_id)?;
        }
        connection.execute_batch("COMMIT").map_err(not_to_blame)?;
        Ok(migrated(migrations, &applied))
    };
    let result = apply();
    if result.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").map_err(not_to_blame)?;
    }
    result
}

fn applied_to_sqlite(connection: &rusqlite::Connection) -> rusqlite::Result<Vec<(i64, String)>> {
    let mut statement = connection.prepare("SELECT version, checksum FROM schema_migrations ORDER BY version")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Brings a PostgreSQL database up to date over a connection of its own.
pub(crate) async fn migrate_postgres(client: &mut tokio_postgres::Client, schema: Schema) -> Result<Migrated> {
    let migrations = schema.migrations();
    let not_to_blame = |error| around(from_postgres(error));
    // Dropped without a commit, the transaction is rolled back.
    let tx = client.transaction().await.map_err(not_to_blame)?;
    if let Schema::Tenant(_) = schema {
        tx.batch_execute(LOCK_TIMEOUT).await.map_err(not_to_blame)?;
    }
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).await.map_err(not_to_blame)?;
    if let Schema::Tenant(tenant_id) = schema {
        check_identity(&tx, tenant_id).await?;
    }
    tx.batch_execute(&for_postgres(LEDGER)).await.map_err(not_to_blame)?;
    let rows = tx.query("SELECT version, checksum FROM schema_migrations ORDER BY version", &[]).await.map_err(not_to_blame)?;
    let applied: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for migration in pending(migrations, &applied)? {
        tx.batch_execute(&for_postgres(migration.sql)).await.map_err(of_postgres_statement)?;
        tx.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            &[&migration.version, &migration.name, &checksum(migration)],
        )
        .await
        .map_err(not_to_blame)?;
    }
    if let Schema::NewTenant(tenant_id) = schema {
        tx.execute(
            "INSERT INTO tenant_identity (tenant_id) SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM tenant_identity)",
            &[&Value::from(tenant_id)],
        )
        .await
        .map_err(not_to_blame)?;
        check_identity(&tx, tenant_id).await?;
    }
    tx.commit().await.map_err(not_to_blame)?;
    Ok(migrated(migrations, &applied))
}

fn for_postgres(sql: &str) -> String {
    only_for("PostgreSQL", sql).replace(") STRICT;", ");")
}

/// Leaves out what is for the other engine.
fn only_for(engine: &str, sql: &str) -> String {
    let mut is_ours = true;
    let ours = sql.split_inclusive('\n').filter(|line| {
        if let Some(named) = line.strip_prefix("--- ") {
            is_ours = named.trim_end() == engine;
        }
        is_ours
    });
    ours.collect()
}

/// Translates the names of types, as whole words.
fn for_sqlite(sql: &str) -> String {
    let sql = only_for("SQLite", sql);
    let mut translated = String::with_capacity(sql.len());
    for piece in sql.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let type_name = match word {
            "UUID" | "BYTEA" => "BLOB",
            "TIMESTAMPTZ" | "BOOLEAN" | "BIGINT" => "INTEGER",
            other => other,
        };
        translated.push_str(type_name);
        translated.push_str(&piece[word.len()..]);
    }
    translated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_translated_as_whole_words() {
        assert_eq!(
            for_sqlite("CREATE TABLE a (id UUID, BIGINT_x BIGINT, t TIMESTAMPTZ) STRICT;"),
            "CREATE TABLE a (id BLOB, BIGINT_x INTEGER, t INTEGER) STRICT;"
        );
    }

    #[test]
    fn each_engine_gets_its_own_part() {
        let sql = "A;\n--- SQLite\nB;\n--- PostgreSQL\nC;\n";
        assert_eq!((for_sqlite(sql), for_postgres(sql)), ("A;\n--- SQLite\nB;\n".to_owned(), "A;\n--- PostgreSQL\nC;\n".to_owned()));
    }

    #[test]
    fn an_edited_migration_is_refused() {
        let edited = [(1, "0".repeat(64))];
        assert!(pending(MAIN, &edited).is_err());
        let untouched = [(1, checksum(&MAIN[0]))];
        assert_eq!(pending(MAIN, &untouched).unwrap().len(), MAIN.len() - 1);
    }

    #[test]
    fn versions_count_up_by_one() {
        for migrations in [MAIN, &TENANT] {
            let versions: Vec<_> = migrations.iter().map(|migration| migration.version).collect();
            assert_eq!(versions, (1..=latest(migrations)).collect::<Vec<_>>());
        }
    }
}
