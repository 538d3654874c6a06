//! The source database of a completed move: it is kept until the operator drops it, returns to it, or forgets it.

use domain::{Move, MoveState, Result, Tenant, TenantId, TenantLocation, failpoint};
use models::{moves, tenants};
use serde_json::json;
use tokio::time::sleep;

use super::{
    lease::begin_with_lease,
    location::on,
    outcome::MoveError,
    settlement::{drop_unused, end_earlier_move},
};
use crate::{
    Core, OperatorServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::events::audit_event,
    tenants::fleet::count_contents,
};

impl OperatorServices {
    /// Drops a moved tenant's source database. Returns where it was.
    ///
    /// # Errors
    /// When there is none, the tenant's present database is unreachable, or the source's server is down.
    pub async fn drop_source_database(&self, tenant: &Tenant) -> Result<TenantLocation, MoveError> {
        let (tenant, the_move) = find_kept(&self.core, tenant.id).await?;
        // The source may be dropped only while the present database is readable.
        count_contents(&self.core, &tenant).await?;
        drop_unused(&self.core, &tenant, &the_move, MoveState::Kept, &the_move.from_server).await?;
        Ok(on(&tenant, &the_move.from_server))
    }

    /// Discards a moved tenant's present database with everything written to it since the move, and returns to the source
    /// database. Returns the tenant's location.
    ///
    /// # Errors
    /// When there is no source database, or it is unreachable.
    pub async fn roll_back_move(&self, tenant: &Tenant) -> Result<TenantLocation, MoveError> {
        let (tenant, the_move) = find_kept(&self.core, tenant.id).await?;
        let source = on(&tenant, &the_move.from_server);
        // Migrations since the move have not reached the source.
        let schema_version = self.core.parts.tenant_databases.schema_version_of(&source).await?;
        let mut tx = begin_with_lease(&self.core, tenant.id).await?;
        let is_ours = moves::set_state(&mut tx, &the_move, MoveState::Kept, MoveState::Abandoned).await?
            && tenants::relocate(&mut tx, tenant.id, &the_move.to_server, &the_move.from_server, schema_version).await?;
        if !is_ours {
            return Err(MoveError::UnderWay);
        }
        tenants::set_writes_paused(&mut tx, tenant.id, Some(self.core.clock().now())).await?;
        let data = json!({ "from": the_move.to_server, "to": the_move.from_server });
        tx.emit(&audit_event(&self.core, "tenant.returned", Some(tenant.id), None, data));
        failpoint!("move.returning");
        commit_access_change(&self.core, tx, tenant.id).await?;
        failpoint!("move.returned");
        sleep(NOTICED_AFTER).await;
        match end_earlier_move(&self.core, tenant.id).await {
            Err(MoveError::Failed(problem) | MoveError::LeftBehind { problem, .. }) => {
                Err(MoveError::Unfinished { server: source.server, problem })
            }
            ended => ended.map(|()| source),
        }
    }

    /// Purges the record of a database that a move left on a server, without dropping it. Returns where the database may still
    /// be.
    ///
    /// # Errors
    /// When none is left, the server is reachable, or the main database is down.
    pub async fn forget_source_database(&self, tenant: &Tenant) -> Result<TenantLocation, MoveError> {
        let mut tx = self.core.main().begin().await?;
        let found = moves::find(&mut tx, tenant.id).await?;
        let (the_move, server) = match found {
            Some(the_move) if the_move.state == MoveState::Kept => (the_move.clone(), the_move.from_server),
            Some(the_move) if the_move.state == MoveState::Abandoned && tenant.writes_paused_at.is_none() => {
                (the_move.clone(), the_move.to_server)
            }
            _ => return Err(MoveError::NoSource),
        };
        if self.core.parts.tenant_databases.ping(&server).await.is_ok() {
            return Err(MoveError::NotGone(server));
        }
        moves::delete(&mut tx, &the_move).await?;
        tx.commit().await?;
        Ok(on(tenant, &server))
    }

    /// Whether a tenant's source database is kept, so that a rollback is possible.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn has_source_database(&self, tenant_id: TenantId) -> Result<bool> {
        let found = moves::find(&mut self.core.main().read().await?, tenant_id).await?;
        Ok(found.is_some_and(|found| found.state == MoveState::Kept))
    }
}

async fn find_kept(core: &Core, tenant_id: TenantId) -> Result<(Tenant, Move), MoveError> {
    end_earlier_move(core, tenant_id).await?;
    let mut connection = core.main().read().await?;
    let found = moves::find(&mut connection, tenant_id).await?;
    let tenant = tenants::find(&mut connection, tenant_id).await?;
    let kept = found.filter(|found| found.state == MoveState::Kept);
    tenant.zip(kept).ok_or(MoveError::NoSource)
}
