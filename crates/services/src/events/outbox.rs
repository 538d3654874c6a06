//! The outboxes, for whoever publishes what is in them: the relay.
//!
//! Events of one key (a tenant's, or those that concern none) are published by one instance at a time, which holds a lease, in
//! their order: first what the main database has of a tenant, since that tells of its making, then what the tenant's own has.
//! Where there is something to publish is told by the transaction that wrote it; what a crash left untold is found by the marks.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use domain::{Closure, Error, Event, EventKind, Noun, Provisioning, Result, Tenant, TenantId, Timestamp, failpoint};
use models::{Mark, Scope, TenantDatabase, Tx, dirty_tenants, handled_events, leases, outbox, tenants};

use crate::{Core, EventServices, OperatorServices, OrderingKey, tenants::migrations::closure};

/// How long a lease of a key is held without being prolonged.
pub const OUTBOX_LEASE: Duration = Duration::from_secs(10);
/// When a mark is old: nobody who went by it can still be writing. Only then may it be cleared.
const OLD: Duration = Duration::from_secs(60);
/// Longer than any clock is ahead of another.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How many marks are looked at in one go.
const MARKS_AT_ONCE: u32 = 1_000;
/// How many events of a tenant that is being deleted are taken over in one go.
const TAKEN_OVER: u32 = 500;
/// How many old ones are forgotten in one go.
const FORGOTTEN_AT_ONCE: u32 = 1_000;

/// The first events of a key that are not published yet.
pub struct Unpublished {
    /// In the order in which they are to be published; empty when there are none.
    pub events: Vec<Event>,
    /// Whether there were no more when they were read.
    pub are_all: bool,
    outbox: Outbox,
}

enum Outbox {
    Main,
    Tenant(TenantDatabase),
}

/// Tenants that may have unpublished events of which nobody was told.
#[derive(Debug, Default)]
pub struct Unnotified {
    /// Whose events.
    pub keys: Vec<OrderingKey>,
    /// Marks that may be cleared once the tenant's outbox was found empty.
    pub marks: Vec<Mark>,
    /// After which mark to go on, when there are more.
    pub next: Option<Mark>,
}

/// Events of a key that wait to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Whose.
    pub key: OrderingKey,
    /// How many.
    pub events: u64,
    /// When the first of them happened.
    pub oldest: Option<Timestamp>,
}

/// What waits in the outboxes.
#[derive(Debug, Default)]
pub struct OutboxStatus {
    /// Where there is something, what is oldest first.
    pub backlogs: Vec<Backlog>,
    /// Tenants whose database could not be asked, and why.
    pub unknown: Vec<(TenantId, Error)>,
}

impl OperatorServices {
    /// What waits to be published, in the main database and in those of tenants that are marked.
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
            let marks = dirty_tenants::list_before(&mut main, self.core.clock().now().plus(FOREVER), after, MARKS_AT_ONCE).await?;
            for Mark { tenant_id, .. } in &marks {
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
            if marks.len() < MARKS_AT_ONCE as usize {
                break;
            }
        }
        let mut backlogs: Vec<_> = backlogs.into_values().collect();
        backlogs.sort_by_key(|backlog| backlog.oldest);
        Ok(OutboxStatus { backlogs, unknown })
    }

    /// The events of a tenant's database, or of the main one, published or not, the latest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such tenant (any more), or a database is down.
    pub async fn list_events(&self, key: OrderingKey, limit: u32) -> Result<Vec<Event>> {
        match key {
            None => Ok(outbox::list(&mut self.core.main().read().await?, limit).await?),
            Some(tenant_id) => {
                let database = open_tenant(&self.core, tenant_id).await?.ok_or(Error::NotFound(Noun::Tenant))?;
                Ok(outbox::list(&mut database.read().await?, limit).await?)
            }
        }
    }

    /// Forgets events of the main database that were published or handled long ago.
    ///
    /// # Errors
    /// When it is down.
    pub async fn purge_platform_events(&self) -> Result<()> {
        let before = self.core.clock().now().minus(self.core.settings().event_retention);
        while forget_some(self.core.main().begin().await?, before).await? {}
        Ok(())
    }
}

impl EventServices {
    /// Takes the leases of keys, or prolongs them. Answers for each whether this instance has it.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn hold_outboxes(&self, keys: &[OrderingKey]) -> Result<Vec<bool>> {
        let now = self.core.clock().now();
        let names: Vec<_> = keys.iter().map(lease).collect();
        // In one order everywhere: else two instances could wait for each other.
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

    /// Gives leases of keys up, and clears marks whose tenants' outboxes were found empty after they were [old](Unnotified::marks).
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn release_outboxes(&self, keys: &[OrderingKey], marks: &[Mark]) -> Result<()> {
        let mut tx = self.core.main().begin().await?;
        for name in keys.iter().map(lease).collect::<BTreeSet<_>>() {
            leases::release(&mut tx, &name, self.core.instance);
        }
        for mark in marks {
            dirty_tenants::clear(&mut tx, *mark);
        }
        Ok(tx.commit().await?)
    }

