//! The warm pool: databases created ahead, so that a new tenant gets a finished one.
//!
//! A warm database has a tenant id from the beginning, so it bears that identity already; a new tenant takes the id together with
//! the database. It is recorded before it is created, so a crash leaves no unrecorded database.

use std::time::Duration;

use domain::{Result, TenantId, dyn_error, failpoint};
use models::{tenant_schema_digest, warm_pool, warm_pool::WarmDatabase};

use crate::{
    Core, OperatorServices,
    leases::{hold_lease, release_lease},
};

/// The name of the lease on refilling the warm pool: one instance at a time does it.
const LEASE: &str = "spare databases";
/// How long the lease is held without being renewed. Creating a database takes far less; if it takes longer, nothing is lost.
const LEASE_TIME: Duration = Duration::from_secs(20);

impl OperatorServices {
    /// Refills every server's warm pool to the configured size: removes databases that a crash left unfinished or that have
    /// another schema, and creates missing ones. Returns how many it created; none while another instance does it. A server that
    /// is down is logged and retried the next time.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn refill_warm_pool(&self) -> Result<usize> {
        let refilled = refill_while_leased(&self.core).await;
        release_lease(&self.core, LEASE).await?;
        refilled
    }

    /// Waits until a warm database is taken.
    pub async fn warm_database_taken(&self) {
        self.core.warm_database_taken.notified().await;
    }
}

async fn refill_while_leased(core: &Core) -> Result<usize> {
    let databases = &core.parts.tenant_databases;
    let mut created = 0;
    for server in databases.servers().filter(|server| databases.has_warm_databases(server)) {
        loop {
            if !hold_lease(core, LEASE, LEASE_TIME).await? {
                return Ok(created);
            }
            match refill_step(core, server).await {
                Ok(Step::Enough) => break,
                Ok(Step::Removed) => {}
                Ok(Step::Created) => created += 1,
                Err(error) => {
                    tracing::warn!(server, error = dyn_error(&error), "could not create warm databases; retrying");
                    break;
                }
            }
        }
    }
    Ok(created)
}

async fn refill_step(core: &Core, server: &str) -> Result<Step> {
    let digest = tenant_schema_digest();
    let mut warm_databases = warm_pool::list(&mut core.main().read().await?).await?;
    warm_databases.retain(|warm| warm.server == server);
    // This instance holds the lease, so no other process is creating one that is not ready.
    let useless = warm_databases.iter().find(|warm| !warm.is_ready || warm.schema_digest != digest);
    if let Some(warm) = useless.or_else(|| warm_databases.get(core.settings().warm_databases)) {
        remove_warm(core, warm).await?;
        return Ok(Step::Removed);
    }
    if warm_databases.len() == core.settings().warm_databases {
        return Ok(Step::Enough);
    }
    create_warm(core, server, digest).await?;
    Ok(Step::Created)
}

async fn create_warm(core: &Core, server: &str, schema_digest: String) -> Result<()> {
    let warm = WarmDatabase { tenant_id: TenantId::generate(core.clock()), server: server.to_owned(), schema_digest, is_ready: false };
    let mut tx = core.main().begin().await?;
    warm_pool::insert(&mut tx, &warm, core.clock().now()).await?;
    tx.commit().await?;
    failpoint!("spare.noted");
    core.parts.tenant_databases.create_warm(server, warm.tenant_id).await?;
    failpoint!("spare.made");
    let mut tx = core.main().begin().await?;
    if !warm_pool::set_ready(&mut tx, warm.tenant_id).await? {
        // Creation took so long that another instance took the lease and treated this database as abandoned.
        return core.parts.tenant_databases.drop_warm(server, warm.tenant_id).await.map_err(Into::into);
    }
    tx.commit().await?;
    failpoint!("spare.ready");
    Ok(())
}

async fn remove_warm(core: &Core, warm: &WarmDatabase) -> Result<()> {
    // A tenant that takes it meanwhile has renamed it already and keeps it, or finds it gone and gets a new one created.
    core.parts.tenant_databases.drop_warm(&warm.server, warm.tenant_id).await?;
    let mut tx = core.main().begin().await?;
    warm_pool::delete(&mut tx, warm.tenant_id).await?;
    Ok(tx.commit().await?)
}

/// What a step did to a server's warm pool.
enum Step {
    Enough,
    Removed,
    Created,
}
