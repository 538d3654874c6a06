//! The outbox: events, in the database and the transaction of what they tell of.

use database::{Connection, MainTx, Result, Row, Scope, Tx, params};
use domain::{Event, EventKind, TenantId};

use crate::word;

/// Adds an event.
pub fn push<S: Scope>(tx: &mut Tx<S>, event: &Event) {
    tx.defer(
        "INSERT INTO outbox (id, event_type, tenant_id, user_id, occurred_at, data) VALUES ($1, $2, $3, $4, $5, $6)",
        params![event.id, event.kind.as_str(), event.tenant_id, event.user_id, event.at, event.data.as_str()],
    );
}

/// Events that were not published yet, in the order of their ids.
pub async fn list_unpublished<S: Scope>(connection: &mut Connection<S>, limit: u32) -> Result<Vec<Event>> {
    let rows = connection
        .query(
            "SELECT id, event_type, tenant_id, user_id, occurred_at, data FROM outbox
             WHERE published_at IS NULL ORDER BY id LIMIT $1",
            params![limit],
        )
        .await?;
    rows.into_iter().map(event).collect()
}

/// Removes the events of a tenant that were published; others stay, so that they are told.
pub async fn delete_published_of(tx: &mut MainTx, tenant_id: TenantId) -> Result<u64> {
    tx.execute("DELETE FROM outbox WHERE tenant_id = $1 AND published_at IS NOT NULL", params![tenant_id]).await
}

fn event(mut row: Row) -> Result<Event> {
    Ok(Event {
        id: row.take()?,
        kind: word(&mut row, EventKind::parse)?,
        tenant_id: row.take()?,
        user_id: row.take()?,
        at: row.take()?,
        data: row.take()?,
    })
}
