//! The numbered log of changes of access rights, which every instance follows.

use database::{Connection, Main, MainTx, Result, params};
use domain::Timestamp;
use uuid::Uuid;

use crate::single;

/// Records that cached state of `subject` (a session, a user or a tenant) is invalid. Returns the number of the change.
///
/// Numbers follow the commit order, since the counter's row stays locked until the transaction ends. Call this last.
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

/// The changes after this number, in order.
pub async fn after(connection: &mut Connection<Main>, version: i64) -> Result<Vec<(i64, Uuid)>> {
    let rows =
        connection.query("SELECT version, subject FROM access_changes WHERE version > $1 ORDER BY version", params![version]).await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?))).collect()
}

/// Purges changes before this time, which every instance has seen long ago.
pub async fn delete_before(tx: &mut MainTx, before: Timestamp) -> Result<u64> {
    tx.execute("DELETE FROM access_changes WHERE changed_at < $1", params![before]).await
}
