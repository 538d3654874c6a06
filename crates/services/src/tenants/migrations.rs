//! Migrations of tenants' databases: of the fleet, in waves, and of one that was missed, at its first request.
//!
//! A program serves databases of its own schema, of the one before and of the one after, so that a deploy needs no stop: first
//! the new program, instance by instance, then the migration. Each migration only adds what the program before can ignore, and
//! what a program stops using goes with the migration after that (expand and contract).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain::{Closure, Dependency, Error, MigrationAttempt, MigrationOutcome, Provisioning, Result, Tenant, TenantId, Wave, failpoint};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared, try_join_all},
    stream,
};
use models::{dirty_tenants, migrations, tenant_schema_version, tenants};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{Core, OperatorServices, access_cache::commit_access_change, events::events::begin_main};

/// How often databases that were down or held by others are tried again within a wave, and after what pause.
const FURTHER_ATTEMPTS: usize = 2;
const PAUSE: Duration = Duration::from_secs(1);
/// How many databases of each server are migrated at once because of requests. They are what a server can do beside its work.
const MISSED_AT_ONCE: usize = 4;
/// How long a request waits for the migration of its tenant's database, which goes on without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest error that is kept, in characters.
const LONGEST_ERROR: usize = 1_000;

/// How the fleet is migrated.
#[derive(Clone, Debug)]
pub struct MigrationPlan {
    /// One wave after the other; what the last one does not reach is left for another time.
    pub waves: Vec<Wave>,
    /// After how many failures no further migration is begun.
    pub halt_on: Option<usize>,
    /// How many databases are migrated at once on each server.
    pub at_once: usize,
}

/// Something that happened while the fleet was migrated.
#[derive(Clone, Copy, Debug)]
pub enum MigrationStep<'a> {
    /// A wave begins.
    Wave {
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        of: usize,
        /// How many tenants it has.
        tenants: usize,
    },
    /// So many databases, which were down or held by others, are tried again.
    Again(usize),
    /// A tenant's turn is over: with an error, unless its database is migrated.
    Settled(&'a Tenant, Option<&'a Error>),
}

/// What was done to the fleet.
#[derive(Debug, Default)]
pub struct FleetMigration {
    /// The schema's version that every tenant's database is to have.
    pub wanted_version: i64,
    /// How many tenants are in use, of those that are meant.
    pub total: u64,
    /// How many of them have it, or a later one, already.
    pub up_to_date: u64,
    /// The tenants that were to be migrated.
    pub outdated: Vec<Tenant>,
    /// How many of them were.
    pub migrated: usize,
    /// Those on which the migration does not work, and why. They are closed.
    pub failed: Vec<(Tenant, Error)>,
    /// Those that were down or held by others, and why. They are in use as before.
    pub postponed: Vec<(Tenant, Error)>,
    /// How many were deleted meanwhile.
    pub gone: usize,
    /// Whether it was stopped because of too many failures.
    pub halted: bool,
}

impl FleetMigration {
    /// How many tenants' turn did not come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.outdated.len() - self.migrated - self.failed.len() - self.postponed.len() - self.gone
    }
}

/// How far the fleet is migrated.
#[derive(Debug)]
pub struct MigrationStatus {
    /// The schema's version that every tenant's database is to have.
    pub wanted_version: i64,
    /// How many tenants have each version.
    pub versions: Vec<(i64, u64)>,
    /// Tenants whose last migration did not end well.
    pub unsettled: Vec<(Tenant, MigrationAttempt)>,
}

/// What an error of a migration means.
fn migration_outcome(error: Option<&Error>) -> MigrationOutcome {
    match error {
        None => MigrationOutcome::Migrated,
        Some(Error::Unavailable { .. }) => MigrationOutcome::Postponed,
        Some(_) => MigrationOutcome::Failed,
    }
}

/// A migration that many may wait for.
type AwaitedMigration = Shared<BoxFuture<'static, Result<(), Arc<Error>>>>;

/// The migrations that requests wait for.
#[derive(Default)]
pub(crate) struct Awaited {
    by_tenant: HashMap<TenantId, AwaitedMigration>,
    /// As many at once as each server may have.
    turns: HashMap<String, Arc<Semaphore>>,
}

