//! Leases: what one instance at a time does.

use std::time::Duration;

use domain::Result;
use models::{MainTx, leases};

use crate::Services;

impl Services {
    /// Takes a lease for a time, or prolongs it. Answers whether this instance has it.
    pub(crate) async fn hold_lease(&self, name: &str, time: Duration) -> Result<bool> {
        let mut tx = self.main().begin().await?;
        let held = self.hold_lease_in(&mut tx, name, time).await?;
        tx.commit().await?;
        Ok(held)
    }

    /// The same in a transaction with what may be done only by the lease's holder.
    pub(crate) async fn hold_lease_in(&self, tx: &mut MainTx, name: &str, time: Duration) -> Result<bool> {
        let now = self.clock().now();
        Ok(leases::take(tx, name, self.0.instance, now, now.plus(time)).await?)
    }

    /// Gives up all leases of this instance, which has ended what it did under them.
    ///
    /// # Errors
    /// When the main database is down; then they expire.
    pub async fn release_leases(&self) -> Result<()> {
        let mut tx = self.main().begin().await?;
        leases::release_all(&mut tx, self.0.instance).await?;
        Ok(tx.commit().await?)
    }

    /// Gives a lease up, if this instance has it.
    pub(crate) async fn release_lease(&self, name: &str) -> Result<()> {
        let mut tx = self.main().begin().await?;
        leases::release(&mut tx, name, self.0.instance);
        Ok(tx.commit().await?)
    }
}
