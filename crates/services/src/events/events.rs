//! Events. Each is recorded in the outbox by the transaction of the change that it describes.
//!
//! Only an [`EventTx`] can emit an event, and its tenant's dirty flag was set before it began. The commit notifies the relay; a
//! crash between the two leaves the flag, and the relay checks the outbox of every flagged tenant.

use std::{
    collections::HashSet,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use domain::{Event, EventId, EventKind, Result, TenantId, UserId};
use futures_util::future::BoxFuture;
use models::{Main, Scope, Tenant, TenantDatabase, Tx, dirty_tenants, outbox};
use moka::future::Cache;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::{Core, EventServices};

/// How long an instance relies on a dirty flag that it set. A transaction that began within this time has to end before the relay
/// may [clear the flag](crate::events::outbox).
const FLAG_LIFE: Duration = Duration::from_secs(10);
/// How many flags an instance remembers. An evicted one costs one more statement.
const MAX_FLAGS: u64 = 50_000;

/// The scope within which events are published in order: a tenant, or none for events that concern no tenant.
pub type OrderingKey = Option<TenantId>;

tokio::task_local! {
    static TRACEPARENT: String;
}

/// Runs a request as part of a trace (W3C Trace Context's `traceparent`), which the events that it emits carry, too.
pub fn traced<F: Future>(traceparent: String, request: F) -> impl Future<Output = F::Output> {
    TRACEPARENT.scope(traceparent, request)
}

/// The ordering keys with new events to publish.
#[derive(Default)]
pub(crate) struct Notified {
    keys: Mutex<HashSet<OrderingKey>>,
    notify: Notify,
}

impl Notified {
    fn add(&self, key: OrderingKey) {
        self.keys.lock().insert(key);
        self.notify.notify_one();
    }
}

/// The tenants whose dirty flag this instance set recently.
pub(crate) fn dirty_flags() -> Cache<TenantId, ()> {
    Cache::builder().max_capacity(MAX_FLAGS).time_to_live(FLAG_LIFE).build()
}

impl EventServices {
    /// Has the relay check for new events of this key.
    pub fn notify(&self, key: OrderingKey) {
        self.core.notified.add(key);
    }

    /// Waits until there are new events to publish, and returns their keys.
    pub async fn notified(&self) -> Vec<OrderingKey> {
        let notified = &self.core.notified;
        loop {
            let keys: Vec<_> = notified.keys.lock().drain().collect();
            if !keys.is_empty() {
                return keys;
            }
            notified.notify.notified().await;
        }
    }
}

/// A transaction that can emit events: the relay finds them even if this process dies right after the commit.
pub(crate) struct EventTx<S: Scope> {
    tx: Tx<S>,
    notified: Arc<Notified>,
}

impl<S: Scope> EventTx<S> {
    /// Adds an event to the outbox: it is published if, and only if, the transaction commits.
    pub(crate) fn emit(&mut self, event: &Event) {
        outbox::push(&mut self.tx, event);
        let (notified, key) = (Arc::clone(&self.notified), event.tenant_id);
        self.tx.after_commit(move || notified.add(key));
    }

    /// Emits an event that accompanies no other change.
    pub(crate) async fn emit_and_commit(mut self, event: &Event) -> Result<()> {
        self.emit(event);
        Ok(self.commit().await?)
    }

    pub(crate) async fn commit(self) -> models::Result<()> {
        self.tx.commit().await
    }
}

impl<S: Scope> Deref for EventTx<S> {
    type Target = Tx<S>;

    fn deref(&self) -> &Tx<S> {
        &self.tx
    }
}

impl<S: Scope> DerefMut for EventTx<S> {
    fn deref_mut(&mut self) -> &mut Tx<S> {
        &mut self.tx
    }
}

/// Begins a transaction in the main database that can emit events. Its outbox needs no dirty flag: the relay always looks there.
pub(crate) async fn begin_main(core: &Core) -> Result<EventTx<Main>> {
    Ok(EventTx { tx: core.main().begin().await?, notified: Arc::clone(&core.notified) })
}

/// Begins a transaction in a tenant's database that can emit events.
pub(crate) async fn begin_in(core: &Core, database: &TenantDatabase) -> Result<EventTx<Tenant>> {
    set_dirty(core, database.tenant_id()).await?;
    Ok(EventTx { tx: database.begin().await?, notified: Arc::clone(&core.notified) })
}

/// Boxed, so that the cache's code is not generated again in every crate that awaits it.
fn set_dirty(core: &Core, tenant_id: TenantId) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move {
        let set = async {
            let mut tx = core.main().begin().await?;
            dirty_tenants::mark(&mut tx, tenant_id, core.clock().now());
            tx.commit().await
        };
        let flagged = core.dirty_flags.try_get_with(tenant_id, set).await;
        flagged.map_err(|error| domain::Error::from(error.duplicate()))
    })
}

/// Creates an event that happens now.
pub(crate) fn event(core: &Core, kind: EventKind, tenant_id: Option<TenantId>, user_id: Option<UserId>, data: &Value) -> Event {
    let (id, at) = (EventId::generate(core.clock()), core.clock().now());
    let traceparent = TRACEPARENT.try_with(Clone::clone).ok();
    Event { id, kind, tenant_id, user_id, at, data: data.to_string(), traceparent }
}

/// Creates an event for the audit log.
pub(crate) fn audit_event(core: &Core, action: &str, tenant_id: Option<TenantId>, user_id: Option<UserId>, mut data: Value) -> Event {
    data["action"] = action.into();
    event(core, EventKind::AuditLog, tenant_id, user_id, &data)
}