/// A tenant's turn in the migration of the fleet.
enum Turn {
    Migrated,
    /// The tenant was deleted since the list was made.
    Gone,
    /// Its database is not migrated.
    Problem(Error),
}

impl OperatorServices {
    /// What [`OperatorServices::migrate_fleet`] is to do, for these tenants or for all: nothing is migrated yet.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn plan_migration(&self, only: Option<&[TenantId]>) -> Result<FleetMigration> {
        let wanted_version = tenant_schema_version();
        let mut connection = self.core.main().read().await?;
        let mut outdated = tenants::list_before_version(&mut connection, wanted_version).await?;
        let versions = tenants::count_by_schema_version(&mut connection).await?;
        let mut total: u64 = versions.iter().map(|(_, tenants)| tenants).sum();
        if let Some(only) = only {
            outdated.retain(|tenant| only.contains(&tenant.id));
            total = only.len() as u64;
        }
        let up_to_date = total.saturating_sub(outdated.len() as u64);
        Ok(FleetMigration { wanted_version, total, up_to_date, outdated, ..FleetMigration::default() })
    }

    /// Brings the outdated databases of a fleet to this program's schema, and tells `watch` of each. What is wrong with single
    /// databases is part of the answer. Stopped anywhere, it goes on where it was when it is planned and done again.
    ///
    /// # Errors
    /// When the main database is down; what was done until then is noted there.
    pub async fn migrate_fleet(
        &self,
        mut fleet: FleetMigration,
        plan: &MigrationPlan,
        watch: &(dyn Fn(MigrationStep<'_>) + Sync),
    ) -> Result<FleetMigration> {
        let limit = plan.halt_on.unwrap_or(usize::MAX);
        let mut begun = 0;
        for (n, wave) in plan.waves.iter().enumerate() {
            let end = wave.reach(fleet.outdated.len()).max(begun);
            let mut turns = fleet.outdated[begun..end].to_vec();
            begun = end;
            if turns.is_empty() {
                continue;
            }
            watch(MigrationStep::Wave { number: n + 1, of: plan.waves.len(), tenants: turns.len() });
            for attempt in 0..=FURTHER_ATTEMPTS {
                let is_last = attempt == FURTHER_ATTEMPTS;
                let allowed = limit - fleet.failed.len();
                let mut again = Vec::new();
                for (tenant, turn) in migrate_all(&self.core, turns, plan.at_once, allowed, is_last, watch).await? {
                    match turn {
                        Turn::Migrated => fleet.migrated += 1,
                        Turn::Gone => fleet.gone += 1,
                        Turn::Problem(Error::Unavailable { .. }) if !is_last => again.push(tenant),
                        Turn::Problem(problem @ Error::Unavailable { .. }) => fleet.postponed.push((tenant, problem)),
                        Turn::Problem(problem) => fleet.failed.push((tenant, problem)),
                    }
                }
                turns = again;
                if turns.is_empty() || fleet.failed.len() >= limit {
                    break;
                }
                watch(MigrationStep::Again(turns.len()));
                sleep(PAUSE).await;
            }
            if fleet.failed.len() >= limit {
                break;
            }
        }
        fleet.halted = fleet.failed.len() >= limit && fleet.left() > 0;
        Ok(fleet)
    }

    /// Lets people into a tenant's database again after a migration of it failed. Answers whether they were kept out.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn lift_quarantine(&self, tenant_id: TenantId) -> Result<bool> {
        let mut tx = begin_main(&self.core).await?;
        let released = tenants::release(&mut tx, tenant_id).await?;
        commit_access_change(&self.core, tx, tenant_id).await?;
        Ok(released)
    }

    /// How far the fleet is migrated.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn migration_status(&self) -> Result<MigrationStatus> {
        let mut connection = self.core.main().read().await?;
        let versions = tenants::count_by_schema_version(&mut connection).await?;
        let mut unsettled = Vec::new();
        for attempt in migrations::list_unsettled(&mut connection).await? {
            let tenant = tenants::find(&mut connection, attempt.tenant_id).await?;
            unsettled.extend(tenant.filter(|tenant| tenant.provisioning == Provisioning::Active).map(|tenant| (tenant, attempt)));
        }
        Ok(MigrationStatus { wanted_version: tenant_schema_version(), versions, unsettled })
    }
}