    /// The first events of a key that are not published yet; none when the tenant is gone.
    ///
    /// # Errors
    /// [`Error::Closed`] while the tenant's database can't be used; or when a database is down.
    pub async fn unpublished(&self, key: OrderingKey, limit: u32) -> Result<Unpublished> {
        let mut main = self.core.main().read().await?;
        let mut events = outbox::list_unpublished_of(&mut main, key, limit).await?;
        if let Some(tenant_id) = key.filter(|_| events.iter().any(|event| event.kind == EventKind::TenantDeleted)) {
            // What a tenant that is being deleted still has to tell comes here before it goes, and before that.
            let tenant = tenants::find(&mut main, tenant_id).await?;
            if tenant.is_some_and(|tenant| tenant.provisioning == Provisioning::Deleting) {
                events = outbox::list_taken_over(&mut main, tenant_id, limit).await?;
                return Ok(Unpublished { events, are_all: false, outbox: Outbox::Main });
            }
        }
        drop(main);
        let is_short = |events: &Vec<Event>| events.len() < limit as usize;
        let of_main = |events: Vec<Event>| Unpublished { are_all: key.is_none() && is_short(&events), events, outbox: Outbox::Main };
        let Some(tenant_id) = key.filter(|_| events.is_empty()) else { return Ok(of_main(events)) };
        // What is being deleted is taken over by the main database.
        let Some(database) = open_tenant(&self.core, tenant_id).await? else { return Ok(of_main(events)) };
        let events = outbox::list_unpublished(&mut database.read().await?, limit).await?;
        Ok(Unpublished { are_all: is_short(&events), events, outbox: Outbox::Tenant(database) })
    }

    /// Notes that the first so many of these events are published.
    ///
    /// # Errors
    /// When the database is down, or the tenant has moved to another server meanwhile. Then they will be published again.
    pub async fn record_published(&self, unpublished: &Unpublished, count: usize) -> Result<()> {
        record_published(&self.core, unpublished, count).await
    }

    /// Finds what a crash left unpublished: at the start whatever is marked, else only what was marked long ago, since whoever
    /// writes marks again.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_unnotified(&self, at_start: bool, after: Option<Mark>) -> Result<Unnotified> {
        let now = self.core.clock().now();
        let old = now.minus(OLD);
        // At the start, even what a clock that is ahead of ours has marked.
        let before = if at_start { now.plus(FOREVER) } else { old };
        let mut main = self.core.main().read().await?;
        let keys = outbox::list_unpublished_tenants(&mut main).await?;
        let marks = dirty_tenants::list_before(&mut main, before, after, MARKS_AT_ONCE).await?;
        let next = marks.last().copied().filter(|_| marks.len() == MARKS_AT_ONCE as usize);
        let keys = keys.into_iter().chain(marks.iter().map(|mark| Some(mark.tenant_id))).collect();
        Ok(Unnotified { keys, marks: marks.into_iter().filter(|mark| mark.marked_at < old).collect(), next })
    }
}

async fn record_published(core: &Core, unpublished: &Unpublished, count: usize) -> Result<()> {
    let (now, published) = (core.clock().now(), &unpublished.events[..count.min(unpublished.events.len())]);
    failpoint!("outbox.noting");
    match &unpublished.outbox {
        Outbox::Main => note_in(core.main().begin().await?, published, now).await?,
        Outbox::Tenant(database) => note_in(database.begin().await?, published, now).await?,
    }
    failpoint!("outbox.noted");
    Ok(())
}

/// Brings the events of a tenant that is being deleted, that nobody was told of, to the main database, before its own goes.
pub(crate) async fn drain_events(core: &Core, tenant: &Tenant) -> Result<()> {
    if !core.parts.tenant_databases.exists(&tenant.place).await? {
        return Ok(());
    }
    let database = open_outbox(core, tenant)?;
    loop {
        let events = outbox::list_unpublished(&mut database.read().await?, TAKEN_OVER).await?;
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

/// Forgets events of a tenant's database that were published or handled long ago.
pub(crate) async fn purge_events(core: &Core, database: &TenantDatabase) -> Result<()> {
    let before = core.clock().now().minus(core.settings().event_retention);
    while forget_some(database.begin().await?, before).await? {}
    Ok(())
}

/// The database of a tenant, for what follows of its events. Nothing when the tenant is gone, or going.
///
/// # Errors
/// [`Error::Closed`] while it can't be used.
pub(crate) async fn open_tenant(core: &Core, tenant_id: TenantId) -> Result<Option<TenantDatabase>> {
    let tenant = tenants::find(&mut core.main().read().await?, tenant_id).await?;
    match tenant.filter(|tenant| tenant.provisioning == Provisioning::Active) {
        Some(tenant) if tenant.writes_paused_at.is_some() => Err(Error::Closed(Closure::Moving)),
        Some(tenant) => open_outbox(core, &tenant).map(Some),
        None => Ok(None),
    }
}

fn open_outbox(core: &Core, tenant: &Tenant) -> Result<TenantDatabase> {
    // Whoever publishes does not migrate: the operator does that in waves, or the first request.
    match closure(tenant) {
        None => Ok(core.parts.tenant_databases.open(&tenant.place)?),
        Some(closure) => Err(Error::Closed(closure)),
    }
}

/// Notes events of an outbox as published.
async fn note_in<S: Scope>(mut tx: Tx<S>, published: &[Event], now: Timestamp) -> Result<()> {
    outbox::mark_published(&mut tx, published, now);
    Ok(tx.commit().await?)
}

/// Answers whether there may be more.
async fn forget_some<S: Scope>(mut tx: Tx<S>, before: Timestamp) -> Result<bool> {
    let published = outbox::delete_published_before(&mut tx, before, FORGOTTEN_AT_ONCE).await?;
    let handled = handled_events::delete_before(&mut tx, before, FORGOTTEN_AT_ONCE).await?;
    tx.commit().await?;
    Ok(published.max(handled) == u64::from(FORGOTTEN_AT_ONCE))
}

/// A key's lease: who publishes its events.
fn lease(key: &OrderingKey) -> String {
    key.map_or_else(|| "outbox".to_owned(), |tenant_id: TenantId| format!("outbox of {tenant_id}"))
}
