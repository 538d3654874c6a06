//! The tables: one file each, queries in and domain types out. The only crate that writes SQL.
//!
//! A function that takes a [`Connection`] only reads and may be used outside a transaction; one that takes a [`Tx`] writes. No
//! function here decides whether somebody may: that is done where transactions begin, in the services.

pub mod access_changes;
pub mod audit_log;
pub mod dead_letters;
pub mod dirty_tenants;
pub mod documents;
pub mod files;
pub mod handled_events;
pub mod idempotency;
pub mod leases;
pub mod members;
pub mod migrations;
pub mod moves;
pub mod outbox;
pub mod quotas;
pub mod sessions;
pub mod spares;
pub mod staged_uploads;
pub mod tenants;
pub mod tombstones;
pub mod trash;
pub mod uploads;
pub mod users;
pub mod versions;

pub use database::{
    Connection, Connections, DatabaseUrl, Error, Main, MainDatabase, MainTx, Migrated, Result, Scope, TableSum, Tenant, TenantDatabase,
    TenantDatabases, TenantTx, Transfer, Tx, main_schema_version, tenant_schema_digest, tenant_schema_version,
};

pub use dirty_tenants::Mark;

use database::{FromValue, Row, Statement};
use domain::{Page, PageRequest};

/// Reads a column that holds one of our own words.
fn word<T>(row: &mut Row, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    let text: String = row.take()?;
    parse(&text).ok_or_else(|| Error::Internal(format!("a column holds the unknown word {text}").into()))
}

/// Reads the one column of the one row of a counting statement.
fn single<T: FromValue>(mut row: Row) -> Result<T> {
    row.take()
}

/// Reads a page of a list and the length of the whole, in one trip.
async fn page<S: Scope, T>(
    connection: &mut Connection<S>,
    count: Statement,
    items: Statement,
    request: PageRequest,
    read: impl FnMut(Row) -> Result<T>,
) -> Result<Page<T>> {
    let mut outcomes = connection.batch(vec![count, items]).await?.into_iter();
    let mut next = || outcomes.next().map(|outcome| outcome.rows).unwrap_or_default();
    let total = next().pop().map_or(Ok(0), single)?;
    let items = next().into_iter().map(read).collect::<Result<_>>()?;
    Ok(Page { items, request, total })
}
