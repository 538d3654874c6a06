//! Moves of tenants' databases to other servers, also from one engine to the other.
//!
//! The new database is made and filled while work in the old one goes on. Then writes pause: once every instance knows it,
//! the old database is closed, the last changes are copied, and the two are compared. A seal in the old one refuses whoever
//! would still write there. One transaction of the main database moves the tenant; writes go on when every instance knows
//! that. Nobody is refused meanwhile: reads go on, writes wait.
//!
//! A lease tells whether somebody still works on a move. Whoever finds it expired ends the move, back or forth by its state.
//! Somebody who was only slow may wake up at any time: what he notes is refused by the state, what he would seal is locked,
//! and what he would drop is looked at again first.

use std::time::{Duration, Instant};

use domain::{Dependency, Error, Move, MoveState, Provisioning, Result, Tenant, TenantId, TenantPlace, dyn_error, failpoint};
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
/// How often a lease is asked for that somebody has only in passing; whoever died with it has it no longer than [`LEASE_TIME`].
const GLANCE: Duration = Duration::from_millis(50);
/// Before writes pause, changes are copied until so few came meanwhile, but not more often than this.
const FEW_CHANGES: u64 = 1_000;
const ROUNDS: usize = 5;

/// A tenant's database after its move.
#[derive(Debug)]
pub struct Moved {
    /// The tenant in its new place.
    pub tenant: Tenant,
    /// Where its former database is kept.
    pub former: TenantPlace,
    /// What was compared: equal on both sides.
    pub tables: Vec<TableSum>,
    /// How long copying took while work went on.
    pub copied_in: Duration,
    /// How long writes waited.
    pub paused_for: Duration,
}

/// Something that happened while a tenant's database was moved.
#[derive(Clone, Copy, Debug)]
pub enum MoveStep {
    /// The new database is there, empty.
    Made,
    /// So many rows are copied, in this round.
    Copied(u64),
    /// Writes wait from now on.
    Paused,
    /// So many rows changed since were copied, and everything was compared.
    Compared(u64),
    /// The tenant is in its new database; writes go on as soon as every instance knows.
    Switched,
}

