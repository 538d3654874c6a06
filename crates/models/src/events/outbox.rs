//! The outbox: events, in the database and the transaction of the change that they record. They stay until they are published and
//! for a while after.
//!
//! An event's sequence number is greater than those of all unpublished events that its transaction sees. It is assigned as late
//! as possible, with the commit. So an event whose transaction saw another event, or waited for its locks, has the greater
//! number. Events of independent transactions may have equal numbers. No reader may ask for numbers "greater than the last one
//! read": commits happen in any order.

use database::{Connection, Main, MainTx, Result, Row, Scope, Tenant, Tx, Value, params};
use domain::{Event, EventId, EventKind, TenantId, Timestamp};
use uuid::Uuid;

use crate::{single, word};

/// How many events one statement marks as published.
const MARK_BATCH_SIZE: usize = 32;

/// Selects the columns that [`event`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, event_type, tenant_id, user_id, occurred_at, data, traceparent FROM outbox ", $rest)
    };
}

/// Adds an event.
pub fn push<S: Scope>(tx: &mut Tx<S>, event: &Event) {
    tx.defer(
        "INSERT INTO outbox (id, event_type, tenant_id, user_id, occurred_at, data, traceparent, seq)
         SELECT $1, $2, $3, $4, $5, $6, $7, coalesce(max(seq), 0) + 1 FROM outbox WHERE published_at IS NULL",
        insertion(event),
    );
}

/// Drains events from a tenant's outbox into the main one, ahead of all events of that tenant there. Skips those that are there
/// already.
pub fn take_over(tx: &mut MainTx, events: &[Event]) {
    for event in events {
        // Drained events get negative numbers, in ascending order.
        tx.defer(
            "INSERT INTO outbox (id, event_type, tenant_id, user_id, occurred_at, data, traceparent, seq)
             SELECT $1, $2, $3, $4, $5, $6, $7, coalesce(max(seq), -1000000000000) + 1 FROM outbox
             WHERE tenant_id = $3 AND published_at IS NULL AND seq < 0
             ON CONFLICT (id) DO NOTHING",
            insertion(event),
        );
    }
}

/// Events, published or not, latest first.
pub async fn list<S: Scope>(connection: &mut Connection<S>, limit: u32) -> Result<Vec<Event>> {
    events(connection.query(select!("ORDER BY occurred_at DESC, id DESC LIMIT $1"), params![limit]).await?)
}

/// The first unpublished events of a tenant's database, in order.
pub async fn list_unpublished(connection: &mut Connection<Tenant>, limit: u32) -> Result<Vec<Event>> {
    events(connection.query(select!("WHERE published_at IS NULL ORDER BY seq, id LIMIT $1"), params![limit]).await?)
}

/// The first unpublished events in the main database for this tenant, or without a tenant if `tenant_id` is absent, in order.
pub async fn list_unpublished_of(connection: &mut Connection<Main>, tenant_id: Option<TenantId>, limit: u32) -> Result<Vec<Event>> {
    // `IS NOT DISTINCT FROM` with a parameter can't use the index.
    let of_tenant = select!("WHERE published_at IS NULL AND tenant_id = $1 ORDER BY seq, id LIMIT $2");
    let without_tenant = select!("WHERE published_at IS NULL AND tenant_id IS NULL ORDER BY seq, id LIMIT $1");
    let rows = match tenant_id {
        Some(tenant_id) => connection.query(of_tenant, params![tenant_id, limit]).await?,
        None => connection.query(without_tenant, params![limit]).await?,
    };
    events(rows)
}

/// The first unpublished events that were [drained](take_over) from a tenant's outbox, in order.
pub async fn list_drained(connection: &mut Connection<Main>, tenant_id: TenantId, limit: u32) -> Result<Vec<Event>> {
    let sql = select!("WHERE published_at IS NULL AND tenant_id = $1 AND seq < 0 ORDER BY seq, id LIMIT $2");
    events(connection.query(sql, params![tenant_id, limit]).await?)
}

