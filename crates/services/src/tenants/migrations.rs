//! Migrations of tenant databases: of the fleet, in waves, and of a missed one at its first request.
//!
//! A program serves databases of its own schema version, of the one before and of the one after. So a deploy needs no downtime:
//! first the new program is rolled out instance by instance, then the databases are migrated. Each migration only adds what the
//! previous program can ignore; what a program stops using is dropped by the migration after that (expand and contract).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain::{
    Dependency, Error, MigrationAttempt, MigrationOutcome, Provisioning, Result, Tenant, TenantId, UnavailableReason, Wave, failpoint,
};
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

/// How often databases that were down or locked are retried within a wave, and after what delay.
const MAX_RETRIES: usize = 2;
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How many databases of each server are migrated at once because of requests. A server can do this much beside its regular load.
const MISSED_CONCURRENCY: usize = 4;
/// How long a request waits for the migration of its tenant's database, which continues without it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of a recorded error, in characters.
const MAX_ERROR_LENGTH: usize = 1_000;

/// How to migrate the fleet.
#[derive(Clone, Debug)]
pub struct MigrationPlan {
    /// The waves in order. Tenants beyond the last wave are left for a later run.
    pub waves: Vec<Wave>,
    /// The number of failures after which no further migration begins.
    pub halt_on: Option<usize>,
    /// How many databases are migrated at once on each server.
    pub at_once: usize,
}

/// A step of the fleet's migration, for its observer.
#[derive(Clone, Copy, Debug)]
pub enum MigrationStep<'a> {
    /// A wave begins.
    Wave {
        /// Its number, from 1.
        number: usize,
        /// The number of waves.
        of: usize,
        /// The number of its tenants.
        tenants: usize,
    },
    /// This many databases, which were down or locked, are retried.
    Again(usize),
    /// A tenant is finished: with an error, unless its database was migrated.
    Settled(&'a Tenant, Option<&'a Error>),
}

/// The result of a fleet migration.
#[derive(Debug, Default)]
pub struct FleetMigration {
    /// The schema version that every tenant's database should have.
    pub wanted_version: i64,
    /// How many of the selected tenants are in use.
    pub total: u64,
    /// How many of them already have that version or a later one.
    pub up_to_date: u64,
    /// The tenants to migrate.
    pub outdated: Vec<Tenant>,
    /// How many of them were migrated.
    pub migrated: usize,
    /// Tenants whose migration failed, and why. They are quarantined.
    pub failed: Vec<(Tenant, Error)>,
    /// Tenants whose database was down or locked, and why. They stay in use.
    pub postponed: Vec<(Tenant, Error)>,
    /// How many were deleted meanwhile.
    pub gone: usize,
    /// Whether the migration stopped because of too many failures.
    pub halted: bool,
}

impl FleetMigration {
    /// How many tenants were not reached.
    #[must_use]
    pub fn left(&self) -> usize {
        self.outdated.len() - self.migrated - self.failed.len() - self.postponed.len() - self.gone
    }
}

/// The migration status of the fleet.
#[derive(Debug)]
pub struct MigrationStatus {
    /// The schema version that every tenant's database should have.
    pub wanted_version: i64,
    /// How many tenants have each version.
    pub versions: Vec<(i64, u64)>,
    /// Tenants whose last migration failed or was postponed.
    pub unsettled: Vec<(Tenant, MigrationAttempt)>,
}

/// Classifies the error of a migration.
fn migration_outcome(error: Option<&Error>) -> MigrationOutcome {
    match error {
        None => MigrationOutcome::Migrated,
        Some(Error::Unavailable { .. }) => MigrationOutcome::Postponed,
        Some(_) => MigrationOutcome::Failed,
    }
}

/// A migration that several requests may wait for.
type AwaitedMigration = Shared<BoxFuture<'static, Result<(), Arc<Error>>>>;

