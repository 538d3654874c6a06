//! Moves tenant databases to other servers, also between engines.
//!
//! The target database is created and filled while the source stays in use. Then writes pause. Once every instance applies the
//! pause, the source is locked, the last changes are copied, and the two databases are compared. A write-block in the source
//! refuses any later write there. One transaction of the main database relocates the tenant; writes resume once every instance
//! applies that. No request is refused meanwhile: reads continue, writes wait.
//!
//! A lease shows whether a process still works on a move. A process that finds it expired ends the move, forward or back
//! depending on its state. A process that was merely slow may continue at any time. So the move's state refuses its updates, a
//! lock guards the source that it would write-block, and a database that it would drop is checked again first.

mod lease;
mod location;
mod outcome;
mod settlement;
mod source;

use std::time::{Duration, Instant};

use domain::{Move, MoveState, Provisioning, Result, Tenant, TenantId, dyn_error, failpoint};
use models::{TableSum, Transfer, moves, tenant_schema_version, tenants};
use serde_json::json;
use tokio::time::{sleep, timeout};

pub(crate) use self::location::{drop_databases_of, has_move};
pub use self::outcome::{MoveError, MoveStep, Moved};
use self::{
    lease::{begin_with_lease, hold_move, keep_lease, lost_lease, renew_if_ours},
    location::on,
    settlement::{end_earlier_move, resume_writes, settle},
};
use crate::{
    Core, OperatorServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::events::{audit_event, begin_main},
};

/// Before writes pause, changes are copied until a round has at most this many, but in no more than this many rounds.
const FEW_CHANGES: u64 = 1_000;
const MAX_ROUNDS: usize = 5;

impl OperatorServices {
    /// Moves a tenant's database to another server. Writes wait for `max_pause` at most, plus the time until every instance
    /// applies the pause. When this fails, the tenant stays where it was, unless the error says otherwise; what the move began is
    /// undone by this call or, as soon as possible, by [`OperatorServices::resume_moves`].
    ///
    /// # Errors
    /// When it can't be moved, or a database is down.
    pub async fn move_tenant(
        &self,
        tenant_id: TenantId,
        to_server: &str,
        max_pause: Duration,
        watch: &(dyn Fn(MoveStep) + Sync),
    ) -> Result<Moved, MoveError> {
        end_earlier_move(&self.core, tenant_id).await?;
        let (tenant, the_move) = begin_move(&self.core, tenant_id, to_server).await?;
        failpoint!("move.begun");
        let moved = tokio::select! {
            moved = carry_out(&self.core, &tenant, &the_move, max_pause, watch) => moved,
            lost_lease = keep_lease(&self.core, tenant_id, Some(&the_move)) => Err(lost_lease.into()),
        };
        let settled = settle(&self.core, tenant_id).await;
        if let Err(error) = &settled {
            tracing::warn!(%tenant_id, error = dyn_error(error), "could not end the move; `tenantry serve` will end it");
        }
        let problem = match moved {
            Err(MoveError::Failed(problem)) => problem,
            settled => return settled,
        };
        let found = tenants::find(&mut self.core.main().read().await?, tenant_id).await?;
        if found.is_some_and(|tenant| tenant.location.server == to_server) {
            return Err(MoveError::Unfinished { server: to_server.to_owned(), problem });
        }
        if let Err(error) = drop_orphan(&self.core, &tenant, &the_move).await {
            tracing::warn!(%tenant_id, error = dyn_error(&error), "the target database may be left on server {to_server}");
        }
        Err(problem.into())
    }

    /// Ends a move that no other process works on, forward or back depending on its progress. Returns whether none is in progress
    /// now.
    ///
    /// # Errors
    /// When a database that it needs is down.
    pub async fn settle_move(&self, tenant_id: TenantId) -> Result<bool> {
        settle(&self.core, tenant_id).await
    }

    /// Ends the moves that a crash interrupted. Returns how many.
    ///
    /// # Errors
    /// When the main database is down. A move that can't be ended is logged and retried the next time.
    pub async fn resume_moves(&self) -> Result<usize> {
        let moves = moves::list(&mut self.core.main().read().await?).await?;
        let mut settled = 0;
        for Move { tenant_id, .. } in moves.into_iter().filter(|the_move| the_move.state != MoveState::Kept) {
            match settle(&self.core, tenant_id).await {
                Ok(is_settled) => settled += usize::from(is_settled),
                Err(error) => {
                    tracing::warn!(%tenant_id, error = dyn_error(&error), "could not end an interrupted move");
                }
            }
        }
        Ok(settled)
    }
}

/// Records a move and takes its lease.
async fn begin_move(core: &Core, tenant_id: TenantId, to_server: &str) -> Result<(Tenant, Move), MoveError> {
    let databases = &core.parts.tenant_databases;
    let known: Vec<_> = databases.servers().map(str::to_owned).collect();
    if !known.iter().any(|server| server == to_server) {
        return Err(MoveError::UnknownServer { wanted: to_server.to_owned(), known });
    }
    // Checked before the move is recorded: ending a recorded move drops any database in the target location.
    let mut connection = core.main().read().await?;
    let tenant = may_move(tenants::find(&mut connection, tenant_id).await?, to_server)?;
    if let Some(kept) = moves::find(&mut connection, tenant_id).await? {
        return Err(MoveError::SourceKept(kept.from_server));
    }
    drop(connection);
    if databases.exists(&on(&tenant, to_server)).await? {
        return Err(MoveError::NameTaken(to_server.to_owned()));
    }
    let mut tx = begin_with_lease(core, tenant_id).await?;
    let tenant = may_move(tenants::lock(&mut tx, tenant_id).await?, to_server)?;
    let the_move = Move {
        tenant_id,
        from_server: tenant.location.server.clone(),
        to_server: to_server.to_owned(),
        state: MoveState::Copying,
        began_at: core.clock().now(),
    };
    if moves::find(&mut tx, tenant_id).await?.is_some() {
        return Err(MoveError::UnderWay);
    }
    moves::insert(&mut tx, &the_move).await?;
    tx.commit().await?;
    Ok((tenant, the_move))
}

