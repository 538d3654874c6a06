//! The outboxes, as the relay uses them.
//!
//! One instance at a time publishes the events of an ordering key, in their order; it holds the key's lease. A tenant's events in
//! the main database come first, since they include its creation; those in its own database follow. The transaction that writes
//! an event notifies the relay; after a crash, the dirty flags lead the relay to the events that it missed.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use domain::{Error, Event, EventKind, Provisioning, ResourceKind, Result, Tenant, TenantId, Timestamp, UnavailableReason, failpoint};
use models::{DirtyFlag, Scope, TenantDatabase, Tx, dirty_tenants, handled_events, leases, outbox, tenants};

use crate::{Core, EventServices, OperatorServices, OrderingKey, tenants::migrations::closure};

/// How long the lease of an ordering key is held without being renewed.
pub const OUTBOX_LEASE: Duration = Duration::from_secs(10);
/// When a dirty flag is old: no transaction that relied on it can still be writing. Only then may it be cleared.
const OLD_AFTER: Duration = Duration::from_secs(60);
/// Longer than any clock is ahead of another.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(365 * 24 * 3600);
/// How many dirty flags are read per query.
const FLAG_BATCH: u32 = 1_000;
/// How many events of a tenant that is being deleted are drained per batch.
const DRAIN_BATCH: u32 = 500;
/// How many expired events are purged per batch.
const PURGE_BATCH: u32 = 1_000;

/// The first unpublished events of an ordering key.
pub struct Unpublished {
    /// In publishing order; empty when there are none.
    pub events: Vec<Event>,
    /// Whether there were no more when they were read.
    pub are_all: bool,
    outbox: Outbox,
}

enum Outbox {
    Main,
    Tenant(TenantDatabase),
}

/// Tenants that may have unpublished events for which the relay was not notified.
#[derive(Debug, Default)]
pub struct Unnotified {
    /// The ordering keys of those events.
    pub keys: Vec<OrderingKey>,
    /// Dirty flags that may be cleared once the tenant's outbox was found empty.
    pub marks: Vec<DirtyFlag>,
    /// The flag after which to continue, when there are more.
    pub next: Option<DirtyFlag>,
}

/// Unpublished events of an ordering key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The ordering key.
    pub key: OrderingKey,
    /// Their number.
    pub events: u64,
    /// When the oldest of them happened.
    pub oldest: Option<Timestamp>,
}

/// The state of the outboxes.
#[derive(Debug, Default)]
pub struct OutboxStatus {
    /// The keys with unpublished events, the oldest first.
    pub backlogs: Vec<Backlog>,
    /// Tenants whose database could not be read, and why.
    pub unknown: Vec<(TenantId, Error)>,
}

impl OperatorServices {
    /// The unpublished events in the main database and in the databases of dirty tenants.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn outbox_status(&self) -> Result<OutboxStatus> {
        let mut main = self.core.main().read().await?;
        let mut backlogs: HashMap<OrderingKey, Backlog> = HashMap::new();
        let mut add = |key, (events, oldest): (u64, Option<Timestamp>)| {
            if events > 0 {
                let backlog = backlogs.entry(key).or_insert(Backlog { key, events: 0, oldest });
                backlog.events += events;
                backlog.oldest = backlog.oldest.min(oldest);
            }
        };
        for (key, events, oldest) in outbox::count_unpublished_by_tenant(&mut main).await? {
            add(key, (events, oldest));
        }
        let (mut unknown, mut after) = (Vec::new(), None);
        loop {
            let marks = dirty_tenants::list_before(&mut main, self.core.clock().now().plus(MAX_CLOCK_SKEW), after, FLAG_BATCH).await?;
            for DirtyFlag { tenant_id, .. } in &marks {
                let counted = async {
                    let Some(database) = open_tenant(&self.core, *tenant_id).await? else { return Ok((0, None)) };
                    Ok(outbox::count_unpublished(&mut database.read().await?).await?)
                };
                match counted.await {
                    Ok(counted) => add(Some(*tenant_id), counted),
                    Err(error) => unknown.push((*tenant_id, error)),
                }
            }
            after = marks.last().copied();
            if marks.len() < FLAG_BATCH as usize {
                break;
            }
        }
        let mut backlogs: Vec<_> = backlogs.into_values().collect();
        backlogs.sort_by_key(|backlog| backlog.oldest);
        Ok(OutboxStatus { backlogs, unknown })
    }

    /// The events of a tenant's database, or of the main database, published or not, the latest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant does not exist (any more), or when a database is down.
    pub async fn list_events(&self, key: OrderingKey, limit: u32) -> Result<Vec<Event>> {
        match key {
            None => Ok(outbox::list(&mut self.core.main().read().await?, limit).await?),
            Some(tenant_id) => {
                let database = open_tenant(&self.core, tenant_id).await?.ok_or(Error::NotFound(ResourceKind::Tenant))?;
                Ok(outbox::list(&mut database.read().await?, limit).await?)
            }
        }
    }

    /// Purges events of the main database whose retention is over.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn purge_platform_events(&self) -> Result<()> {
        let before = self.core.clock().now().minus(self.core.settings().event_retention);
        while purge_batch(self.core.main().begin().await?, before).await? {}
        Ok(())
    }
}

