//! The schemas of the main database and of tenants' databases: numbered migrations, and which of them a database still needs.
//! Applying them is the engines' part (`sqlite/migrate.rs`, `postgres/migrate.rs`): in one transaction under a lock of the
//! database. A migration that was edited after it had been applied is refused.
//!
//! The text is PostgreSQL's. SQLite gets the same text with its own names of types and strict tables. What only one engine
//! understands stands below a line `--- SQLite` or `--- PostgreSQL`, up to the next such line.

mod dialect;

use std::sync::LazyLock;

use domain::TenantId;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// One step from a schema version to the next.
#[derive(Clone, Copy)]
pub(crate) struct Migration {
    pub(crate) version: i64,
    pub(crate) name: &'static str,
    sql: &'static str,
}

impl Migration {
    /// Identifies the text of the migration. Stored with each applied migration.
    pub(crate) fn checksum(&self) -> String {
        hex::encode(Sha256::digest(self.sql))
    }

    pub(crate) fn for_sqlite(&self) -> String {
        dialect::for_sqlite(self.sql)
    }

    pub(crate) fn for_postgres(&self) -> String {
        dialect::for_postgres(self.sql)
    }
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
    6 => "main/0006_logins.sql",
    7 => "main/0007_tenants_by_creator.sql",
};
static TENANT: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    let released: &[Migration] = migrations! {
        1 => "tenant/0001_documents.sql",
        2 => "tenant/0002_versions.sql",
        3 => "tenant/0003_trash_by_owner.sql",
        4 => "tenant/0004_events.sql",
        5 => "tenant/0005_audit_by_user.sql",
        6 => "tenant/0006_outbox_by_id.sql",
        7 => "tenant/0007_search_keys.sql",
        8 => "tenant/0008_outdated_search_keys.sql",
    };
    [released, &injected(latest(released))].concat()
});

/// No further migrations: this is not a test build.
#[cfg(not(feature = "failpoints"))]
fn injected(_: i64) -> Vec<Migration> {
    Vec::new()
}

/// Further migrations of tenants' databases, for tests of a fleet's migrations: the files of the folder that `TEST_MIGRATIONS`
/// names, in the order of their names.
#[cfg(feature = "failpoints")]
#[expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "not configuration: release builds have no such migrations")]
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

/// The table of the applied migrations.
const APPLIED: Migration = Migration {
    version: 0,
    name: "schema_migrations",
    sql: "CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT NOT NULL PRIMARY KEY, \
          name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT;",
};

/// The applied migrations of a database, in order: version and checksum.
pub(crate) type Applied = Vec<(i64, String)>;

/// The change of a database's schema version.
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

/// A digest of the schema of tenants' databases, in hexadecimal: different schemas have different ones.
pub fn tenant_schema_digest() -> String {
    let checksums: String = TENANT.iter().map(Migration::checksum).collect();
    hex::encode(Sha256::digest(checksums))
}

fn latest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |migration| migration.version)
}

/// The schema of a database, with the identity that it has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schema {
    /// The main database's. The database is created when it is missing.
    Main,
    /// A tenant's. A database without this identity is refused.
    Tenant(TenantId),
    /// A new tenant's. A database without identity gets this one.
    NewTenant(TenantId),
    /// That of the template that tenants' databases are copied from: it has no identity.
    TenantTemplate,
}

impl Schema {
    /// The identity that the database must have before the migration.
    pub(crate) fn identity(self) -> Option<TenantId> {
        if let Self::Tenant(tenant_id) = self { Some(tenant_id) } else { None }
    }

    /// The identity that the database gets with the migration.
    pub(crate) fn new_identity(self) -> Option<TenantId> {
        if let Self::NewTenant(tenant_id) = self { Some(tenant_id) } else { None }
    }

    /// What creates the table of applied migrations.
    pub(crate) fn ledger() -> Migration {
        APPLIED
    }

    /// All migrations as a database records them when they are applied.
    pub(crate) fn expected(self) -> Applied {
        self.migrations().iter().map(|migration| (migration.version, migration.checksum())).collect()
    }

    /// The migrations that are still to be applied.
    ///
    /// # Errors
    /// When an applied one was edited.
    pub(crate) fn pending(self, applied: &Applied) -> Result<&'static [Migration]> {
        let migrations = self.migrations();
        for ((version, checksum), expected) in applied.iter().zip(migrations) {
            if *version != expected.version || *checksum != expected.checksum() {
                // The program does not fit the database; the migration is not at fault.
                return Err(Error::unavailable(format!("migration {} was edited after it had been applied", expected.name)));
            }
        }
        // A newer program's database stays as it is: that program keeps its schema usable for this one.
        Ok(migrations.get(applied.len()..).unwrap_or_default())
    }

    /// The outcome of applying all pending migrations.
    pub(crate) fn migrated(self, applied: &Applied) -> Migrated {
        let from = applied.last().map_or(0, |(version, _)| *version);
        Migrated { from, to: from.max(latest(self.migrations())) }
    }

    fn migrations(self) -> &'static [Migration] {
        match self {
            Self::Main => MAIN,
            Self::Tenant(_) | Self::NewTenant(_) | Self::TenantTemplate => &TENANT,
        }
    }
}

/// An error that no statement of a migration caused: it does not prove the migration wrong, so a later attempt may work.
pub(crate) fn retryable(error: Error) -> Error {
    match error {
        Error::Unavailable(_) | Error::Busy(_) => error,
        other => Error::unavailable(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_migration_is_refused() {
        let edited = vec![(1, "0".repeat(64))];
        assert!(Schema::Main.pending(&edited).is_err());
        let untouched = vec![(1, MAIN[0].checksum())];
        assert_eq!(Schema::Main.pending(&untouched).unwrap().len(), MAIN.len() - 1);
    }

    #[test]
    fn versions_count_up_by_one() {
        for migrations in [MAIN, &TENANT] {
            let versions: Vec<_> = migrations.iter().map(|migration| migration.version).collect();
            assert_eq!(versions, (1..=latest(migrations)).collect::<Vec<_>>());
        }
    }
}
