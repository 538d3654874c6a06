//! Events: what happened, for the outbox of the transaction in which it happens.
//!
//! `tell` is called with what an event tells of, and the relay learns of it with the commit. A crash between the two leaves a
//! mark of the tenant, made before its transaction was begun: whoever finds it looks into the outbox.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::{Event, EventId, EventKind, Result, TenantId, UserId};
use models::{Scope, TenantDatabase, TenantTx, Tx, dirty_tenants, outbox};
use moka::future::Cache;
use serde_json::Value;
use tokio::sync::Notify;

use crate::Services;

/// How long an instance goes by its own mark of a tenant. A transaction that began in this time has to end before the mark is
/// [old](crate::events::outbox).
const MARK_LIFE: Duration = Duration::from_secs(10);
/// How many marks an instance knows of: one more is one more statement, no more.
const MARKS: u64 = 50_000;

/// Whose events are published in order, one after the other: a tenant's, or those that concern none.
pub type EventKey = Option<TenantId>;

tokio::task_local! {
    static TRACEPARENT: String;
}

/// Runs what somebody asked for whose request is part of this trace (W3C Trace Context's `traceparent`): its events bear it, too.
pub fn traced<F: Future>(traceparent: String, request: F) -> impl Future<Output = F::Output> {
    TRACEPARENT.scope(traceparent, request)
}

/// Whose events there are to publish.
#[derive(Default)]
pub(crate) struct Woken {
    keys: Mutex<HashSet<EventKey>>,
    notify: Notify,
}

impl Woken {
    pub(crate) fn wake(&self, key: EventKey) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.notify.notify_one();
    }
}

/// The tenants that this instance marked just now.
pub(crate) fn marks() -> Cache<TenantId, ()> {
    Cache::builder().max_capacity(MARKS).time_to_live(MARK_LIFE).build()
}

impl Services {
    /// Something that happened just now.
    pub(crate) fn event(&self, kind: EventKind, tenant_id: Option<TenantId>, user_id: Option<UserId>, data: &Value) -> Event {
        let (id, at) = (EventId::generate(self.clock()), self.clock().now());
        let traceparent = TRACEPARENT.try_with(Clone::clone).ok();
        Event { id, kind, tenant_id, user_id, at, data: data.to_string(), traceparent }
    }

    /// Something that an auditor wants to know.
    pub(crate) fn audit(&self, action: &str, tenant_id: Option<TenantId>, user_id: Option<UserId>, mut data: Value) -> Event {
        data["action"] = action.into();
        self.event(EventKind::AuditLog, tenant_id, user_id, &data)
    }

    /// Adds an event to the outbox with which it happens: it is published if, and only if, the transaction is committed.
    pub(crate) fn tell<S: Scope>(&self, tx: &mut Tx<S>, event: &Event) {
        outbox::push(tx, event);
        let (woken, key) = (Arc::clone(&self.0.woken), event.tenant_id);
        tx.after_commit(move || woken.wake(key));
    }

    /// Adds an event that tells of nothing else in the database.
    pub(crate) async fn tell_alone<S: Scope>(&self, mut tx: Tx<S>, event: &Event) -> Result<()> {
        self.tell(&mut tx, event);
        Ok(tx.commit().await?)
    }

    /// Begins a transaction in a tenant's database in which events may be told.
    pub(crate) async fn begin_in(&self, database: &TenantDatabase) -> Result<TenantTx> {
        self.mark_dirty(database.tenant_id()).await?;
        Ok(database.begin().await?)
    }

    async fn mark_dirty(&self, tenant_id: TenantId) -> Result<()> {
        let mark = async {
            let mut tx = self.main().begin().await?;
            dirty_tenants::mark(&mut tx, tenant_id, self.clock().now());
            tx.commit().await
        };
        let marked = self.0.marks.try_get_with(tenant_id, mark).await;
        marked.map_err(|error| domain::Error::from(error.duplicate()))
    }

    /// Has the relay look whether there is something of this key to publish.
    pub fn wake(&self, key: EventKey) {
        self.0.woken.wake(key);
    }

    /// Waits until there are events to publish of somebody whom nobody was told of yet. Answers of whom.
    pub async fn woken(&self) -> Vec<EventKey> {
        loop {
            let keys: Vec<_> = self.0.woken.keys.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
            if !keys.is_empty() {
                return keys;
            }
            self.0.woken.notify.notified().await;
        }
    }
}