/// The migrations that requests wait for.
#[derive(Default)]
pub(crate) struct Awaited {
    by_tenant: HashMap<TenantId, AwaitedMigration>,
    /// Each server's concurrency limit.
    turns: HashMap<String, Arc<Semaphore>>,
}

/// The result for one tenant in the migration of the fleet.
enum Turn {
    Migrated,
    /// The tenant was deleted since the list was read.
    Gone,
    /// Its database was not migrated.
    Problem(Error),
}

impl OperatorServices {
    /// Plans [`OperatorServices::migrate_fleet`] for these tenants or for all. Nothing is migrated yet.
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

    /// Migrates the fleet's outdated databases to this program's schema, and reports each to `watch`. Problems of single
    /// databases are part of the result. If interrupted anywhere, planning and migrating again resumes it.
    ///
    /// # Errors
    /// When the main database is down; results up to then are recorded there.
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
            for attempt in 0..=MAX_RETRIES {
                let is_last = attempt == MAX_RETRIES;
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
                sleep(RETRY_DELAY).await;
            }
            if fleet.failed.len() >= limit {
                break;
            }
        }
        fleet.halted = fleet.failed.len() >= limit && fleet.left() > 0;
        Ok(fleet)
    }

    /// Lifts a tenant's quarantine after a failed migration. Returns whether it was quarantined.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn lift_quarantine(&self, tenant_id: TenantId) -> Result<bool> {
        let mut tx = begin_main(&self.core).await?;
        let released = tenants::release(&mut tx, tenant_id).await?;
        commit_access_change(&self.core, tx, tenant_id).await?;
        Ok(released)
    }

    /// The migration status of the fleet.
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