/// Carries out a recorded move, from creating the target database to the last step.
async fn carry_out(
    core: &Core,
    tenant: &Tenant,
    the_move: &Move,
    max_pause: Duration,
    watch: &(dyn Fn(MoveStep) + Sync),
) -> Result<Moved, MoveError> {
    let databases = &core.parts.tenant_databases;
    let (from, to) = (&tenant.location, on(tenant, &the_move.to_server));
    databases.create(&to).await?;
    databases.finish(&to).await?;
    failpoint!("move.made");
    watch(MoveStep::Created);
    let began = Instant::now();
    let mut transfer = databases.transfer(from, &to).await?;
    for _ in 0..MAX_ROUNDS {
        let round = Instant::now();
        if transfer.copy(&|rows| watch(MoveStep::Copied(rows))).await? <= FEW_CHANGES {
            if round.elapsed() > max_pause {
                return Err(MoveError::PauseTooLong(max_pause));
            }
            break;
        }
    }
    let copied_in = began.elapsed();
    failpoint!("move.copied");

    let began = Instant::now();
    pause_writes(core, the_move).await?;
    watch(MoveStep::Paused);
    sleep(NOTICED_AFTER).await;
    failpoint!("move.noticed");
    let completed = timeout(max_pause, complete_copy(core, transfer, the_move, max_pause, watch)).await;
    let tables = completed.map_err(|_| MoveError::PauseTooLong(max_pause))??;
    failpoint!("move.sealed");
    switch(core, the_move).await?;
    failpoint!("move.switched");
    watch(MoveStep::Switched);
    resume_writes(core, the_move).await?;
    let paused_for = began.elapsed();
    failpoint!("move.resumed");
    Ok(Moved { tenant: Tenant { location: to, ..tenant.clone() }, source: from.clone(), tables, copied_in, paused_for })
}

/// Copies the last changes, compares, and write-blocks the source.
async fn complete_copy(
    core: &Core,
    mut transfer: Transfer,
    the_move: &Move,
    max_pause: Duration,
    watch: &(dyn Fn(MoveStep) + Sync),
) -> Result<Vec<TableSum>> {
    transfer.lock_source(max_pause).await?;
    // The source is locked: a process that treats this move as abandoned from now on waits for the lock before it checks for the
    // write-block, and so finds it.
    renew_if_ours(core, the_move).await?;
    let (changed, tables) = transfer.complete().await?;
    failpoint!("move.compared");
    watch(MoveStep::Compared(changed));
    transfer.write_block().await?;
    Ok(tables)
}

async fn pause_writes(core: &Core, the_move: &Move) -> Result<()> {
    let mut tx = begin_main(core).await?;
    if !moves::set_state(&mut tx, the_move, MoveState::Copying, MoveState::Paused).await? {
        return Err(lost_lease());
    }
    tenants::set_writes_paused(&mut tx, the_move.tenant_id, Some(core.clock().now())).await?;
    commit_access_change(core, tx, the_move.tenant_id).await
}

async fn switch(core: &Core, the_move: &Move) -> Result<()> {
    let Move { tenant_id, from_server, to_server, .. } = the_move;
    let mut tx = begin_main(core).await?;
    let is_ours = hold_move(core, &mut tx, *tenant_id).await?
        && moves::set_state(&mut tx, the_move, MoveState::Paused, MoveState::Switched).await?
        && tenants::relocate(&mut tx, *tenant_id, from_server, to_server, tenant_schema_version()).await?;
    if !is_ours {
        return Err(lost_lease());
    }
    let data = json!({ "from": from_server, "to": to_server });
    tx.emit(&audit_event(core, "tenant.moved", Some(*tenant_id), None, data));
    failpoint!("move.switching");
    commit_access_change(core, tx, *tenant_id).await
}

/// Drops the target database of a move that another process treated as abandoned and ended.
async fn drop_orphan(core: &Core, tenant: &Tenant, the_move: &Move) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let now = tenants::lock(&mut tx, tenant.id).await?;
    if moves::find(&mut tx, tenant.id).await?.is_none() && now.is_none_or(|now| now.location.server != the_move.to_server) {
        core.parts.tenant_databases.drop_database(&on(tenant, &the_move.to_server)).await?;
    }
    Ok(())
}

/// Fails unless the tenant exists, is in use, is on another server, and has this program's schema.
fn may_move(tenant: Option<Tenant>, to_server: &str) -> Result<Tenant, MoveError> {
    let tenant = tenant.ok_or(MoveError::NotInUse(Provisioning::Deleting))?;
    let (found, wanted) = (tenant.schema_version, tenant_schema_version());
    match tenant.provisioning {
        Provisioning::Active if tenant.location.server == to_server => Err(MoveError::ThereAlready(to_server.to_owned())),
        Provisioning::Active if found < wanted => Err(MoveError::Outdated { found, wanted }),
        Provisioning::Active if found > wanted => Err(MoveError::TooNew { found, wanted }),
        Provisioning::Active => Ok(tenant),
        other => Err(MoveError::NotInUse(other)),
    }
}
