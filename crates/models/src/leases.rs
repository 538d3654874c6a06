//! Leases: what one instance at a time may do. One that dies loses its leases when they expire.

use database::{MainTx, Result, params};
use domain::Timestamp;
use uuid::Uuid;

/// Takes a lease, or prolongs it. Answers whether `holder` has it now, until `until`; not while another one has it.
pub async fn take(tx: &mut MainTx, name: &str, holder: Uuid, now: Timestamp, until: Timestamp) -> Result<bool> {
    let changed = tx
        .execute(
            "INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $4)
             ON CONFLICT (name) DO UPDATE SET holder = $2, expires_at = $4 WHERE leases.holder = $2 OR leases.expires_at <= $3",
            params![name, holder, now, until],
        )
        .await?;
    Ok(changed == 1)
}

/// Gives up all leases that `holder` has.
pub async fn release_all(tx: &mut MainTx, holder: Uuid) -> Result<()> {
    tx.execute("DELETE FROM leases WHERE holder = $1", params![holder]).await?;
    Ok(())
}

/// Gives a lease up, if `holder` has it.
pub async fn release(tx: &mut MainTx, name: &str, holder: Uuid) -> Result<()> {
    tx.execute("DELETE FROM leases WHERE name = $1 AND holder = $2", params![name, holder]).await?;
    Ok(())
}
