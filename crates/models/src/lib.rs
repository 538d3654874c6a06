//! The tables: one file each, which turns queries into domain types. No other crate writes SQL.
//!
//! A function that takes a [`Connection`] only reads and needs no transaction; one that takes a [`Tx`] writes. No function here
//! authorizes the caller: the services do that where they begin transactions.

mod accounts;
pub mod documents;
mod events;
pub mod idempotency;
pub mod leases;
pub mod tenants;

pub use accounts::{access_changes, login_throttles, sessions, users};
pub use documents::{files, multipart_uploads, quotas, search_keys, trash, uploads, versions};
pub use events::{audit, dead_letters, dirty_tenants, handled_events, outbox};
pub use tenants::{members, migrations, moves, tombstones, warm_pool};

pub use database::{
    Connection, Connections, DatabaseUrl, Error, Main, MainDatabase, MainTx, Migrated, Result, Scope, TableSum, Tenant, TenantDatabase,
    TenantDatabases, TenantTx, Transfer, Tx, main_schema_version, tenant_schema_digest, tenant_schema_version,
};

pub use events::dirty_tenants::DirtyFlag;

use database::{FromValue, Row, Statement};
use domain::{Page, PageRequest};

/// Reads a column that contains the stored name of an enum variant.
fn word<T>(row: &mut Row, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    let text: String = row.take()?;
    parse(&text).ok_or_else(|| Error::Internal(format!("a column contains the unknown value {text}").into()))
}

/// Reads the only column of a row.
fn single<T: FromValue>(mut row: Row) -> Result<T> {
    row.take()
}

/// Reads a page of a list and the length of the whole list in one round trip.
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