/// Why a tenant's database was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// It is where it is to go.
    #[error("its database is on server {0} already")]
    ThereAlready(String),
    /// The configuration names no such server.
    #[error("no server is named {wanted:?}; known servers: {}", known.join(", "))]
    UnknownServer {
        /// The name that was asked for.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Another process works on it.
    #[error("another process is moving its database (or died within the last half minute: then `tenantry serve` takes that back)")]
    UnderWay,
    /// It was moved before, and what it left must go first.
    #[error("its former database is still kept on server {0}")]
    FormerKept(String),
    /// There is nothing to drop, to return to or to forget.
    #[error("no former database of it is kept")]
    NoFormer,
    /// The program knows the tables of its own schema only.
    #[error("its database has schema version {found}: first run `tenantry migrate`, which brings it to {wanted}")]
    Outdated {
        /// The version that it has.
        found: i64,
        /// The version that it needs.
        wanted: i64,
    },
    /// The program knows the tables of its own schema only.
    #[error("its database has schema version {found}, of a newer program than this one ({wanted}): move it with that")]
    TooNew {
        /// The version that it has.
        found: i64,
        /// The version that this program knows.
        wanted: i64,
    },
    /// It is being made or deleted.
    #[error("it is {}", .0.as_str())]
    NotInUse(Provisioning),
    /// Something is there that is not ours to overwrite.
    #[error("server {0} has a database of this name already; should an earlier move have left it there, drop it on that server")]
    NameTaken(String),
    /// What is to be forgotten can be dropped.
    #[error("server {0} answers, so its database can be dropped")]
    NotGone(String),
    /// Copying the last changes and comparing would keep writes waiting for longer than allowed.
    #[error("writes would have to wait for longer than the {} s that they may", .0.as_secs())]
    PauseTooLong(Duration),
    /// An earlier move left something on a server that does not answer.
    #[error("what an earlier move left on server {server} can't be dropped: {}", problem.with_causes())]
    LeftBehind {
        /// The server.
        server: String,
        /// What it said.
        problem: Error,
    },
    /// The move is done, but not everything after it.
    #[error("it IS on server {server} now, but what follows failed, and `tenantry serve` will see to it: {}", problem.with_causes())]
    Unfinished {
        /// The server.
        server: String,
        /// What went wrong.
        problem: Error,
    },
    /// Something that it needs is down, or a bug.
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
    /// Moves a tenant's database to another server; writes wait for `max_pause` at most, beside the time in which every instance
    /// learns of the pause. When this fails, the tenant is where it was, or will be as soon as this or
    /// [`OperatorServices::resume_moves`] can see to it; unless the error says otherwise.
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
            lost = keep_lease(&self.core, tenant_id, Some(&the_move)) => Err(lost.into()),
        };
        let settled = settle(&self.core, tenant_id).await;
        if let Err(error) = &settled {
            tracing::warn!(%tenant_id, error = dyn_error(error), "the end of the move is left to `tenantry serve`");
        }
        let problem = match moved {
            Err(MoveError::Failed(problem)) => problem,
            settled => return settled,
        };
        let found = tenants::find(&mut self.core.main().read().await?, tenant_id).await?;
        if found.is_some_and(|tenant| tenant.place.server == to_server) {
            return Err(MoveError::Unfinished { server: to_server.to_owned(), problem });
        }
        if let Err(error) = drop_orphan(&self.core, &tenant, &the_move).await {
            tracing::warn!(%tenant_id, error = dyn_error(&error), "a database may be left on server {to_server}");
        }
        Err(problem.into())
    }

    /// Ends a move that nobody else works on, back or forth by how far it has come. Answers whether none is under way now.
    ///
    /// # Errors
    /// When a database that it needs is down.
    pub async fn settle_move(&self, tenant_id: TenantId) -> Result<bool> {
        settle(&self.core, tenant_id).await
    }

    /// Ends the moves that a crash left. Answers how many.
    ///
    /// # Errors
    /// When the main database is down. A move that can't be ended is logged and left for the next time.
    pub async fn resume_moves(&self) -> Result<usize> {
        let moves = moves::list(&mut self.core.main().read().await?).await?;
        let mut settled = 0;
        for Move { tenant_id, .. } in moves.into_iter().filter(|the_move| the_move.state != MoveState::Kept) {
            match settle(&self.core, tenant_id).await {
                Ok(is_settled) => settled += usize::from(is_settled),
                Err(error) => {
                    tracing::warn!(%tenant_id, error = dyn_error(&error), "a move that was interrupted could not be ended");
                }
            }
        }
        Ok(settled)
    }

    /// Drops the database that a tenant has left. Answers where it was.
    ///
    /// # Errors
    /// When there is none, the tenant's present database does not answer, or the former one's server is down.
    pub async fn drop_source_database(&self, tenant: &Tenant) -> Result<TenantPlace, MoveError> {
        let (tenant, the_move) = find_kept(&self.core, tenant.id).await?;
        // Whoever has nothing else would miss it.
        count_contents(&self.core, &tenant).await?;
        drop_unused(&self.core, &tenant, &the_move, MoveState::Kept, &the_move.from_server).await?;
        Ok(on(&tenant, &the_move.from_server))
    }

    /// Gives up a tenant's present database with all that was written there since its move, and returns to the former one.
    /// Answers where the tenant is then.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub async fn roll_back_move(&self, tenant: &Tenant) -> Result<TenantPlace, MoveError> {
        let (tenant, the_move) = find_kept(&self.core, tenant.id).await?;
        let former = on(&tenant, &the_move.from_server);
        // It was left behind by every migration since.
        let schema_version = self.core.parts.tenant_databases.schema_version_of(&former).await?;
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
                Err(MoveError::Unfinished { server: former.server, problem })
            }
            ended => ended.map(|()| former),
        }
    }

    /// Forgets what a move left on a server, without dropping it. Answers where that may still be.
    ///
    /// # Errors
    /// When nothing is left, the server answers, or the main database is down.
    pub async fn forget_source_database(&self, tenant: &Tenant) -> Result<TenantPlace, MoveError> {
        let mut tx = self.core.main().begin().await?;
        let found = moves::find(&mut tx, tenant.id).await?;
        let (the_move, server) = match found {
            Some(the_move) if the_move.state == MoveState::Kept => (the_move.clone(), the_move.from_server),
            Some(the_move) if the_move.state == MoveState::Abandoned && tenant.writes_paused_at.is_none() => {
                (the_move.clone(), the_move.to_server)
            }
            _ => return Err(MoveError::NoFormer),
        };
        if self.core.parts.tenant_databases.ping(&server).await.is_ok() {
            return Err(MoveError::NotGone(server));
        }
        moves::delete(&mut tx, &the_move).await?;
        tx.commit().await?;
        Ok(on(tenant, &server))
    }

    /// Whether a former database of a tenant's is kept, which it may return to.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn has_source_database(&self, tenant_id: TenantId) -> Result<bool> {
        let found = moves::find(&mut self.core.main().read().await?, tenant_id).await?;
        Ok(found.is_some_and(|found| found.state == MoveState::Kept))
    }
}

