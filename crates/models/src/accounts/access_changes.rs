//! The numbered log of whatever changes what somebody may do, which every instance follows.

use database::{Connection, Main, MainTx, Result, params};
use domain::Timestamp;
use uuid::Uuid;

use crate::single;

/// Notes that what is known of `subject` (a session, a user or a tenant) no longer holds, and answers the change's number.
///
/// Numbers follow the order of the commits, since the counter's row stays locked until the end of the transaction: call it
/// last.
pub async fn push(tx: &mut MainTx, subject: impl Into<Uuid>, now: Timestamp) -> Result<i64> {
    let row = tx.query_one("UPDATE access_version SET version = version + 1 WHERE id = 1 RETURNING version", params![]).await?;
    let version: i64 = single(row)?;
    tx.execute("INSERT INTO access_changes (version, subject, changed_at) VALUES ($1, $2, $3)", params![version, subject.into(), now])
        .await?;
    Ok(version)
}

/// The number of the last change.
pub async fn last_version(connection: &mut Connection<Main>) -> Result<i64> {
    single(connection.query_one("SELECT version FROM access_version WHERE id = 1", params![]).await?)
}

/// The changes after a number, in order.
pub async fn after(connection: &mut Connection<Main>, version: i64) -> Result<Vec<(i64, Uuid)>> {
    let rows =
        connection.query("SELECT version, subject FROM access_changes WHERE version > $1 ORDER BY version", params![version]).await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?))).collect()
}

/// Removes changes that every instance has long seen.
pub async fn delete_before(tx: &mut MainTx, before: Timestamp) -> Result<u64> {
    tx.execute("DELETE FROM access_changes WHERE changed_at < $1", params![before]).await
}
