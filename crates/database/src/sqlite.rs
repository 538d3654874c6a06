//! SQLite: files with one writer and several readers, on a small set of threads of our own.
//!
//! From the bottom up: `error` and `threads`, `statement` and `limits`, `open`, `migrate` and `group_commit`, `file` (the pool),
//! `connection` (what callers hold) and `folder` (tenants' files). A module calls only those before it.

mod connection;
mod error;
mod file;
mod folder;
mod group_commit;
mod limits;
mod migrate;
mod open;
mod statement;
mod threads;

pub use self::threads::SqliteThreads;
pub(crate) use self::{
    connection::SqliteConnection,
    error::from_rusqlite,
    file::SqliteFile,
    folder::SqliteFolder,
    migrate::migrate,
    open::{Access, open_file},
    statement::run,
};

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, StatementStatus, config::DbConfig};

    use super::*;
    use crate::{Value, schema::Schema};

    /// How often SQLite prepared a cached statement again while it ran with parameters of several values.
    fn reprepared(connection: &Connection) -> i32 {
        const SQL: &str = "SELECT f.id FROM documents d JOIN files f ON f.id = d.file_id WHERE d.id = $1";
        for value in 0..5 {
            run(connection, SQL, &[Value::Bytes(vec![value; 16])]).unwrap();
        }
        connection.prepare_cached(SQL).unwrap().get_status(StatementStatus::RePrepare)
    }

    #[test]
    fn cached_statements_are_prepared_once() {
        let directory = tempfile::tempdir().unwrap();
        let connection = open_file(&directory.path().join("tenant.sqlite3"), Access::Create, None).unwrap();
        migrate(&connection, Schema::TenantTemplate).unwrap();
        assert_eq!(reprepared(&connection), 0);
        // The control: without the setting they are prepared again.
        connection.flush_prepared_statement_cache();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, false).unwrap();
        assert!(reprepared(&connection) >= 4);
    }
}
