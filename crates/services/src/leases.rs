//! Leases: what one instance at a time does.

use std::time::Duration;

use domain::Result;
use models::{MainTx, leases};

use crate::{Core, OperatorServices};

impl OperatorServices {
    /// Gives up all leases of this instance, which has ended what it did under them.
    ///
    /// # Errors
    /// When the main database is down; then they expire.
    pub async fn release_leases(&self) -> Result<()> {
        let mut tx = self.core.main().begin().await?;
        leases::release_all(&mut tx, self.core.instance).await?;
        Ok(tx.commit().await?)
    }
}

/// Takes a lease for a time, or prolongs it. Answers whether this instance has it.
pub(crate) async fn hold_lease(core: &Core, name: &str, time: Duration) -> Result<bool> {
    let mut tx = core.main().begin().await?;
    let held = hold_lease_in(core, &mut tx, name, time).await?;
    tx.commit().await?;
    Ok(held)
}

/// The same in a transaction with what may be done only by the lease's holder.
pub(crate) async fn hold_lease_in(core: &Core, tx: &mut MainTx, name: &str, time: Duration) -> Result<bool> {
    let now = core.clock().now();
    Ok(leases::take(tx, name, core.instance, now, now.plus(time)).await?)
}

/// Gives a lease up, if this instance has it.
pub(crate) async fn release_lease(core: &Core, name: &str) -> Result<()> {
    let mut tx = core.main().begin().await?;
    leases::release(&mut tx, name, core.instance);
    Ok(tx.commit().await?)
}
