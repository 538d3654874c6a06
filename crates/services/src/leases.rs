//! Leases: work that only one instance does at a time.

use std::time::Duration;

use domain::Result;
use models::{MainTx, leases};

use crate::{Core, OperatorServices};

impl OperatorServices {
    /// Releases all leases of this instance, after it ended the work under them.
    ///
    /// # Errors
    /// When the main database is down; then the leases expire.
    pub async fn release_leases(&self) -> Result<()> {
        let mut tx = self.core.main().begin().await?;
        leases::release_all(&mut tx, self.core.instance).await?;
        Ok(tx.commit().await?)
    }
}

/// Takes or renews a lease. Returns whether this instance holds it.
pub(crate) async fn hold_lease(core: &Core, name: &str, time: Duration) -> Result<bool> {
    let mut tx = core.main().begin().await?;
    let held = hold_lease_in(core, &mut tx, name, time).await?;
    tx.commit().await?;
    Ok(held)
}

/// Like [`hold_lease`], in a transaction with a change that only the lease's holder may make.
pub(crate) async fn hold_lease_in(core: &Core, tx: &mut MainTx, name: &str, time: Duration) -> Result<bool> {
    let now = core.clock().now();
    Ok(leases::take(tx, name, core.instance, now, now.plus(time)).await?)
}

/// Releases a lease, if this instance holds it.
pub(crate) async fn release_lease(core: &Core, name: &str) -> Result<()> {
    let mut tx = core.main().begin().await?;
    leases::release(&mut tx, name, core.instance);
    Ok(tx.commit().await?)
}