impl EventServices {
    /// Takes or renews the leases of ordering keys. Returns for each whether this instance holds it.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn hold_outboxes(&self, keys: &[OrderingKey]) -> Result<Vec<bool>> {
        let now = self.core.clock().now();
        let names: Vec<_> = keys.iter().map(lease).collect();
        // Always in one order: otherwise two instances could deadlock.
        let mut order: Vec<_> = (0..names.len()).collect();
        order.sort_by_key(|place| &names[*place]);
        let sorted: Vec<_> = order.iter().map(|place| names[*place].clone()).collect();
        let mut tx = self.core.main().begin().await?;
        let held = leases::take_all(&mut tx, &sorted, self.core.instance, now, now.plus(OUTBOX_LEASE)).await?;
        tx.commit().await?;
        let mut by_key = vec![false; names.len()];
        order.into_iter().zip(held).for_each(|(place, held)| by_key[place] = held);
        Ok(by_key)
    }

    /// Releases leases, and clears dirty flags whose tenants' outboxes were found empty after they were [old](Unnotified::marks).
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn release_outboxes(&self, keys: &[OrderingKey], marks: &[DirtyFlag]) -> Result<()> {
        let mut tx = self.core.main().begin().await?;
        for name in keys.iter().map(lease).collect::<BTreeSet<_>>() {
            leases::release(&mut tx, &name, self.core.instance);
        }
        for mark in marks {
            dirty_tenants::clear(&mut tx, *mark);
        }
        Ok(tx.commit().await?)
    }

    /// The first unpublished events of an ordering key; none when the tenant is gone.
    ///
    /// # Errors
    /// [`Error::TenantUnavailable`] while the tenant's database is unavailable; or when a database is down.
    pub async fn unpublished(&self, key: OrderingKey, limit: u32) -> Result<Unpublished> {
        let mut main = self.core.main().read().await?;
        let mut events = outbox::list_unpublished_of(&mut main, key, limit).await?;
        if let Some(tenant_id) = key.filter(|_| events.iter().any(|event| event.kind == EventKind::TenantDeleted)) {
            // The remaining events of a tenant that is being deleted are drained to the main database first, and are published
            // before that.
            let tenant = tenants::find(&mut main, tenant_id).await?;
            if tenant.is_some_and(|tenant| tenant.provisioning == Provisioning::Deleting) {
                events = outbox::list_drained(&mut main, tenant_id, limit).await?;
                return Ok(Unpublished { events, are_all: false, outbox: Outbox::Main });
            }
        }
        drop(main);
        let is_short = |events: &Vec<Event>| events.len() < limit as usize;
        let of_main = |events: Vec<Event>| Unpublished { are_all: key.is_none() && is_short(&events), events, outbox: Outbox::Main };
        let Some(tenant_id) = key.filter(|_| events.is_empty()) else { return Ok(of_main(events)) };
        // The events of a tenant that is being deleted are drained to the main database.
        let Some(database) = open_tenant(&self.core, tenant_id).await? else { return Ok(of_main(events)) };
        let events = outbox::list_unpublished(&mut database.read().await?, limit).await?;
        Ok(Unpublished { are_all: is_short(&events), events, outbox: Outbox::Tenant(database) })
    }

    /// Records that the first `count` of these events are published.
    ///
    /// # Errors
    /// When the database is down, or the tenant has moved to another server meanwhile. Then the events are published again.
    pub async fn record_published(&self, unpublished: &Unpublished, count: usize) -> Result<()> {
        record_published(&self.core, unpublished, count).await
    }

    /// Finds events that a crash left unpublished. At the start it returns every dirty tenant, later only those flagged long ago,
    /// since a tenant that is written to is flagged again.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_unnotified(&self, at_start: bool, after: Option<DirtyFlag>) -> Result<Unnotified> {
        let now = self.core.clock().now();
        let old = now.minus(OLD_AFTER);
        // At the start, even the flags that an instance with a fast clock has set.
        let before = if at_start { now.plus(MAX_CLOCK_SKEW) } else { old };
        let mut main = self.core.main().read().await?;
        let keys = outbox::list_unpublished_tenants(&mut main).await?;
        let marks = dirty_tenants::list_before(&mut main, before, after, FLAG_BATCH).await?;
        let next = marks.last().copied().filter(|_| marks.len() == FLAG_BATCH as usize);
        let keys = keys.into_iter().chain(marks.iter().map(|mark| Some(mark.tenant_id))).collect();
        Ok(Unnotified { keys, marks: marks.into_iter().filter(|mark| mark.marked_at < old).collect(), next })
    }
}