/// Migrates these, until so many have failed.
async fn migrate_all(
    core: &Core,
    turns: Vec<Tenant>,
    at_once: usize,
    allowed: usize,
    is_last: bool,
    watch: &(dyn Fn(MigrationStep<'_>) + Sync),
) -> Result<Vec<(Tenant, Turn)>> {
    let mut by_server: BTreeMap<String, Vec<Tenant>> = BTreeMap::new();
    for tenant in turns {
        by_server.entry(tenant.place.server.clone()).or_default().push(tenant);
    }
    let failures = AtomicUsize::new(0);
    let on_server = async |(server, tenants): (String, Vec<Tenant>)| -> Result<Vec<_>> {
        let is_down = AtomicBool::new(false);
        // Those under way are finished; no other is begun.
        let goes_on = |_: &Tenant| std::future::ready(failures.load(Ordering::Relaxed) < allowed);
        let turns = stream::iter(tenants).take_while(goes_on).map(async |tenant| {
            let turn = migrate_next(core, &tenant, &server, &is_down).await?;
            let (problem, is_settled) = match &turn {
                Turn::Migrated | Turn::Gone => (None, true),
                Turn::Problem(problem) => (Some(problem), is_last || !matches!(problem, Error::Unavailable { .. })),
            };
            if is_settled {
                failures.fetch_add(usize::from(migration_outcome(problem) == MigrationOutcome::Failed), Ordering::Relaxed);
                watch(MigrationStep::Settled(&tenant, problem));
            }
            Ok((tenant, turn))
        });
        turns.buffer_unordered(at_once.max(1)).try_collect().await
    };
    Ok(try_join_all(by_server.into_iter().map(on_server)).await?.into_iter().flatten().collect())
}

/// Migrates a tenant's database, unless its server is down: then nobody waits for it tenant by tenant.
async fn migrate_next(core: &Core, tenant: &Tenant, server: &str, is_down: &AtomicBool) -> Result<Turn> {
    // As it is now: the list may be hours old.
    let found = tenants::find(&mut core.main().read().await?, tenant.id).await?;
    let Some(tenant) = found.filter(|tenant| tenant.provisioning == Provisioning::Active) else { return Ok(Turn::Gone) };
    if is_down.load(Ordering::Relaxed) {
        let source = format!("the server {server} does not answer").into();
        return Ok(Turn::Problem(Error::Unavailable { dependency: Dependency::TenantDatabase, source }));
    }
    match migrate_tenant(core, &tenant).await? {
        Ok(_) => Ok(Turn::Migrated),
        Err(problem) => {
            if matches!(problem, Error::Unavailable { .. }) && core.parts.tenant_databases.ping(server).await.is_err() {
                is_down.store(true, Ordering::Relaxed);
            }
            Ok(Turn::Problem(problem))
        }
    }
}

/// Brings one tenant's database to this program's schema, and notes how that went. When the migration does not work on it,
/// nobody is let in any more; the database stays as it was then, and what was wrong is the inner error.
///
/// # Errors
/// When the main database is down.
async fn migrate_tenant(core: &Core, tenant: &Tenant) -> Result<Result<models::Migrated>> {
    let began_at = core.clock().now();
    let migrated = core.parts.tenant_databases.migrate(&tenant.place).await.map_err(Error::from);
    failpoint!("migration.applied");
    let ended_at = core.clock().now();
    let outcome = migration_outcome(migrated.as_ref().err());
    let attempt = MigrationAttempt {
        tenant_id: tenant.id,
        wanted_version: tenant_schema_version(),
        from_version: migrated.as_ref().map_or(tenant.schema_version, |migrated| migrated.from),
        outcome,
        error: migrated.as_ref().err().map(|error| error.with_causes().chars().take(LONGEST_ERROR).collect()),
        began_at,
        ended_at,
    };
    let mut tx = begin_main(core).await?;
    migrations::note(&mut tx, &attempt).await?;
    // What older programs told there, they left unmarked.
    dirty_tenants::mark(&mut tx, tenant.id, ended_at);
    match &migrated {
        Ok(migrated) => tenants::set_schema_version(&mut tx, &tenant.place, migrated.to).await?,
        Err(_) if outcome == MigrationOutcome::Failed => {
            tenants::quarantine(&mut tx, &tenant.place, tenant.schema_version, ended_at).await?;
        }
        Err(_) => {}
    }
    failpoint!("migration.noting");
    match outcome {
        // Nothing that anybody is to be told of.
        MigrationOutcome::Postponed => tx.commit().await?,
        _ => commit_access_change(core, tx, tenant.id).await?,
    }
    failpoint!("migration.noted");
    Ok(migrated)
}

/// Sees to it that a tenant's database has a schema that this program understands. One that was missed is migrated now.
///
/// # Errors
/// [`Error::Closed`] when it has not, or not yet.
pub(crate) async fn ensure_schema(core: &Core, tenant: &Tenant) -> Result<()> {
    match closure(tenant) {
        None => Ok(()),
        Some(Closure::Migrating) => Box::pin(migrate_missed(core, tenant)).await,
        Some(closure) => Err(Error::Closed(closure)),
    }
}

/// Migrates a tenant's database once for all who wait for it. It goes on when they go away.
async fn migrate_missed(core: &Core, tenant: &Tenant) -> Result<()> {
    let migration = {
        let mut awaited = awaited_migrations(core);
        match awaited.by_tenant.get(&tenant.id) {
            Some(migration) => migration.clone(),
            None => {
                let turns = awaited.turns.entry(tenant.place.server.clone());
                let turns = Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(MISSED_AT_ONCE))));
                let migration = migrate_in_turn(core.clone(), tenant.clone(), turns).boxed().shared();
                awaited.by_tenant.insert(tenant.id, migration.clone());
                tokio::spawn(Forgotten(core.clone(), tenant.id).after(migration.clone()));
                migration
            }
        }
    };
    match timeout(PATIENCE, migration).await {
        Ok(Ok(())) => Ok(()),
        Err(_) => Err(Error::Closed(Closure::Migrating)),
        Ok(Err(problem)) => match migration_outcome(Some(&problem)) {
            MigrationOutcome::Postponed => Err(Error::Unavailable { dependency: Dependency::TenantDatabase, source: problem.into() }),
            _ => Err(Error::Closed(Closure::Quarantined)),
        },
    }
}

