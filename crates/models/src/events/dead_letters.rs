//! Dead letters: events that could not be handled or published.

use database::{Connection, Main, MainTx, Result, Row, Statement, params};
use domain::{DeadLetter, EventId, Page, PageRequest};

use crate::{events::outbox::event, page};

/// Selects the columns that [`dead_letter`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT event_id, event_type, tenant_id, user_id, occurred_at, data, traceparent, error, attempts, parked_at FROM dead_letters ",
            $rest
        )
    };
}

/// Dead-letters an event, unless it is dead-lettered already.
pub fn insert(tx: &mut MainTx, letter: &DeadLetter) {
    let DeadLetter { event, error, attempts, dead_lettered_at } = letter;
    tx.defer(
        "INSERT INTO dead_letters
             (event_id, event_type, tenant_id, user_id, occurred_at, data, traceparent, error, attempts, parked_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (event_id) DO NOTHING",
        params![
            event.id,
            event.kind.as_str(),
            event.tenant_id,
            event.user_id,
            event.at,
            event.data.as_str(),
            event.traceparent.as_deref(),
            error.as_str(),
            *attempts,
            *dead_lettered_at
        ],
    );
}

/// Finds the dead letter of this event and locks its row until the transaction ends.
pub async fn lock(tx: &mut MainTx, id: EventId) -> Result<Option<DeadLetter>> {
    tx.query_opt("SELECT event_id FROM dead_letters WHERE event_id = $1 FOR UPDATE", params![id]).await?;
    find(tx, id).await
}

/// The dead letter of this event.
pub async fn find(connection: &mut Connection<Main>, id: EventId) -> Result<Option<DeadLetter>> {
    connection.query_opt(select!("WHERE event_id = $1"), params![id]).await?.map(dead_letter).transpose()
}

/// Dead letters, oldest first.
pub async fn list(connection: &mut Connection<Main>, request: PageRequest) -> Result<Page<DeadLetter>> {
    let count = Statement::new("SELECT COUNT(*) FROM dead_letters", params![]);
    let items = Statement::new(select!("ORDER BY parked_at, event_id LIMIT $1 OFFSET $2"), params![request.per_page(), request.offset()]);
    page(connection, count, items, request, dead_letter).await
}

/// Removes a dead letter.
pub fn delete(tx: &mut MainTx, id: EventId) {
    tx.defer("DELETE FROM dead_letters WHERE event_id = $1", params![id]);
}

fn dead_letter(mut row: Row) -> Result<DeadLetter> {
    Ok(DeadLetter { event: event(&mut row)?, error: row.take()?, attempts: row.take()?, dead_lettered_at: row.take()? })
}
