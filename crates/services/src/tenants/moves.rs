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

use std::time::{Duration, Instant};

use domain::{Dependency, Error, Move, MoveState, Provisioning, Result, Tenant, TenantId, TenantLocation, dyn_error, failpoint};
use models::{MainTx, TableSum, Transfer, moves, tenant_schema_version, tenants};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    Core, OperatorServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::events::{EventTx, audit_event, begin_main},
    leases::{hold_lease, hold_lease_in, release_lease},
    tenants::fleet::count_contents,
};

/// How long a move's lease is held without being prolonged, and how often it is prolonged.
const LEASE_TIME: Duration = Duration::from_secs(15);
const PROLONG_INTERVAL: Duration = Duration::from_secs(3);
/// How often to poll for a lease that another process holds only briefly. A process that dies holds it for [`LEASE_TIME`] at
/// most.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Before writes pause, changes are copied until a round has at most this many, but in no more than this many rounds.
const FEW_CHANGES: u64 = 1_000;
const MAX_ROUNDS: usize = 5;

/// A tenant's database after its move.
#[derive(Debug)]
pub struct Moved {
    /// The tenant in its new location.
    pub tenant: Tenant,
    /// The location of its source database, which is kept.
    pub former: TenantLocation,
    /// The compared tables, equal on both sides.
    pub tables: Vec<TableSum>,
    /// How long copying took before writes paused.
    pub copied_in: Duration,
    /// How long writes waited.
    pub paused_for: Duration,
}

/// A step of a move, for its observer.
#[derive(Clone, Copy, Debug)]
pub enum MoveStep {
    /// The target database was created, empty.
    Made,
    /// This many rows were copied in this round.
    Copied(u64),
    /// Writes wait from now on.
    Paused,
    /// This many rows, changed since, were copied, and everything was compared.
    Compared(u64),
    /// The tenant uses its target database; writes resume as soon as every instance applies that.
    Switched,
}

/// Why a tenant's database was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// It is already on the target server.
    #[error("its database is already on server {0}")]
    ThereAlready(String),
    /// The configuration has no such server.
    #[error("no server is named {wanted:?}; known servers: {}", known.join(", "))]
    UnknownServer {
        /// The requested name.
        wanted: String,
        /// The configured names.
        known: Vec<String>,
    },
    /// Another process is moving it.
    #[error("another process is moving its database; if that process has died, `tenantry serve` will undo the move within half a minute")]
    UnderWay,
    /// It was moved before, and its source database must be dropped or returned to first.
    #[error("its source database is still kept on server {0}")]
    SourceKept(String),
    /// There is no source database to drop, to return to or to purge from the records.
    #[error("no source database of it is kept")]
    NoSource,
    /// This program can move only databases of its own schema version; this one is older.
    #[error("its database has schema version {found}: first run `tenantry migrate`, which brings it to {wanted}")]
    Outdated {
        /// The database's version.
        found: i64,
        /// The version of this program.
        wanted: i64,
    },
    /// This program can move only databases of its own schema version; this one is newer.
    #[error("its database has schema version {found}, which is newer than this program's ({wanted}): move it with the newer program")]
    TooNew {
        /// The database's version.
        found: i64,
        /// The version of this program.
        wanted: i64,
    },
    /// It is being created or deleted.
    #[error("it is {}", .0.as_str())]
    NotInUse(Provisioning),
    /// The server has a database of this name that does not belong to the move.
    #[error("server {0} already has a database of this name; if an earlier move left it there, drop it on that server")]
    NameTaken(String),
    /// The source database's server is reachable, so the database can be dropped.
    #[error("server {0} is available, so its database can be dropped")]
    NotGone(String),
    /// Copying the last changes and comparing would take longer than writes may wait.
    #[error("writes would have to wait for longer than {} s", .0.as_secs())]
    PauseTooLong(Duration),
    /// An earlier move left a database on a server that is unavailable.
    #[error("cannot drop what an earlier move left on server {server}: {}", problem.with_causes())]
    LeftBehind {
        /// The server.
        server: String,
        /// Why it can't be dropped.
        problem: Error,
    },
    /// The tenant was moved, but a later step failed.
    #[error("it IS on server {server} now, but a later step failed, which `tenantry serve` will retry: {}", problem.with_causes())]
    Unfinished {
        /// The server.
        server: String,
        /// What went wrong.
        problem: Error,
    },
    /// A dependency is down, or there is a bug.
    #[error("{}", .0.with_causes())]
    Failed(Error),
}

impl From<Error> for MoveError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<models::Error> for MoveError {
    fn from(error: models::Error) -> Self {
        Self::Failed(error.into())
    }
}

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