async fn migrate_in_turn(core: Core, tenant: Tenant, turns: Arc<Semaphore>) -> Result<(), Arc<Error>> {
    let _turn = turns.acquire().await.map_err(|error| Arc::new(Error::internal(error)))?;
    migrate_tenant(&core, &tenant).await.and_then(|migrated| migrated).map(drop).map_err(Arc::new)
}

fn awaited_migrations(core: &Core) -> std::sync::MutexGuard<'_, Awaited> {
    core.awaited_migrations.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a tenant's database can't be used as it is, if so: it failed to be migrated, is of a newer program, or has to be migrated
/// first.
pub(crate) fn closure(tenant: &Tenant) -> Option<Closure> {
    match tenant_schema_version() - tenant.schema_version {
        _ if tenant.quarantined_at.is_some() => Some(Closure::Quarantined),
        -1..=1 => None,
        ..-1 => Some(Closure::TooNew),
        2.. => Some(Closure::Migrating),
    }
}

/// Forgets a migration that requests waited for, whatever became of it.
struct Forgotten(Core, TenantId);

impl Forgotten {
    /// After its end; after a failure not at once, so that who comes next is told the same and does not try it again.
    async fn after<E>(self, migration: impl Future<Output = Result<(), E>>) {
        if migration.await.is_err() {
            sleep(PAUSE).await;
        }
    }
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        awaited_migrations(&self.0).by_tenant.remove(&self.1);
    }
}
