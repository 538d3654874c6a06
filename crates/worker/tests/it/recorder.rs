//! A bus that remembers what it was given.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{Event, EventId};
use futures_util::{FutureExt, future::BoxFuture};
use models::tenants;
use services::{EventKey, Services};
use testkit::TestApp;
use tokio_util::sync::CancellationToken;
use worker::{Bus, Published, Relay};

/// How long is waited for what takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Recorder {
    seen: Mutex<Vec<(Event, Instant)>>,
    is_down: AtomicBool,
    /// How long it takes for each event.
    takes: Duration,
}

impl Recorder {
    pub(crate) fn slow(takes: Duration) -> Self {
        Self { takes, ..Self::default() }
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    pub(crate) fn seen(&self) -> Vec<Event> {
        self.seen.lock().unwrap().iter().map(|(event, _)| event.clone()).collect()
    }

    /// When this event came first.
    pub(crate) fn seen_at(&self, id: EventId) -> Option<Instant> {
        self.seen.lock().unwrap().iter().find(|(event, _)| event.id == id).map(|(_, at)| *at)
    }

    /// The first deliveries of a key's events, and how many there were of each.
    pub(crate) fn first_deliveries(&self, key: EventKey) -> (Vec<Event>, HashMap<EventId, usize>) {
        let (mut first, mut counts) = (Vec::new(), HashMap::new());
        for event in self.seen().into_iter().filter(|event| event.tenant_id == key) {
            let count = counts.entry(event.id).or_insert(0);
            *count += 1;
            if *count == 1 {
                first.push(event);
            }
        }
        (first, counts)
    }
}

impl Bus for Recorder {
    fn publish<'a>(&'a self, _: EventKey, events: &'a [Event]) -> BoxFuture<'a, Published> {
        async move {
            for (count, event) in events.iter().enumerate() {
                tokio::time::sleep(self.takes).await;
                if self.is_down.load(Ordering::Relaxed) {
                    return Published { count, pause: Some(Duration::from_millis(50)) };
                }
                self.seen.lock().unwrap().push((event.clone(), Instant::now()));
            }
            Published { count: events.len(), pause: None }
        }
        .boxed()
    }

    fn batch(&self) -> u32 {
        10
    }

    fn keys_at_once(&self) -> usize {
        8
    }
}

/// A relay at work. Stopped, it has flushed.
pub(crate) struct Running {
    stop: CancellationToken,
    relay: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(services: &Services, bus: Arc<dyn Bus>) -> Self {
        let stop = CancellationToken::new();
        Self { relay: tokio::spawn(Relay::new(services.clone(), bus).run(stop.clone())), stop }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.relay.await.unwrap();
    }
}

/// Waits until nothing waits to be published.
pub(crate) async fn drained(app: &TestApp) {
    let began = Instant::now();
    loop {
        let status = app.services().outbox_status().await.unwrap();
        if status.backlogs.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The database of a tenant.
pub(crate) async fn database_of(app: &TestApp, tenant: &str) -> models::TenantDatabase {
    let (main, directory) = app.databases().open();
    let found = tenants::find(&mut main.read().await.unwrap(), tenant.parse().unwrap()).await.unwrap().unwrap();
    directory.open(&found.place).unwrap()
}

/// Makes as if nobody had looked into a tenant's files, as after direct uploads.
#[expect(clippy::disallowed_methods, reason = "tells nothing")]
pub(crate) async fn unprocess(app: &TestApp, tenant: &str) {
    let mut tx = database_of(app, tenant).await.begin().await.unwrap();
    tx.execute("UPDATE files SET processed_at = NULL, detected_mime_type = NULL", Vec::new()).await.unwrap();
    tx.commit().await.unwrap();
}
