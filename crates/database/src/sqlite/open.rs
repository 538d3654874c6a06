//! Opening SQLite files.

use std::path::Path;

use domain::TenantId;
use rusqlite::{
    Connection, OpenFlags,
    config::DbConfig,
    hooks::{AuthAction, AuthContext, Authorization},
};

use super::{
    error::from_rusqlite,
    limits::{BUSY_TIMEOUT, limit},
};
use crate::error::{Error, Result};

/// Prepared statements kept per connection: more than the models have.
const STATEMENTS_PER_CONNECTION: usize = 64;

const SETTINGS: &str = "PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = ON;
    PRAGMA trusted_schema = OFF;
    PRAGMA temp_store = MEMORY;
    PRAGMA journal_size_limit = 4194304;";

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Statements that change nothing; SQLite refuses others.
    Read,
    /// All statements.
    Write,
    /// All statements, and the file is created when it is missing.
    Create,
}

/// Opens a file with the settings that durability and isolation rest on. When `identity` is given, a file of another tenant is
/// refused.
pub(crate) fn open_file(path: &Path, access: Access, identity: Option<TenantId>) -> Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if access == Access::Create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let mut connection = Connection::open_with_flags(path, flags).map_err(from_rusqlite)?;
    set_up(&mut connection, access).map_err(from_rusqlite)?;
    if let Some(tenant_id) = identity {
        check_identity(&connection, tenant_id)?;
    }
    if access == Access::Read {
        limit(&mut connection).map_err(from_rusqlite)?;
    }
    Ok(connection)
}

fn set_up(connection: &mut Connection, access: Access) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_PER_CONNECTION);
    // Otherwise SQLite may plan by a parameter's value, and prepare a cached statement again for each value.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.execute_batch(SETTINGS)?;
    if access == Access::Read {
        connection.execute_batch("PRAGMA query_only = ON;")?;
    }
    // A statement of one tenant can never name another tenant's file.
    connection.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Authorization::Deny,
        _ => Authorization::Allow,
    }))
}

/// Fails unless the database is this tenant's.
pub(crate) fn check_identity(connection: &Connection, expected: TenantId) -> Result<()> {
    let found = connection.query_row("SELECT tenant_id FROM tenant_identity", [], |row| row.get::<_, Vec<u8>>(0));
    // A file without identity is not the tenant's database, so that is missing.
    if found.map_err(Error::unavailable)? == expected.uuid().as_bytes() {
        Ok(())
    } else {
        Err(Error::unavailable("the file is another tenant's database"))
    }
}
