//! Moves of tenants' databases to other servers, also from one engine to the other.
//!
//! The new database is made and filled while work in the old one goes on. Then writes pause: once every instance knows it,
//! the old database is closed, the last changes are copied, and the two are compared. A seal in the old one refuses whoever
//! would still write there. One transaction of the main database moves the tenant; writes go on when every instance knows
//! that. Nobody is refused meanwhile: reads go on, writes wait.
//!
//! A lease tells whether somebody still works on a move. Whoever finds it expired ends the move, back or forth by its state.

use std::time::{Duration, Instant};

use domain::{Error, Move, MoveState, Provisioning, Result, Tenant, TenantId, TenantPlace, failpoint};
use models::{MainTx, TableSum, leases, moves, tenant_schema_version, tenants};
use tokio::time::sleep;

use crate::{Services, access::NOTICED_AFTER};

/// How long a move's lease is held without being prolonged, and how often it is prolonged.
const LEASE_TIME: Duration = Duration::from_secs(15);
const PROLONG_INTERVAL: Duration = Duration::from_secs(3);
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
    #[error("TENANT_DATABASE_URLS names no server {wanted:?}; there are: {}", known.join(", "))]
    UnknownServer {
        /// The name that was asked for.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Another process works on it.
    #[error("another process is moving its database")]
    UnderWay,
    /// It was moved before, and what it left must go first.
    #[error("its former database is still kept on server {0}; drop that first, with --drop-former")]
    FormerKept(String),
    /// There is nothing to drop.
    #[error("no former database of it is kept")]
    NoFormer,
    /// The program knows the tables of its own schema only.
    #[error("its database has schema version {found} and this program {wanted}: first run `tenantry migrate`")]
    OtherSchema {
        /// The version that it has.
        found: i64,
        /// The version that it needs.
        wanted: i64,
    },
    /// It is being made or deleted.
    #[error("it is {}", .0.as_str())]
    NotInUse(Provisioning),
    /// Something is there that is not ours to overwrite.
    #[error("server {0} has a database of this name already")]
    NameTaken(String),
    /// Something that it needs is down, or a bug.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<models::Error> for MoveError {
    fn from(error: models::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl Services {
    /// Moves a tenant's database to another server. When this fails, the tenant is where it was, or will be as soon as this or
    /// [`Services::resume_moves`] can see to it; unless it says otherwise.
    ///
    /// # Errors
    /// When it can't be moved, or a database is down.
    pub async fn move_tenant(&self, tenant_id: TenantId, to_server: &str, watch: &(dyn Fn(MoveStep) + Sync)) -> Result<Moved, MoveError> {
        if !self.settle_move(tenant_id).await? {
            return Err(MoveError::UnderWay);
        }
        if let Some(kept) = moves::find(&mut self.main().read().await?, tenant_id).await? {
            return Err(MoveError::FormerKept(kept.from_server));
        }
        let (tenant, the_move) = self.begin_move(tenant_id, to_server).await?;
        failpoint!("move.begun");
        let moved = tokio::select! {
            moved = self.carry_out(&tenant, &the_move, watch) => moved,
            lost = self.prolong_lease(tenant_id) => Err(lost),
        };
        let settled = self.settle_move(tenant_id).await;
        match (moved, settled) {
            (Ok(moved), Ok(_)) => Ok(moved),
            (Ok(_), Err(problem)) => {
                tracing::warn!(%tenant_id, "the tenant is in its new database; writes go on when `tenantry serve` has seen to it");
                Err(problem.into())
            }
            (Err(problem), settled) => {
                if let Err(error) = settled {
                    tracing::warn!(%tenant_id, error = &error as &dyn std::error::Error, "the move can't be undone yet; `tenantry serve` will");
                }
                Err(problem.into())
            }
        }
    }

    /// Notes a move and takes its lease.
    async fn begin_move(&self, tenant_id: TenantId, to_server: &str) -> Result<(Tenant, Move), MoveError> {
        let databases = &self.0.parts.tenant_databases;
        let known: Vec<_> = databases.servers().map(str::to_owned).collect();
        if !known.iter().any(|server| server == to_server) {
            return Err(MoveError::UnknownServer { wanted: to_server.to_owned(), known });
        }
        let check = |tenant: Option<Tenant>| {
            let tenant = tenant.ok_or(MoveError::NotInUse(Provisioning::Deleting))?;
            let wanted = tenant_schema_version();
            match &tenant {
                Tenant { provisioning, .. } if *provisioning != Provisioning::Active => Err(MoveError::NotInUse(*provisioning)),
                Tenant { place, .. } if place.server == to_server => Err(MoveError::ThereAlready(to_server.to_owned())),
                Tenant { schema_version: found, .. } if *found != wanted => Err(MoveError::OtherSchema { found: *found, wanted }),
                _ => Ok(tenant),
            }
        };
        // Before anything is noted: what a noted move finds in the new place is dropped with it.
        let tenant = check(tenants::find(&mut self.main().read().await?, tenant_id).await?)?;
        if databases.exists(&TenantPlace { server: to_server.to_owned(), ..tenant.place }).await? {
            return Err(MoveError::NameTaken(to_server.to_owned()));
        }
        let now = self.clock().now();
        let mut tx = self.main().begin().await?;
        let tenant = check(tenants::lock(&mut tx, tenant_id).await?)?;
        let the_move = Move {
            tenant_id,
            from_server: tenant.place.server.clone(),
            to_server: to_server.to_owned(),
            state: MoveState::Copying,
            began_at: now,
        };
        if moves::find(&mut tx, tenant_id).await?.is_some() || !self.hold_move(&mut tx, tenant_id).await? {
            return Err(MoveError::UnderWay);
        }
        moves::insert(&mut tx, &the_move).await?;
        tx.commit().await?;
        Ok((tenant, the_move))
    }

    /// Everything from the making of the new database to the switch.
    async fn carry_out(&self, tenant: &Tenant, the_move: &Move, watch: &(dyn Fn(MoveStep) + Sync)) -> Result<Moved> {
        let databases = &self.0.parts.tenant_databases;
        let (from, to) = (&tenant.place, places(tenant, the_move).1);
        databases.create(&to).await?;
        databases.finish(&to).await?;
        failpoint!("move.made");
        watch(MoveStep::Made);
        let began = Instant::now();
        let mut transfer = databases.transfer(from, &to).await?;
        for _ in 0..ROUNDS {
            if transfer.copy(&|rows| watch(MoveStep::Copied(rows))).await? <= FEW_CHANGES {
                break;
            }
        }
        let copied_in = began.elapsed();
        failpoint!("move.copied");

        let began = Instant::now();
        self.pause_writes(tenant.id).await?;
        watch(MoveStep::Paused);
        sleep(NOTICED_AFTER).await;
        failpoint!("move.noticed");
        transfer.close().await?;
        // With the original locked: whoever takes this move for abandoned from now on waits for the lock before the seal is
        // looked for, and so finds it.
        self.still_ours(tenant.id).await?;
        let (changed, tables) = transfer.complete().await?;
        failpoint!("move.compared");
        watch(MoveStep::Compared(changed));
        transfer.seal().await?;
        failpoint!("move.sealed");
        self.switch(the_move).await?;
        failpoint!("move.switched");
        watch(MoveStep::Switched);
        self.resume_writes(tenant.id).await?;
        let paused_for = began.elapsed();
        failpoint!("move.resumed");
        Ok(Moved { tenant: Tenant { place: to, ..tenant.clone() }, former: from.clone(), tables, copied_in, paused_for })
    }

    async fn pause_writes(&self, tenant_id: TenantId) -> Result<()> {
        let now = self.clock().now();
        let mut tx = self.main().begin().await?;
        if !moves::set_state(&mut tx, tenant_id, MoveState::Copying, MoveState::Paused).await? {
            return Err(lost());
        }
        tenants::set_writes_paused(&mut tx, tenant_id, Some(now)).await?;
        self.commit_access_change(tx, tenant_id).await
    }

    async fn switch(&self, Move { tenant_id, from_server, to_server, .. }: &Move) -> Result<()> {
        let mut tx = self.main().begin().await?;
        let is_ours = self.hold_move(&mut tx, *tenant_id).await?
            && moves::set_state(&mut tx, *tenant_id, MoveState::Paused, MoveState::Switched).await?
            && tenants::relocate(&mut tx, *tenant_id, from_server, to_server, tenant_schema_version()).await?;
        if !is_ours {
            return Err(lost());
        }
        failpoint!("move.switching");
        self.commit_access_change(tx, *tenant_id).await
    }

    /// Lets people write again in the new database, once every instance knows of it: else one could read in the old database
    /// what another has long changed in the new one.
    async fn resume_writes(&self, tenant_id: TenantId) -> Result<()> {
        sleep(NOTICED_AFTER).await;
        let mut tx = self.main().begin().await?;
        if !moves::set_state(&mut tx, tenant_id, MoveState::Switched, MoveState::Kept).await? {
            return Ok(());
        }
        tenants::set_writes_paused(&mut tx, tenant_id, None).await?;
        self.commit_access_change(tx, tenant_id).await
    }

    /// Takes back what was done of a move.
    async fn undo_move(&self, tenant: &Tenant, the_move: &Move) -> Result<()> {
        let (from, to) = places(tenant, the_move);
        if the_move.state != MoveState::Abandoned {
            self.0.parts.tenant_databases.unseal(&from).await?;
            let mut tx = self.main().begin().await?;
            if !moves::set_state(&mut tx, tenant.id, the_move.state, MoveState::Abandoned).await? {
                return Err(lost());
            }
            tenants::set_writes_paused(&mut tx, tenant.id, None).await?;
            self.commit_access_change(tx, tenant.id).await?;
            failpoint!("move.abandoned");
        }
        self.0.parts.tenant_databases.drop_database(&to).await?;
        failpoint!("move.undone");
        let mut tx = self.main().begin().await?;
        moves::delete(&mut tx, tenant.id, MoveState::Abandoned).await?;
        Ok(tx.commit().await?)
    }

    /// Ends a move that nobody else works on, back or forth by how far it has come. Answers whether none is under way now.
    ///
    /// # Errors
    /// When a database that it needs is down.
    pub async fn settle_move(&self, tenant_id: TenantId) -> Result<bool> {
        if !self.hold_lease(&lease(tenant_id), LEASE_TIME).await? {
            return Ok(false);
        }
        let settled = tokio::select! {
            settled = self.settle_ours(tenant_id) => settled,
            lost = self.prolong_lease(tenant_id) => Err(lost),
        };
        self.release_lease(&lease(tenant_id)).await?;
        settled.map(|()| true)
    }

    async fn settle_ours(&self, tenant_id: TenantId) -> Result<()> {
        let mut connection = self.main().read().await?;
        // The move first: a switch between the two would otherwise show the former place with the move's new state.
        let found = moves::find(&mut connection, tenant_id).await?;
        let tenant = tenants::find(&mut connection, tenant_id).await?;
        drop(connection);
        match (tenant, found) {
            (Some(tenant), Some(the_move)) => match the_move.state {
                MoveState::Copying | MoveState::Paused | MoveState::Abandoned => self.undo_move(&tenant, &the_move).await,
                MoveState::Switched => self.resume_writes(tenant_id).await,
                MoveState::Kept => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Ends the moves that a crash left. Answers how many.
    ///
    /// # Errors
    /// When the main database is down. A move that can't be ended is logged and left for the next time.
    pub async fn resume_moves(&self) -> Result<usize> {
        let moves = moves::list(&mut self.main().read().await?).await?;
        let mut settled = 0;
        for Move { tenant_id, .. } in moves.into_iter().filter(|the_move| the_move.state != MoveState::Kept) {
            match self.settle_move(tenant_id).await {
                Ok(is_settled) => settled += usize::from(is_settled),
                Err(error) => {
                    tracing::warn!(%tenant_id, error = &error as &dyn std::error::Error, "a move that was interrupted could not be ended");
                }
            }
        }
        Ok(settled)
    }

    /// Drops the database that a tenant has left. Answers where it was.
    ///
    /// # Errors
    /// When there is none, the tenant's present database does not answer, or the former one's server is down.
    pub async fn drop_former(&self, tenant: &Tenant) -> Result<TenantPlace, MoveError> {
        let found = moves::find(&mut self.main().read().await?, tenant.id).await?;
        let the_move = found.filter(|found| found.state == MoveState::Kept).ok_or(MoveError::NoFormer)?;
        // Whoever has nothing else would miss it.
        self.count_contents(&tenant.place).await?;
        let (former, _) = places(tenant, &the_move);
        self.0.parts.tenant_databases.drop_database(&former).await?;
        failpoint!("move.former_dropped");
        let mut tx = self.main().begin().await?;
        moves::delete(&mut tx, tenant.id, MoveState::Kept).await?;
        tx.commit().await?;
        Ok(former)
    }

    /// Drops a tenant's database, and what a move left or began of it elsewhere.
    pub(crate) async fn drop_databases_of(&self, tenant: &Tenant) -> Result<()> {
        let databases = &self.0.parts.tenant_databases;
        let mut connection = self.main().read().await?;
        let (found, now) = (moves::find(&mut connection, tenant.id).await?, tenants::find(&mut connection, tenant.id).await?);
        drop(connection);
        if let Some(the_move) = found {
            let (from, to) = places(tenant, &the_move);
            databases.drop_database(&from).await?;
            databases.drop_database(&to).await?;
        }
        // It may have moved since it was found.
        Ok(databases.drop_database(&now.as_ref().unwrap_or(tenant).place).await?)
    }

    /// Takes a move's lease, or prolongs it.
    async fn hold_move(&self, tx: &mut MainTx, tenant_id: TenantId) -> Result<bool> {
        let now = self.clock().now();
        Ok(leases::take(tx, &lease(tenant_id), self.0.instance, now, now.plus(LEASE_TIME)).await?)
    }

    async fn still_ours(&self, tenant_id: TenantId) -> Result<()> {
        if self.hold_lease(&lease(tenant_id), LEASE_TIME).await? { Ok(()) } else { Err(lost()) }
    }

    /// Prolongs a move's lease until that fails.
    async fn prolong_lease(&self, tenant_id: TenantId) -> Error {
        let mut held_until = Instant::now() + LEASE_TIME;
        loop {
            sleep(PROLONG_INTERVAL).await;
            let asked_at = Instant::now();
            match self.still_ours(tenant_id).await {
                Ok(()) => held_until = asked_at + LEASE_TIME,
                Err(error @ Error::Unavailable { dependency: "database", .. }) if Instant::now() < held_until => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a move's lease can't be prolonged; it is tried again");
                }
                Err(error) => return error,
            }
        }
    }
}

/// A move's lease: who works on it.
fn lease(tenant_id: TenantId) -> String {
    format!("move of {tenant_id}")
}

fn lost() -> Error {
    Error::Unavailable { dependency: "tenant database", source: "another process took the move for abandoned and ended it".into() }
}

/// Where a tenant's database comes from, and where it goes to.
fn places(tenant: &Tenant, the_move: &Move) -> (TenantPlace, TenantPlace) {
    let on = |server: &str| TenantPlace { server: server.to_owned(), ..tenant.place.clone() };
    (on(&the_move.from_server), on(&the_move.to_server))
}
