//! Spare databases: made ahead, so that a tenant that is wanted finds its database finished.
//!
//! A spare belongs to a tenant id from the beginning, so its database bears the identity already; whoever makes a tenant takes
//! the id together with the database. A spare is noted before it is made, so a crash leaves none that nobody knows of.

use std::time::Duration;

use domain::{Result, TenantId, failpoint};
use models::{tenant_schema_digest, warm_pool, warm_pool::Spare};

use crate::Services;

/// The name of the lease on making spares: one instance at a time makes them.
const LEASE: &str = "spare databases";
/// How long the lease is held without being prolonged. Making a spare takes far less, and where it does not, nothing is lost.
const LEASE_TIME: Duration = Duration::from_secs(20);

impl Services {
    /// Brings every server's spares to the number that is wanted: removes what a crash left half made and what has another
    /// schema, and makes what is missing. Answers how many were made; none while another instance does it. A server that is
    /// down is logged and left for the next time.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn refill_spares(&self) -> Result<usize> {
        let refilled = self.refill_while_leased().await;
        self.release_lease(LEASE).await?;
        refilled
    }

    async fn refill_while_leased(&self) -> Result<usize> {
        let databases = &self.0.parts.tenant_databases;
        let mut made = 0;
        for server in databases.servers().filter(|server| databases.has_warm_databases(server)) {
            loop {
                if !self.hold_lease(LEASE, LEASE_TIME).await? {
                    return Ok(made);
                }
                match self.step_towards_enough(server).await {
                    Ok(Step::Enough) => break,
                    Ok(Step::Removed) => {}
                    Ok(Step::Made) => made += 1,
                    Err(error) => {
                        tracing::warn!(
                            server,
                            error = &error as &dyn std::error::Error,
                            "spare databases can't be made; it is tried again"
                        );
                        break;
                    }
                }
            }
        }
        Ok(made)
    }

    async fn step_towards_enough(&self, server: &str) -> Result<Step> {
        let digest = tenant_schema_digest();
        let mut spares = warm_pool::list(&mut self.main().read().await?).await?;
        spares.retain(|spare| spare.server == server);
        // With the lease in hand, one that is not ready is nobody's work.
        let useless = spares.iter().find(|spare| !spare.is_ready || spare.schema_digest != digest);
        if let Some(spare) = useless.or_else(|| spares.get(self.settings().spare_databases)) {
            self.remove_spare(spare).await?;
            return Ok(Step::Removed);
        }
        if spares.len() == self.settings().spare_databases {
            return Ok(Step::Enough);
        }
        self.make_spare(server, digest).await?;
        Ok(Step::Made)
    }

    /// Waits until a spare was taken.
    pub async fn spare_taken(&self) {
        self.0.spare_taken.notified().await;
    }

    async fn make_spare(&self, server: &str, schema_digest: String) -> Result<()> {
        let spare = Spare { tenant_id: TenantId::generate(self.clock()), server: server.to_owned(), schema_digest, is_ready: false };
        let mut tx = self.main().begin().await?;
        warm_pool::insert(&mut tx, &spare, self.clock().now()).await?;
        tx.commit().await?;
        failpoint!("spare.noted");
        self.0.parts.tenant_databases.create_warm(server, spare.tenant_id).await?;
        failpoint!("spare.made");
        let mut tx = self.main().begin().await?;
        if !warm_pool::set_ready(&mut tx, spare.tenant_id).await? {
            // It took so long that another instance took the lease and this for abandoned.
            return self.0.parts.tenant_databases.drop_warm(server, spare.tenant_id).await.map_err(Into::into);
        }
        tx.commit().await?;
        failpoint!("spare.ready");
        Ok(())
    }

    async fn remove_spare(&self, spare: &Spare) -> Result<()> {
        // Whoever takes it meanwhile has renamed it already and keeps it, or finds it gone and has a copy made.
        self.0.parts.tenant_databases.drop_warm(&spare.server, spare.tenant_id).await?;
        let mut tx = self.main().begin().await?;
        warm_pool::delete(&mut tx, spare.tenant_id).await?;
        Ok(tx.commit().await?)
    }
}

/// What was done for a server's spares.
enum Step {
    Enough,
    Removed,
    Made,
}