/// Ends an earlier move, unless the process that began it is alive.
async fn end_earlier_move(core: &Core, tenant_id: TenantId) -> Result<(), MoveError> {
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
    watch(MoveStep::Made);
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
    Ok(Moved { tenant: Tenant { location: to, ..tenant.clone() }, former: from.clone(), tables, copied_in, paused_for })
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

/// Resumes writes in the target database, once every instance uses it. Earlier, one instance could read stale data in the source
/// after another changed it in the target.
async fn resume_writes(core: &Core, the_move: &Move) -> Result<()> {
    sleep(NOTICED_AFTER).await;
    let mut tx = begin_main(core).await?;
    if !moves::set_state(&mut tx, the_move, MoveState::Switched, MoveState::Kept).await? {
        return Ok(());
    }
    tenants::set_writes_paused(&mut tx, the_move.tenant_id, None).await?;
    commit_access_change(core, tx, the_move.tenant_id).await
}

/// Undoes a move. The state changes first, so that no process can switch from then on.
async fn undo_move(core: &Core, tenant: &Tenant, the_move: &Move) -> Result<()> {
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

/// Drops one of a move's two databases, and deletes the move's record. The tenant is locked meanwhile, so it can't have moved
/// there again since the check.
async fn drop_unused(core: &Core, tenant: &Tenant, the_move: &Move, state: MoveState, server: &str) -> Result<()> {
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

/// Drops the target database of a move that another process treated as abandoned and ended.
async fn drop_orphan(core: &Core, tenant: &Tenant, the_move: &Move) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let now = tenants::lock(&mut tx, tenant.id).await?;
    if moves::find(&mut tx, tenant.id).await?.is_none() && now.is_none_or(|now| now.location.server != the_move.to_server) {
        core.parts.tenant_databases.drop_database(&on(tenant, &the_move.to_server)).await?;
    }
    Ok(())
}

async fn settle(core: &Core, tenant_id: TenantId) -> Result<bool> {
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

async fn settle_ours(core: &Core, tenant_id: TenantId) -> Result<()> {
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

/// Whether a tenant's database is being moved, or its source database is kept.
pub(crate) async fn has_move(core: &Core, tenant_id: TenantId) -> Result<bool> {
    Ok(moves::find(&mut core.main().read().await?, tenant_id).await?.is_some())
}

async fn find_kept(core: &Core, tenant_id: TenantId) -> Result<(Tenant, Move), MoveError> {
    end_earlier_move(core, tenant_id).await?;
    let mut connection = core.main().read().await?;
    let found = moves::find(&mut connection, tenant_id).await?;
    let tenant = tenants::find(&mut connection, tenant_id).await?;
    let kept = found.filter(|found| found.state == MoveState::Kept);
    tenant.zip(kept).ok_or(MoveError::NoSource)
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

/// Begins a transaction in which this instance takes a tenant's lease. Waits while another process holds it: a process that
/// resumes interrupted moves holds it only briefly if the move has ended.
async fn begin_with_lease(core: &Core, tenant_id: TenantId) -> Result<EventTx<models::Main>, MoveError> {
    let deadline = Instant::now() + LEASE_TIME + PROLONG_INTERVAL;
    loop {
        let mut tx = begin_main(core).await?;
        if hold_move(core, &mut tx, tenant_id).await? {
            return Ok(tx);
        }
        drop(tx);
        if Instant::now() > deadline {
            return Err(MoveError::UnderWay);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Takes or prolongs a move's lease.
async fn hold_move(core: &Core, tx: &mut MainTx, tenant_id: TenantId) -> Result<bool> {
    hold_lease_in(core, tx, &lease(tenant_id), LEASE_TIME).await
}

/// Prolongs a move's lease, unless another process treated the move as abandoned.
async fn renew_if_ours(core: &Core, the_move: &Move) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let found = moves::find(&mut tx, the_move.tenant_id).await?;
    let is_ours = found.is_some_and(|found| found.began_at == the_move.began_at && found.state != MoveState::Abandoned);
    if !is_ours || !hold_move(core, &mut tx, the_move.tenant_id).await? {
        return Err(lost_lease());
    }
    Ok(tx.commit().await?)
}

/// Prolongs a lease, of a move or of ending one, until that fails.
async fn keep_lease(core: &Core, tenant_id: TenantId, the_move: Option<&Move>) -> Error {
    let mut held_until = Instant::now() + LEASE_TIME;
    loop {
        sleep(PROLONG_INTERVAL).await;
        let asked_at = Instant::now();
        let prolonged = match the_move {
            Some(the_move) => renew_if_ours(core, the_move).await,
            None => match hold_lease(core, &lease(tenant_id), LEASE_TIME).await {
                Ok(false) => Err(lost_lease()),
                held => held.map(drop),
            },
        };
        match prolonged {
            Ok(()) => held_until = asked_at + LEASE_TIME,
            Err(error @ Error::Unavailable { dependency: Dependency::Database, .. }) if Instant::now() < held_until => {
                tracing::warn!(error = dyn_error(&error), "could not prolong a move's lease; retrying");
            }
            Err(error) => return error,
        }
    }
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

/// The name of the lease on working on a tenant's move.
fn lease(tenant_id: TenantId) -> String {
    format!("move of {tenant_id}")
}

fn lost_lease() -> Error {
    let source = "another process treated the move as abandoned and ended it; are the hosts' clocks seconds apart?".into();
    Error::Unavailable { dependency: Dependency::TenantDatabase, source }
}

/// A tenant's location on another server.
fn on(tenant: &Tenant, server: &str) -> TenantLocation {
    TenantLocation { server: server.to_owned(), ..tenant.location.clone() }
}