/// The tenants with unpublished events in the main database. `None` stands for events without a tenant.
pub async fn list_unpublished_tenants(connection: &mut Connection<Main>) -> Result<Vec<Option<TenantId>>> {
    let rows = connection.query("SELECT DISTINCT tenant_id FROM outbox WHERE published_at IS NULL", params![]).await?;
    rows.into_iter().map(single).collect()
}

/// The number of unpublished events, and the time of the oldest one.
pub async fn count_unpublished<S: Scope>(connection: &mut Connection<S>) -> Result<(u64, Option<Timestamp>)> {
    let sql = "SELECT COUNT(*), min(occurred_at) FROM outbox WHERE published_at IS NULL";
    let mut row = connection.query_one(sql, params![]).await?;
    Ok((row.take()?, row.take()?))
}

/// The number of unpublished events in the main database and the time of the oldest one, by tenant. `None` stands for events
/// without a tenant.
pub async fn count_unpublished_by_tenant(connection: &mut Connection<Main>) -> Result<Vec<(Option<TenantId>, u64, Option<Timestamp>)>> {
    let sql = "SELECT tenant_id, COUNT(*), min(occurred_at) FROM outbox WHERE published_at IS NULL GROUP BY tenant_id";
    let rows = connection.query(sql, params![]).await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// Marks events as published, by id: events added meanwhile may have any sequence number.
pub fn mark_published<S: Scope>(tx: &mut Tx<S>, events: &[Event], at: Timestamp) {
    for some in events.chunks(MARK_BATCH_SIZE) {
        // Repeats the last id to fill the list, so that the statement is the same for any number of events.
        let ids = some.iter().chain(std::iter::repeat(&some[some.len() - 1])).take(MARK_BATCH_SIZE);
        tx.defer(
            "UPDATE outbox SET published_at = $1 WHERE id IN ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
             $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)",
            std::iter::once(at.into()).chain(ids.map(|event| event.id.into())).collect(),
        );
    }
}

/// Locks an unpublished event until the transaction ends. Returns whether there is one with this id.
pub async fn lock_unpublished(tx: &mut MainTx, id: EventId) -> Result<bool> {
    let sql = "SELECT 1 FROM outbox WHERE id = $1 AND published_at IS NULL FOR UPDATE";
    Ok(tx.query_opt(sql, params![id]).await?.is_some())
}

/// Removes an event, published or not.
pub fn delete(tx: &mut MainTx, id: EventId) {
    tx.defer("DELETE FROM outbox WHERE id = $1", params![id]);
}

/// Purges up to `limit` events that were published before a time. Returns their number.
pub async fn delete_published_before<S: Scope>(tx: &mut Tx<S>, before: Timestamp, limit: u32) -> Result<u64> {
    // Events published before a time have ids from before it, so the primary key narrows the search and no further index is
    // needed.
    let millis = u128::try_from(before.micros() / 1_000).unwrap_or(0);
    let sql = "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE id < $1 AND published_at < $2 ORDER BY id LIMIT $3)";
    tx.execute(sql, params![Uuid::from_u128(millis << 80), before, limit]).await
}

/// Purges the published events of a tenant. Unpublished ones stay, for the relay to publish.
pub async fn delete_published_of(tx: &mut MainTx, tenant_id: TenantId) -> Result<u64> {
    tx.execute("DELETE FROM outbox WHERE tenant_id = $1 AND published_at IS NOT NULL", params![tenant_id]).await
}

/// The parameters `$1` to `$7` of a statement that adds an event.
fn insertion(event: &Event) -> Vec<Value> {
    let Event { id, kind, tenant_id, user_id, at, data, traceparent } = event;
    params![*id, kind.as_str(), *tenant_id, *user_id, *at, data.as_str(), traceparent.as_deref()]
}

fn events(rows: Vec<Row>) -> Result<Vec<Event>> {
    rows.into_iter().map(|mut row| event(&mut row)).collect()
}

/// Reads the columns of an event, in the order of [`Event`]'s fields.
pub(crate) fn event(row: &mut Row) -> Result<Event> {
    Ok(Event {
        id: row.take()?,
        kind: word(row, EventKind::parse)?,
        tenant_id: row.take()?,
        user_id: row.take()?,
        at: row.take()?,
        data: row.take()?,
        traceparent: row.take()?,
    })
}
