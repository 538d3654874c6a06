//! The tables: one file each, queries in and domain types out. The only crate that writes SQL.
//!
//! A function that takes a [`Connection`] only reads and may be used outside a transaction; one that takes a [`Tx`] writes. No
//! function here decides whether somebody may: that is done where transactions begin, in the services.

mod accounts;
pub mod documents;
mod events;
pub mod idempotency;
pub mod leases;
pub mod tenants;

pub use accounts::{access_changes, sessions, users};
pub use documents::{files, multipart_uploads, quotas, trash, uploads, versions};
pub use events::{audit, dead_letters, dirty_tenants, handled_events, outbox};
pub use tenants::{members, migrations, moves, tombstones, warm_pool};

pub use database::{
    Connection, Connections, DatabaseUrl, Error, Main, MainDatabase, MainTx, Migrated, Result, Scope, TableSum, Tenant, TenantDatabase,
    TenantDatabases, TenantTx, Transfer, Tx, main_schema_version, tenant_schema_digest, tenant_schema_version,
};

pub use events::dirty_tenants::Mark;

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
