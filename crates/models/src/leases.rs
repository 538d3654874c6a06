//! Leases: what one instance at a time may do. One that dies loses its leases when they expire.

use database::{MainTx, Result, Statement, params};
use domain::Timestamp;
use uuid::Uuid;

const TAKE: &str = "INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $4)
     ON CONFLICT (name) DO UPDATE SET holder = $2, expires_at = $4 WHERE leases.holder = $2 OR leases.expires_at <= $3";

/// Takes a lease, or prolongs it. Answers whether `holder` has it now, until `until`; not while another one has it.
pub async fn take(tx: &mut MainTx, name: &str, holder: Uuid, now: Timestamp, until: Timestamp) -> Result<bool> {
    Ok(tx.execute(TAKE, params![name, holder, now, until]).await? == 1)
}

/// As [`take`], of several leases in one trip. Answers for each whether `holder` has it.
pub async fn take_all(tx: &mut MainTx, names: &[String], holder: Uuid, now: Timestamp, until: Timestamp) -> Result<Vec<bool>> {
    let take = |name: &String| Statement::new(TAKE, params![name.as_str(), holder, now, until]);
    let outcomes = tx.batch(names.iter().map(take).collect()).await?;
    Ok(outcomes.into_iter().map(|outcome| outcome.affected == 1).collect())
}

/// Gives up all leases that `holder` has.
pub async fn release_all(tx: &mut MainTx, holder: Uuid) -> Result<()> {
    tx.execute("DELETE FROM leases WHERE holder = $1", params![holder]).await?;
    Ok(())
}

/// Gives a lease up, if `holder` has it.
pub fn release(tx: &mut MainTx, name: &str, holder: Uuid) {
    tx.defer("DELETE FROM leases WHERE name = $1 AND holder = $2", params![name, holder]);
}