async fn record_published(core: &Core, unpublished: &Unpublished, count: usize) -> Result<()> {
    let (now, published) = (core.clock().now(), &unpublished.events[..count.min(unpublished.events.len())]);
    failpoint!("outbox.noting");
    match &unpublished.outbox {
        Outbox::Main => record_published_in(core.main().begin().await?, published, now).await?,
        Outbox::Tenant(database) => record_published_in(database.begin().await?, published, now).await?,
    }
    failpoint!("outbox.noted");
    Ok(())
}

/// Drains the unpublished events of a tenant that is being deleted to the main database, before the tenant's own is dropped.
pub(crate) async fn drain_events(core: &Core, tenant: &Tenant) -> Result<()> {
    if !core.parts.tenant_databases.exists(&tenant.location).await? {
        return Ok(());
    }
    let database = open_outbox(core, tenant)?;
    loop {
        let events = outbox::list_unpublished(&mut database.read().await?, DRAIN_BATCH).await?;
        if events.is_empty() {
            return Ok(());
        }
        let mut tx = core.main().begin().await?;
        outbox::take_over(&mut tx, &events);
        tx.commit().await?;
        failpoint!("tenant.events_taken_over");
        let count = events.len();
        record_published(core, &Unpublished { events, are_all: false, outbox: Outbox::Tenant(database.clone()) }, count).await?;
    }
}

/// Purges events of a tenant's database whose retention is over.
pub(crate) async fn purge_events(core: &Core, database: &TenantDatabase) -> Result<()> {
    let before = core.clock().now().minus(core.settings().event_retention);
    while purge_batch(database.begin().await?, before).await? {}
    Ok(())
}

/// A tenant's database, for its event handlers. None when the tenant is deleted or being deleted.
///
/// # Errors
/// [`Error::TenantUnavailable`] while it is unavailable.
pub(crate) async fn open_tenant(core: &Core, tenant_id: TenantId) -> Result<Option<TenantDatabase>> {
    let tenant = tenants::find(&mut core.main().read().await?, tenant_id).await?;
    match tenant.filter(|tenant| tenant.provisioning == Provisioning::Active) {
        Some(tenant) if tenant.writes_paused_at.is_some() => Err(Error::TenantUnavailable(UnavailableReason::Moving)),
        Some(tenant) => open_outbox(core, &tenant).map(Some),
        None => Ok(None),
    }
}

fn open_outbox(core: &Core, tenant: &Tenant) -> Result<TenantDatabase> {
    // The relay does not migrate: the operator does, in waves, or the first request.
    match closure(tenant) {
        None => Ok(core.parts.tenant_databases.open(&tenant.location)?),
        Some(closure) => Err(Error::TenantUnavailable(closure)),
    }
}

/// Records events of an outbox as published.
async fn record_published_in<S: Scope>(mut tx: Tx<S>, published: &[Event], now: Timestamp) -> Result<()> {
    outbox::mark_published(&mut tx, published, now);
    Ok(tx.commit().await?)
}

/// Returns whether there may be more.
async fn purge_batch<S: Scope>(mut tx: Tx<S>, before: Timestamp) -> Result<bool> {
    let published = outbox::delete_published_before(&mut tx, before, PURGE_BATCH).await?;
    let handled = handled_events::delete_before(&mut tx, before, PURGE_BATCH).await?;
    tx.commit().await?;
    Ok(published.max(handled) == u64::from(PURGE_BATCH))
}

/// The name of the lease on publishing a key's events.
fn lease(key: &OrderingKey) -> String {
    key.map_or_else(|| "outbox".to_owned(), |tenant_id: TenantId| format!("outbox of {tenant_id}"))
}
