//! The locations of a moving tenant's databases.

use domain::{Move, Result, Tenant, TenantId, TenantLocation};
use models::{moves, tenants};

use crate::Core;

/// Whether a tenant's database is being moved, or its source database is kept.
pub(crate) async fn has_move(core: &Core, tenant_id: TenantId) -> Result<bool> {
    Ok(moves::find(&mut core.main().read().await?, tenant_id).await?.is_some())
}

/// Drops a tenant's database, and the databases that moves left or began on other servers.
pub(crate) async fn drop_databases_of(core: &Core, tenant: &Tenant) -> Result<()> {
    let databases = &core.parts.tenant_databases;
    let mut connection = core.main().read().await?;
    let (found, now) = (moves::find(&mut connection, tenant.id).await?, tenants::find(&mut connection, tenant.id).await?);
    drop(connection);
    // It may have moved since it was read.
    databases.drop_database(&now.as_ref().unwrap_or(tenant).location).await?;
    if let Some(Move { from_server, to_server, .. }) = found {
        databases.drop_database(&on(tenant, &from_server)).await?;
        databases.drop_database(&on(tenant, &to_server)).await?;
    }
    Ok(())
}

/// A tenant's location on another server.
pub(super) fn on(tenant: &Tenant, server: &str) -> TenantLocation {
    TenantLocation { server: server.to_owned(), ..tenant.location.clone() }
}
