//! The write-block: triggers that refuse every write to a database that has moved.

use std::time::Duration;

use rusqlite::Connection;
use tokio_postgres::Client;

use super::table::{Table, quoted};
use crate::{
    error::{Error, Result, WRITE_BLOCKED},
    postgres::{ADVISORY_LOCK, from_postgres},
    sqlite::{from_rusqlite, run},
    value::Value,
};

/// The name of PostgreSQL's triggers and of their function, and the prefix of the names of SQLite's triggers.
const NAME: &str = "tenantry_moved";

/// PostgreSQL's statements to begin a transaction that waits for all writers and keeps further ones waiting. The advisory lock is
/// the one that migrations and the lifting of a write-block wait for.
pub(super) fn lock(tables: &[Table], idle_limit: Duration) -> String {
    let names: Vec<_> = tables.iter().map(|table| quoted(&table.name)).collect();
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '5s';
         SET LOCAL idle_in_transaction_session_timeout = {}; SELECT pg_advisory_xact_lock({ADVISORY_LOCK});
         LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE;",
        idle_limit.as_millis(),
        names.join(", ")
    )
}

/// The statements that create the triggers: for SQLite, for PostgreSQL.
pub(super) fn create(tables: &[Table]) -> (String, String) {
    let message = WRITE_BLOCKED.replace('\'', "''");
    // Class 57, operator intervention; a code that PostgreSQL itself does not use.
    let raise = format!("RAISE EXCEPTION '{message}' USING ERRCODE = '57M01';");
    let (mut for_sqlite, mut for_postgres) = (String::new(), trigger_function(&raise));
    for Table { name, .. } in tables {
        let table = quoted(name);
        for_postgres += &format!(
            "CREATE OR REPLACE TRIGGER {NAME} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} EXECUTE FUNCTION {NAME}();"
        );
        for event in ["INSERT", "UPDATE", "DELETE"] {
            let trigger = quoted(&format!("{NAME}_{name}_{event}"));
            for_sqlite +=
                &format!("CREATE TRIGGER IF NOT EXISTS {trigger} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '{message}'); END;");
        }
    }
    (for_sqlite, for_postgres)
}

/// The function that PostgreSQL runs before each statement that writes.
fn trigger_function(body: &str) -> String {
    format!("CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$;")
}

/// Drops the triggers, whichever version of the program created them.
pub(super) fn lift_from_sqlite(connection: &Connection) -> Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE").map_err(from_rusqlite)?;
    let triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, length($1)) = $1";
    for mut row in run(connection, triggers, &[Value::Text(NAME.to_owned())])?.rows {
        let name: String = row.take()?;
        connection.execute_batch(&format!("DROP TRIGGER {}", quoted(&name))).map_err(from_rusqlite)?;
    }
    connection.execute_batch("COMMIT").map_err(from_rusqlite)
}

/// As [`lift_from_sqlite`]. Dropping a trigger waits for all readers, and all later ones wait behind it. So the triggers are
/// first disabled, which waits only for a transfer that is about to write-block; then they are dropped, if that is possible at
/// once.
pub(super) async fn lift_from_postgres(client: &Client) -> Result<()> {
    let lock = format!("BEGIN READ WRITE; SELECT pg_advisory_xact_lock({ADVISORY_LOCK})");
    client.batch_execute(&lock).await.map_err(from_postgres)?;
    let found = client.query_opt("SELECT 1 FROM pg_proc WHERE oid = to_regproc($1)", &[&NAME]).await.map_err(from_postgres)?;
    let disable = if found.is_some() { trigger_function("") } else { String::new() };
    client.batch_execute(&format!("{disable} COMMIT")).await.map_err(from_postgres)?;
    let drop_all = format!("BEGIN READ WRITE; SET LOCAL lock_timeout = '100ms'; DROP FUNCTION IF EXISTS {NAME}() CASCADE; COMMIT");
    match client.batch_execute(&drop_all).await.map_err(from_postgres) {
        Err(Error::Busy(_)) => client.batch_execute("ROLLBACK").await.map_err(from_postgres),
        dropped => dropped,
    }
}