/// Ends what an earlier move left to do, unless its maker lives.
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

/// Notes a move and takes its lease.
async fn begin_move(core: &Core, tenant_id: TenantId, to_server: &str) -> Result<(Tenant, Move), MoveError> {
    let databases = &core.parts.tenant_databases;
    let known: Vec<_> = databases.servers().map(str::to_owned).collect();
    if !known.iter().any(|server| server == to_server) {
        return Err(MoveError::UnknownServer { wanted: to_server.to_owned(), known });
    }
    // Before anything is noted: what a noted move finds in the new place is dropped with it.
    let mut connection = core.main().read().await?;
    let tenant = may_move(tenants::find(&mut connection, tenant_id).await?, to_server)?;
    if let Some(kept) = moves::find(&mut connection, tenant_id).await? {
        return Err(MoveError::FormerKept(kept.from_server));
    }
    drop(connection);
    if databases.exists(&on(&tenant, to_server)).await? {
        return Err(MoveError::NameTaken(to_server.to_owned()));
    }
    let mut tx = begin_with_lease(core, tenant_id).await?;
    let tenant = may_move(tenants::lock(&mut tx, tenant_id).await?, to_server)?;
    let the_move = Move {
        tenant_id,
        from_server: tenant.place.server.clone(),
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

/// Everything from the making of the new database to the last step.
async fn carry_out(
    core: &Core,
    tenant: &Tenant,
    the_move: &Move,
    max_pause: Duration,
    watch: &(dyn Fn(MoveStep) + Sync),
) -> Result<Moved, MoveError> {
    let databases = &core.parts.tenant_databases;
    let (from, to) = (&tenant.place, on(tenant, &the_move.to_server));
    databases.create(&to).await?;
    databases.finish(&to).await?;
    failpoint!("move.made");
    watch(MoveStep::Made);
    let began = Instant::now();
    let mut transfer = databases.transfer(from, &to).await?;
    for _ in 0..ROUNDS {
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
    Ok(Moved { tenant: Tenant { place: to, ..tenant.clone() }, former: from.clone(), tables, copied_in, paused_for })
}

/// Copies the last changes, compares, and seals the original.
async fn complete_copy(
    core: &Core,
    mut transfer: Transfer,
    the_move: &Move,
    max_pause: Duration,
    watch: &(dyn Fn(MoveStep) + Sync),
) -> Result<Vec<TableSum>> {
    transfer.lock_source(max_pause).await?;
    // With the original locked: whoever takes this move for abandoned from now on waits for the lock before the seal is
    // looked for, and so finds it.
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
        return Err(lost());
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
        return Err(lost());
    }
    let data = json!({ "from": from_server, "to": to_server });
    tx.emit(&audit_event(core, "tenant.moved", Some(*tenant_id), None, data));
    failpoint!("move.switching");
    commit_access_change(core, tx, *tenant_id).await
}

/// Lets people write again in the new database, once every instance knows of it: else one could read in the old database
/// what another has long changed in the new one.
async fn resume_writes(core: &Core, the_move: &Move) -> Result<()> {
    sleep(NOTICED_AFTER).await;
    let mut tx = begin_main(core).await?;
    if !moves::set_state(&mut tx, the_move, MoveState::Switched, MoveState::Kept).await? {
        return Ok(());
    }
    tenants::set_writes_paused(&mut tx, the_move.tenant_id, None).await?;
    commit_access_change(core, tx, the_move.tenant_id).await
}

/// Takes back what was done of a move: first the mark, from which on nobody can switch.
async fn undo_move(core: &Core, tenant: &Tenant, the_move: &Move) -> Result<()> {
    if the_move.state != MoveState::Abandoned {
        let mut tx = begin_main(core).await?;
        if !moves::set_state(&mut tx, the_move, the_move.state, MoveState::Abandoned).await? {
            return Err(lost());
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

/// Drops one of a move's two databases, and forgets the move. The tenant is locked meanwhile, so it can't have moved there
/// again since it was looked at.
async fn drop_unused(core: &Core, tenant: &Tenant, the_move: &Move, state: MoveState, server: &str) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let now = tenants::lock(&mut tx, tenant.id).await?;
    let is_same = moves::find(&mut tx, tenant.id).await?.is_some_and(|found| found == Move { state, ..the_move.clone() });
    if !is_same || now.is_none_or(|now| now.place.server == server) {
        return Err(lost());
    }
    core.parts.tenant_databases.drop_database(&on(tenant, server)).await?;
    failpoint!("move.dropped");
    moves::delete(&mut tx, the_move).await?;
    Ok(tx.commit().await?)
}

/// Drops what a move has made after others took it for abandoned and ended it.
async fn drop_orphan(core: &Core, tenant: &Tenant, the_move: &Move) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let now = tenants::lock(&mut tx, tenant.id).await?;
    if moves::find(&mut tx, tenant.id).await?.is_none() && now.is_none_or(|now| now.place.server != the_move.to_server) {
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
        lost = keep_lease(core, tenant_id, None) => Err(lost),
    };
    release_lease(core, &lease(tenant_id)).await?;
    settled.map(|()| true)
}

async fn settle_ours(core: &Core, tenant_id: TenantId) -> Result<()> {
    let mut connection = core.main().read().await?;
    // The move first: a switch between the two would otherwise show the former place with the move's new state.
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

/// Whether a tenant's database is moving, or a former one is kept.
pub(crate) async fn has_move(core: &Core, tenant_id: TenantId) -> Result<bool> {
    Ok(moves::find(&mut core.main().read().await?, tenant_id).await?.is_some())
}

async fn find_kept(core: &Core, tenant_id: TenantId) -> Result<(Tenant, Move), MoveError> {
    end_earlier_move(core, tenant_id).await?;
    let mut connection = core.main().read().await?;
    let found = moves::find(&mut connection, tenant_id).await?;
    let tenant = tenants::find(&mut connection, tenant_id).await?;
    let kept = found.filter(|found| found.state == MoveState::Kept);
    tenant.zip(kept).ok_or(MoveError::NoFormer)
}

/// Drops a tenant's database, and what a move left or began of it elsewhere.
pub(crate) async fn drop_databases_of(core: &Core, tenant: &Tenant) -> Result<()> {
    let databases = &core.parts.tenant_databases;
    let mut connection = core.main().read().await?;
    let (found, now) = (moves::find(&mut connection, tenant.id).await?, tenants::find(&mut connection, tenant.id).await?);
    drop(connection);
    // It may have moved since it was found.
    databases.drop_database(&now.as_ref().unwrap_or(tenant).place).await?;
    if let Some(Move { from_server, to_server, .. }) = found {
        databases.drop_database(&on(tenant, &from_server)).await?;
        databases.drop_database(&on(tenant, &to_server)).await?;
    }
    Ok(())
}

/// Begins a transaction in which this instance takes the lease of a tenant that is not on the move. Waits for another that
/// has it: who looks for moves to end may find that this one has ended meanwhile, and gives it up at once.
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
        sleep(GLANCE).await;
    }
}

/// Takes a move's lease, or prolongs it.
async fn hold_move(core: &Core, tx: &mut MainTx, tenant_id: TenantId) -> Result<bool> {
    hold_lease_in(core, tx, &lease(tenant_id), LEASE_TIME).await
}

/// Prolongs a move's lease, unless another process took the move for abandoned.
async fn renew_if_ours(core: &Core, the_move: &Move) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let found = moves::find(&mut tx, the_move.tenant_id).await?;
    let is_ours = found.is_some_and(|found| found.began_at == the_move.began_at && found.state != MoveState::Abandoned);
    if !is_ours || !hold_move(core, &mut tx, the_move.tenant_id).await? {
        return Err(lost());
    }
    Ok(tx.commit().await?)
}

/// Prolongs a lease until that fails: of a move, or of ending one.
async fn keep_lease(core: &Core, tenant_id: TenantId, the_move: Option<&Move>) -> Error {
    let mut held_until = Instant::now() + LEASE_TIME;
    loop {
        sleep(PROLONG_INTERVAL).await;
        let asked_at = Instant::now();
        let prolonged = match the_move {
            Some(the_move) => renew_if_ours(core, the_move).await,
            None => match hold_lease(core, &lease(tenant_id), LEASE_TIME).await {
                Ok(false) => Err(lost()),
                held => held.map(drop),
            },
        };
        match prolonged {
            Ok(()) => held_until = asked_at + LEASE_TIME,
            Err(error @ Error::Unavailable { dependency: Dependency::Database, .. }) if Instant::now() < held_until => {
                tracing::warn!(error = dyn_error(&error), "a move's lease can't be prolonged; it is tried again");
            }
            Err(error) => return error,
        }
    }
}

/// Fails unless the tenant is there, in use, elsewhere, and of this program's schema.
fn may_move(tenant: Option<Tenant>, to_server: &str) -> Result<Tenant, MoveError> {
    let tenant = tenant.ok_or(MoveError::NotInUse(Provisioning::Deleting))?;
    let (found, wanted) = (tenant.schema_version, tenant_schema_version());
    match tenant.provisioning {
        Provisioning::Active if tenant.place.server == to_server => Err(MoveError::ThereAlready(to_server.to_owned())),
        Provisioning::Active if found < wanted => Err(MoveError::Outdated { found, wanted }),
        Provisioning::Active if found > wanted => Err(MoveError::TooNew { found, wanted }),
        Provisioning::Active => Ok(tenant),
        other => Err(MoveError::NotInUse(other)),
    }
}

/// A move's lease: who works on it.
fn lease(tenant_id: TenantId) -> String {
    format!("move of {tenant_id}")
}

fn lost() -> Error {
    let source = "another process took the move for abandoned and ended it; are the hosts' clocks seconds apart?".into();
    Error::Unavailable { dependency: Dependency::TenantDatabase, source }
}

/// Where a tenant's database is on a server.
fn on(tenant: &Tenant, server: &str) -> TenantPlace {
    TenantPlace { server: server.to_owned(), ..tenant.place.clone() }
}
