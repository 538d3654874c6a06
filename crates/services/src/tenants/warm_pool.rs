//! Spare databases: made ahead, so that a tenant that is wanted finds its database finished.
//!
//! A spare belongs to a tenant id from the beginning, so its database bears the identity already; whoever makes a tenant takes
//! the id together with the database. A spare is noted before it is made, so a crash leaves none that nobody knows of.

use std::time::Duration;

use domain::{Result, TenantId, dyn_error, failpoint};
use models::{tenant_schema_digest, warm_pool, warm_pool::Spare};

use crate::{
    Core, OperatorServices,
    leases::{hold_lease, release_lease},
};

/// The name of the lease on making spares: one instance at a time makes them.
const LEASE: &str = "spare databases";
/// How long the lease is held without being prolonged. Making a spare takes far less, and where it does not, nothing is lost.
const LEASE_TIME: Duration = Duration::from_secs(20);

impl OperatorServices {
    /// Brings every server's spares to the number that is wanted: removes what a crash left half made and what has another
    /// schema, and makes what is missing. Answers how many were made; none while another instance does it. A server that is
    /// down is logged and left for the next time.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn refill_warm_pool(&self) -> Result<usize> {
        let refilled = refill_while_leased(&self.core).await;
        release_lease(&self.core, LEASE).await?;
        refilled
    }

    /// Waits until a spare was taken.
    pub async fn warm_database_taken(&self) {
        self.core.warm_database_taken.notified().await;
    }
}

async fn refill_while_leased(core: &Core) -> Result<usize> {
    let databases = &core.parts.tenant_databases;
    let mut made = 0;
    for server in databases.servers().filter(|server| databases.has_warm_databases(server)) {
        loop {
            if !hold_lease(core, LEASE, LEASE_TIME).await? {
                return Ok(made);
            }
            match refill_step(core, server).await {
                Ok(Step::Enough) => break,
                Ok(Step::Removed) => {}
                Ok(Step::Made) => made += 1,
                Err(error) => {
                    tracing::warn!(server, error = dyn_error(&error), "spare databases can't be made; it is tried again");
                    break;
                }
            }
        }
    }
    Ok(made)
}

async fn refill_step(core: &Core, server: &str) -> Result<Step> {
    let digest = tenant_schema_digest();
    let mut spares = warm_pool::list(&mut core.main().read().await?).await?;
    spares.retain(|spare| spare.server == server);
    // With the lease in hand, one that is not ready is nobody's work.
    let useless = spares.iter().find(|spare| !spare.is_ready || spare.schema_digest != digest);
    if let Some(spare) = useless.or_else(|| spares.get(core.settings().spare_databases)) {
        remove_warm(core, spare).await?;
        return Ok(Step::Removed);
    }
    if spares.len() == core.settings().spare_databases {
        return Ok(Step::Enough);
    }
    create_warm(core, server, digest).await?;
    Ok(Step::Made)
}

async fn create_warm(core: &Core, server: &str, schema_digest: String) -> Result<()> {
    let spare = Spare { tenant_id: TenantId::generate(core.clock()), server: server.to_owned(), schema_digest, is_ready: false };
    let mut tx = core.main().begin().await?;
    warm_pool::insert(&mut tx, &spare, core.clock().now()).await?;
    tx.commit().await?;
    failpoint!("spare.noted");
    core.parts.tenant_databases.create_warm(server, spare.tenant_id).await?;
    failpoint!("spare.made");
    let mut tx = core.main().begin().await?;
    if !warm_pool::set_ready(&mut tx, spare.tenant_id).await? {
        // It took so long that another instance took the lease and this for abandoned.
        return core.parts.tenant_databases.drop_warm(server, spare.tenant_id).await.map_err(Into::into);
    }
    tx.commit().await?;
    failpoint!("spare.ready");
    Ok(())
}

async fn remove_warm(core: &Core, spare: &Spare) -> Result<()> {
    // Whoever takes it meanwhile has renamed it already and keeps it, or finds it gone and has a copy made.
    core.parts.tenant_databases.drop_warm(&spare.server, spare.tenant_id).await?;
    let mut tx = core.main().begin().await?;
    warm_pool::delete(&mut tx, spare.tenant_id).await?;
    Ok(tx.commit().await?)
}

/// What was done for a server's spares.
enum Step {
    Enough,
    Removed,
    Made,
}
