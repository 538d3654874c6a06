//! The end of a move, forward or back depending on its state.

use domain::{Move, MoveState, Result, Tenant, TenantId, failpoint};
use models::{moves, tenants};
use tokio::time::sleep;

use super::{
    lease::{LEASE_TIME, keep_lease, lease, lost_lease},
    location::on,
    outcome::MoveError,
};
use crate::{
    Core,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::events::begin_main,
    leases::{hold_lease, release_lease},
};

/// Ends an earlier move, unless the process that began it is alive.
pub(super) async fn end_earlier_move(core: &Core, tenant_id: TenantId) -> Result<(), MoveError> {
    let found = moves::find(&mut core.main().read().await?, tenant_id).await?;
    if found.is_none_or(|found| found.state == MoveState::Kept) {
        return Ok(());
    }
    match settle(core, tenant_id).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(MoveError::UnderWay),
        Err(problem) => match moves::find(&mut core.main().read().await?, tenant_id).await? {
            Some(Move { to_server: server, .. }) => Err(MoveError::LeftBehind { server, problem }),
            None => Err(problem.into()),
        },
    }
}

pub(super) async fn settle(core: &Core, tenant_id: TenantId) -> Result<bool> {
    if !hold_lease(core, &lease(tenant_id), LEASE_TIME).await? {
        return Ok(false);
    }
    let settled = tokio::select! {
        settled = settle_ours(core, tenant_id) => settled,
        lost_lease = keep_lease(core, tenant_id, None) => Err(lost_lease),
    };
    release_lease(core, &lease(tenant_id)).await?;
    settled.map(|()| true)
}

pub(super) async fn settle_ours(core: &Core, tenant_id: TenantId) -> Result<()> {
    let mut connection = core.main().read().await?;
    // The move first: a switch between the two reads would otherwise combine the old location with the move's new state.
    let found = moves::find(&mut connection, tenant_id).await?;
    let tenant = tenants::find(&mut connection, tenant_id).await?;
    drop(connection);
    match (tenant, found) {
        (Some(tenant), Some(the_move)) => match the_move.state {
            MoveState::Copying | MoveState::Paused | MoveState::Abandoned => undo_move(core, &tenant, &the_move).await,
            MoveState::Switched => resume_writes(core, &the_move).await,
            MoveState::Kept => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Undoes a move. The state changes first, so that no process can switch from then on.
pub(super) async fn undo_move(core: &Core, tenant: &Tenant, the_move: &Move) -> Result<()> {
    if the_move.state != MoveState::Abandoned {
        let mut tx = begin_main(core).await?;
        if !moves::set_state(&mut tx, the_move, the_move.state, MoveState::Abandoned).await? {
            return Err(lost_lease());
        }
        tx.commit().await?;
        failpoint!("move.abandoned");
    }
    if tenant.writes_paused_at.is_some() {
        core.parts.tenant_databases.lift_write_block(&on(tenant, &the_move.from_server)).await?;
        failpoint!("move.unsealed");
        let mut tx = begin_main(core).await?;
        tenants::set_writes_paused(&mut tx, tenant.id, None).await?;
        commit_access_change(core, tx, tenant.id).await?;
    }
    drop_unused(core, tenant, the_move, MoveState::Abandoned, &the_move.to_server).await
}

/// Resumes writes in the target database, once every instance uses it. Earlier, one instance could read stale data in the source
/// after another changed it in the target.
pub(super) async fn resume_writes(core: &Core, the_move: &Move) -> Result<()> {
    sleep(NOTICED_AFTER).await;
    let mut tx = begin_main(core).await?;
    if !moves::set_state(&mut tx, the_move, MoveState::Switched, MoveState::Kept).await? {
        return Ok(());
    }
    tenants::set_writes_paused(&mut tx, the_move.tenant_id, None).await?;
    commit_access_change(core, tx, the_move.tenant_id).await
}

/// Drops one of a move's two databases, and deletes the move's record. The tenant is locked meanwhile, so it can't have moved
/// there again since the check.
pub(super) async fn drop_unused(core: &Core, tenant: &Tenant, the_move: &Move, state: MoveState, server: &str) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let now = tenants::lock(&mut tx, tenant.id).await?;
    let is_same = moves::find(&mut tx, tenant.id).await?.is_some_and(|found| found == Move { state, ..the_move.clone() });
    if !is_same || now.is_none_or(|now| now.location.server == server) {
        return Err(lost_lease());
    }
    core.parts.tenant_databases.drop_database(&on(tenant, server)).await?;
    failpoint!("move.dropped");
    moves::delete(&mut tx, the_move).await?;
    Ok(tx.commit().await?)
}
