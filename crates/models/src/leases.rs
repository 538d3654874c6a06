//! Leases: each reserves a task for one instance at a time. The leases of an instance that dies expire.

use database::{MainTx, Result, Statement, params};
use domain::Timestamp;
use uuid::Uuid;

const TAKE: &str = "INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $4)
     ON CONFLICT (name) DO UPDATE SET holder = $2, expires_at = $4 WHERE leases.holder = $2 OR leases.expires_at <= $3";

/// Acquires or renews a lease until `until`. Returns whether `holder` has it; false while another holder's lease is valid.
pub async fn take(tx: &mut MainTx, name: &str, holder: Uuid, now: Timestamp, until: Timestamp) -> Result<bool> {
    Ok(tx.execute(TAKE, params![name, holder, now, until]).await? == 1)
}

/// Acquires or renews several leases in one round trip. Returns for each what [`take`] returns.
pub async fn take_all(tx: &mut MainTx, names: &[String], holder: Uuid, now: Timestamp, until: Timestamp) -> Result<Vec<bool>> {
    let take = |name: &String| Statement::new(TAKE, params![name.as_str(), holder, now, until]);
    let outcomes = tx.batch(names.iter().map(take).collect()).await?;
    Ok(outcomes.into_iter().map(|outcome| outcome.affected == 1).collect())
}

/// Releases all leases of `holder`.
pub async fn release_all(tx: &mut MainTx, holder: Uuid) -> Result<()> {
    tx.execute("DELETE FROM leases WHERE holder = $1", params![holder]).await?;
    Ok(())
}

/// Releases a lease if `holder` has it.
pub fn release(tx: &mut MainTx, name: &str, holder: Uuid) {
    tx.defer("DELETE FROM leases WHERE name = $1 AND holder = $2", params![name, holder]);
}
