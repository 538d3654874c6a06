//! Handled events, recorded in the database and the transaction of their effect.

use database::{Result, Scope, Statement, Tx, params};
use domain::{EventId, Timestamp};

/// Records events as handled. Returns false for each that was handled before. Waits for concurrent transactions that record the
/// same events.
pub async fn insert_all<S: Scope>(tx: &mut Tx<S>, ids: impl Iterator<Item = EventId>, now: Timestamp) -> Result<Vec<bool>> {
    let sql = "INSERT INTO handled_events (event_id, handled_at) VALUES ($1, $2) ON CONFLICT (event_id) DO NOTHING";
    let outcomes = tx.batch(ids.map(|id| Statement::new(sql, params![id, now])).collect()).await?;
    Ok(outcomes.into_iter().map(|outcome| outcome.affected == 1).collect())
}

/// Purges up to `limit` records from before a time. Returns their number.
pub async fn delete_before<S: Scope>(tx: &mut Tx<S>, before: Timestamp, limit: u32) -> Result<u64> {
    let sql = "DELETE FROM handled_events WHERE event_id IN
               (SELECT event_id FROM handled_events WHERE handled_at < $1 ORDER BY handled_at LIMIT $2)";
    tx.execute(sql, params![before, limit]).await
}