/// Migrates these tenants until `allowed` of them have failed.
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
        by_server.entry(tenant.location.server.clone()).or_default().push(tenant);
    }
    let failures = AtomicUsize::new(0);
    let on_server = async |(server, tenants): (String, Vec<Tenant>)| -> Result<Vec<_>> {
        let is_down = AtomicBool::new(false);
        // Migrations in flight are finished; no other begins.
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

/// Migrates a tenant's database, unless its server is known to be down: a down server is waited for only once.
async fn migrate_next(core: &Core, tenant: &Tenant, server: &str, is_down: &AtomicBool) -> Result<Turn> {
    // Read again: the list may be hours old.
    let found = tenants::find(&mut core.main().read().await?, tenant.id).await?;
    let Some(tenant) = found.filter(|tenant| tenant.provisioning == Provisioning::Active) else { return Ok(Turn::Gone) };
    if is_down.load(Ordering::Relaxed) {
        let source = format!("the server {server} is unreachable").into();
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

/// Migrates one tenant's database to this program's schema, and records the outcome. A failure quarantines the tenant; the
/// database stays as it was then, and the inner error is the cause.
///
/// # Errors
/// When the main database is down.
async fn migrate_tenant(core: &Core, tenant: &Tenant) -> Result<Result<models::Migrated>> {
    let began_at = core.clock().now();
    let migrated = core.parts.tenant_databases.migrate(&tenant.location).await.map_err(Error::from);
    failpoint!("migration.applied");
    let ended_at = core.clock().now();
    let outcome = migration_outcome(migrated.as_ref().err());
    let attempt = MigrationAttempt {
        tenant_id: tenant.id,
        wanted_version: tenant_schema_version(),
        from_version: migrated.as_ref().map_or(tenant.schema_version, |migrated| migrated.from),
        outcome,
        error: migrated.as_ref().err().map(|error| error.with_causes().chars().take(MAX_ERROR_LENGTH).collect()),
        began_at,
        ended_at,
    };
    let mut tx = begin_main(core).await?;
    migrations::note(&mut tx, &attempt).await?;
    // Older programs set no dirty flag for events that they recorded there.
    dirty_tenants::mark(&mut tx, tenant.id, ended_at);
    match &migrated {
        Ok(migrated) => tenants::set_schema_version(&mut tx, &tenant.location, migrated.to).await?,
        Err(_) if outcome == MigrationOutcome::Failed => {
            tenants::quarantine(&mut tx, &tenant.location, tenant.schema_version, ended_at).await?;
        }
        Err(_) => {}
    }
    failpoint!("migration.noting");
    match outcome {
        // Access does not change, so no instance needs to know.
        MigrationOutcome::Postponed => tx.commit().await?,
        _ => commit_access_change(core, tx, tenant.id).await?,
    }
    failpoint!("migration.noted");
    Ok(migrated)
}

/// Ensures that a tenant's database has a schema that this program supports. A missed database is migrated now.
///
/// # Errors
/// [`Error::TenantUnavailable`] when it does not, or does not yet.
pub(crate) async fn ensure_schema(core: &Core, tenant: &Tenant) -> Result<()> {
    match closure(tenant) {
        None => Ok(()),
        Some(UnavailableReason::Migrating) => Box::pin(migrate_missed(core, tenant)).await,
        Some(closure) => Err(Error::TenantUnavailable(closure)),
    }
}

/// Migrates a tenant's database once for all requests that wait for it. The migration continues when they are cancelled.
async fn migrate_missed(core: &Core, tenant: &Tenant) -> Result<()> {
    let migration = {
        let mut awaited = core.awaited_migrations.lock();
        match awaited.by_tenant.get(&tenant.id) {
            Some(migration) => migration.clone(),
            None => {
                let turns = awaited.turns.entry(tenant.location.server.clone());
                let turns = Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(MISSED_CONCURRENCY))));
                let migration = migrate_in_turn(core.clone(), tenant.clone(), turns).boxed().shared();
                awaited.by_tenant.insert(tenant.id, migration.clone());
                tokio::spawn(RemoveAwaited(core.clone(), tenant.id).after(migration.clone()));
                migration
            }
        }
    };
    match timeout(WAIT_TIMEOUT, migration).await {
        Ok(Ok(())) => Ok(()),
        Err(_) => Err(Error::TenantUnavailable(UnavailableReason::Migrating)),
        Ok(Err(problem)) => match migration_outcome(Some(&problem)) {
            MigrationOutcome::Postponed => Err(Error::Unavailable { dependency: Dependency::TenantDatabase, source: problem.into() }),
            _ => Err(Error::TenantUnavailable(UnavailableReason::Quarantined)),
        },
    }
}

async fn migrate_in_turn(core: Core, tenant: Tenant, turns: Arc<Semaphore>) -> Result<(), Arc<Error>> {
    let _turn = turns.acquire().await.map_err(|error| Arc::new(Error::internal(error)))?;
    migrate_tenant(&core, &tenant).await.and_then(|migrated| migrated).map(drop).map_err(Arc::new)
}

/// Why a tenant is unavailable, if it is: its migration failed, its schema is too new, or it has to be migrated first.
pub(crate) fn closure(tenant: &Tenant) -> Option<UnavailableReason> {
    match tenant_schema_version() - tenant.schema_version {
        _ if tenant.quarantined_at.is_some() => Some(UnavailableReason::Quarantined),
        -1..=1 => None,
        ..-1 => Some(UnavailableReason::TooNew),
        2.. => Some(UnavailableReason::Migrating),
    }
}

/// Removes a migration that requests waited for when dropped, whatever its outcome.
struct RemoveAwaited(Core, TenantId);

impl RemoveAwaited {
    /// Waits for its end. After a failure it also waits for a delay, so that the next requests get the same error without a
    /// retry.
    async fn after<E>(self, migration: impl Future<Output = Result<(), E>>) {
        if migration.await.is_err() {
            sleep(RETRY_DELAY).await;
        }
    }
}

impl Drop for RemoveAwaited {
    fn drop(&mut self) {
        self.0.awaited_migrations.lock().by_tenant.remove(&self.1);
    }
}
