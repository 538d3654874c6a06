//! The relay: from the outboxes to the bus.
//!
//! The relay sleeps until a transaction of this process reports an event. It then acquires the lease of the event's ordering key
//! and publishes the unpublished events of its outbox, in batches that alternate between keys. It keeps a lease for a moment
//! after that, since further events often follow. Events without a notification (the process crashed, or another process had the
//! lease) are found by a sweep over all dirty flags, with one statement.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use domain::{Error, TenantId, UnavailableReason};
use futures_util::FutureExt;
use services::{DirtyFlag, EventServices, OUTBOX_LEASE, OrderingKey, Unnotified};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::backoff,
    bus::{Bus, Published},
};

/// How long a lease is kept after its outbox is drained.
const LINGER: Duration = Duration::from_millis(200);
/// How much longer a release is delayed, so that several leases are released together.
const RELEASE_DELAY: Duration = Duration::from_millis(50);
/// The delay before another attempt to acquire a lease that another instance has.
const LEASE_RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long before its expiry a lease is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(5);
/// The interval of the sweep for events without a notification.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The delay after a failure: at first and at most.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(200);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);
/// The delay before a retry for an unavailable tenant: at first and at most.
const MIN_UNAVAILABLE_DELAY: Duration = Duration::from_secs(30);
const MAX_UNAVAILABLE_DELAY: Duration = Duration::from_secs(15 * 60);
/// How long a shutdown waits for the pending events to be published.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes the events in the outboxes.
pub struct Relay {
    services: EventServices,
    bus: Arc<dyn Bus>,
    /// Keys with unpublished events, whose leases this relay does not have yet.
    wanted: HashSet<OrderingKey>,
    /// Deferred keys, and until when.
    deferred: HashMap<OrderingKey, Instant>,
    /// Deferred keys of unavailable tenants. A notification means that the tenant is available again.
    unavailable: HashSet<OrderingKey>,
    leased: HashMap<OrderingKey, Leased>,
    /// Leased keys that wait for their next batch.
    queue: VecDeque<OrderingKey>,
    batches: JoinSet<(OrderingKey, BatchOutcome)>,
    /// The number of consecutive failures by key.
    failures: HashMap<OrderingKey, u32>,
    /// Dirty flags to clear once the tenant's outbox is drained.
    marks: HashMap<TenantId, DirtyFlag>,
    /// The dirty flag after which the next sweep continues.
    next_mark: Option<DirtyFlag>,
    /// Until when no leases are acquired, because the main database failed.
    no_leases_before: Option<Instant>,
}

/// The state of a key whose lease this relay has.
struct Leased {
    lease_until: Instant,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    /// A batch is in flight. `more`: events were reported since it began. `lost`: the lease was lost since.
    Publishing {
        more: bool,
        lost: bool,
    },
    /// Its outbox is drained. The lease is released after `until`, unless further events are reported.
    Lingering {
        until: Instant,
    },
    /// It is deferred, and its lease is to be released.
    Deferred,
}

impl State {
    fn needs_lease(self) -> bool {
        matches!(self, Self::Queued | Self::Publishing { lost: false, .. })
    }
}

/// The outcome of a key's batch.
enum BatchOutcome {
    /// The outbox is drained.
    Empty,
    /// The outbox may contain more events.
    More,
    /// The batch failed and is to be retried.
    Failed(Error),
    /// The bus asks to continue after a delay.
    Paused(Duration),
}

impl Relay {
    /// A relay that publishes to this bus.
    #[must_use]
    pub fn new(services: EventServices, bus: Arc<dyn Bus>) -> Self {
        Self {
            services,
            bus,
            wanted: HashSet::new(),
            deferred: HashMap::new(),
            unavailable: HashSet::new(),
            leased: HashMap::new(),
            queue: VecDeque::new(),
            batches: JoinSet::new(),
            failures: HashMap::new(),
            marks: HashMap::new(),
            next_mark: None,
            no_leases_before: None,
        }
    }

    /// Publishes events until `stop` is cancelled, then the pending ones, within a timeout of some seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        let services = self.services.clone();
        let mut next_sweep = Instant::now();
        let mut at_start = true;
        while !stop.is_cancelled() {
            if Instant::now() >= next_sweep {
                at_start = !self.sweep(at_start).await;
                next_sweep = Instant::now() + SWEEP_INTERVAL;
            }
            let wake = self.advance().await.unwrap_or(next_sweep).min(next_sweep);
            tokio::select! {
                keys = services.notified() => keys.into_iter().for_each(|key| self.on_notified(key)),
                Some(outcome) = self.batches.join_next() => self.after(outcome.ok()),
                () = sleep_until(wake) => {}
                () = stop.cancelled() => {}
            }
        }
        self.flush().await;
    }

    /// Publishes the pending events, then releases the leases.
    async fn flush(mut self) {
        let (services, deadline) = (self.services.clone(), Instant::now() + FLUSH_TIMEOUT);
        let mut quiet = false;
        while !quiet && Instant::now() < deadline {
            // Don't wait out longer delays during a shutdown.
            self.deferred.retain(|key, at| {
                *at = (*at).min(Instant::now() + MIN_RETRY_DELAY);
                !self.unavailable.contains(key)
            });
            self.advance().await;
            tokio::select! {
                biased;
                Some(outcome) = self.batches.join_next() => self.after(outcome.ok()),
                keys = services.notified() => keys.into_iter().for_each(|key| self.on_notified(key)),
                () = sleep_until(deadline.min(Instant::now() + LEASE_RETRY_DELAY)) => {
                    quiet = [self.wanted.is_empty(), self.deferred.is_empty(), self.queue.is_empty(), self.batches.is_empty()].iter().all(|it| *it);
                }
            }
        }
        self.batches.shutdown().await;
        let leased: Vec<_> = self.leased.into_keys().collect();
        if let Err(error) = self.services.release_outboxes(&leased, &[]).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot release outbox leases; they will expire");
        }
    }

    /// Sweeps for events without a notification. Returns false if the sweep failed, or if the one at the start is incomplete.
    async fn sweep(&mut self, at_start: bool) -> bool {
        match self.services.find_unnotified(at_start, self.next_mark).await {
            Ok(Unnotified { keys, marks, next }) => {
                self.marks.extend(marks.into_iter().map(|mark| (mark.tenant_id, mark)));
                self.next_mark = next;
                keys.into_iter().for_each(|key| self.schedule(key));
                next.is_none() || !at_start
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "outbox sweep failed");
                false
            }
        }
    }

    /// Processes the notification of a new event.
    fn on_notified(&mut self, key: OrderingKey) {
        if self.unavailable.remove(&key) {
            self.deferred.remove(&key);
        }
        self.schedule(key);
    }

    fn schedule(&mut self, key: OrderingKey) {
        // A deferred key stays deferred, whatever events are reported meanwhile.
        if self.deferred.contains_key(&key) {
            return;
        }
        match self.leased.get_mut(&key) {
            None => {
                self.wanted.insert(key);
            }
            Some(Leased { state: State::Queued | State::Deferred, .. }) => {}
            Some(Leased { state: State::Publishing { more, .. }, .. }) => *more = true,
            Some(leased) => {
                leased.state = State::Queued;
                self.queue.push_back(key);
            }
        }
    }

    /// Starts all work that is due. Returns when more will be due, if nothing else happens.
    async fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due: Vec<_> = self.deferred.extract_if(|_, at| *at <= now).map(|(key, _)| key).collect();
        for key in due {
            self.unavailable.remove(&key);
            self.schedule(key);
        }
        self.acquire_leases(now).await;
        self.release_leases(now).await;
        while self.batches.len() < self.bus.keys_at_once()
            && let Some(key) = self.queue.pop_front()
        {
            if let Some(leased) = self.leased.get_mut(&key).filter(|leased| leased.state == State::Queued) {
                leased.state = State::Publishing { more: false, lost: false };
                let (services, bus) = (self.services.clone(), Arc::clone(&self.bus));
                self.batches.spawn(async move {
                    let outcome = AssertUnwindSafe(publish(&services, &*bus, key)).catch_unwind().await;
                    (key, outcome.unwrap_or_else(|_| BatchOutcome::Failed(Error::internal("the bus panicked"))))
                });
            }
        }
        let due = self.leased.values().filter_map(|leased| match leased.state {
            State::Lingering { until } => Some(until + RELEASE_DELAY),
            state => state.needs_lease().then(|| leased.lease_until - RENEW_BEFORE),
        });
        let next = due.chain(self.deferred.values().copied()).min();
        next.map(|next| self.no_leases_before.filter(|before| now < *before).map_or(next, |before| next.max(before)))
    }

    /// Acquires the wanted leases, and renews those that are still needed and about to expire.
    async fn acquire_leases(&mut self, now: Instant) {
        if self.no_leases_before.is_some_and(|before| now < before) {
            return;
        }
        let expiring = self.leased.iter().filter(|(_, leased)| leased.lease_until < now + RENEW_BEFORE && leased.state.needs_lease());
        let keys: Vec<OrderingKey> = expiring.map(|(key, _)| *key).chain(self.wanted.drain()).collect();
        if keys.is_empty() {
            return;
        }
        match self.services.hold_outboxes(&keys).await {
            Ok(taken) => {
                self.no_leases_before = None;
                for (key, taken) in keys.into_iter().zip(taken) {
                    let lease_until = now + OUTBOX_LEASE;
                    match (taken, self.leased.get_mut(&key)) {
                        (true, Some(leased)) => leased.lease_until = lease_until,
                        (true, None) => {
                            self.leased.insert(key, Leased { lease_until, state: State::Queued });
                            self.queue.push_back(key);
                        }
                        (false, _) => self.defer(key, LEASE_RETRY_DELAY),
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot acquire outbox leases; will retry");
                self.no_leases_before = Some(now + MIN_RETRY_DELAY);
                for key in keys {
                    if self.leased.get(&key).is_none_or(|leased| leased.lease_until <= now) {
                        self.defer(key, MIN_RETRY_DELAY);
                    }
                }
                self.queue.retain(|key| self.leased.get(key).is_some_and(|leased| leased.state == State::Queued));
            }
        }
    }

    /// Releases the leases of deferred keys, and of drained keys without recent notifications.
    async fn release_leases(&mut self, now: Instant) {
        let is_over = |leased: &Leased| match leased.state {
            State::Lingering { until } => until <= now,
            state => state == State::Deferred,
        };
        let is_late = |leased: &Leased| match leased.state {
            State::Lingering { until } => until + RELEASE_DELAY <= now,
            state => state == State::Deferred,
        };
        if !self.leased.values().any(is_late) {
            return;
        }
        let over: Vec<_> = self.leased.extract_if(|_, leased| is_over(leased)).collect();
        // Their outboxes were drained after the dirty flags were read.
        let empty = over.iter().filter(|(_, leased)| leased.state != State::Deferred);
        let marks: Vec<_> = empty.filter_map(|(key, _)| self.marks.remove(&(*key)?)).collect();
        let keys: Vec<_> = over.into_iter().map(|(key, _)| key).collect();
        if let Err(error) = self.services.release_outboxes(&keys, &marks).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot release outbox leases; they will expire");
        }
    }

    /// Processes the outcome of a key's batch.
    fn after(&mut self, outcome: Option<(OrderingKey, BatchOutcome)>) {
        let Some((key, outcome)) = outcome else { return };
        let Some(leased) = self.leased.get_mut(&key) else { return };
        let State::Publishing { more, lost } = std::mem::replace(&mut leased.state, State::Deferred) else { return };
        match outcome {
            // Another relay may have the lease and continue. For a moment this relay did not know that it lost the lease.
            BatchOutcome::Empty | BatchOutcome::More if lost => self.defer(key, LEASE_RETRY_DELAY),
            BatchOutcome::Empty if !more => {
                leased.state = State::Lingering { until: Instant::now() + LINGER };
                self.failures.remove(&key);
            }
            BatchOutcome::Empty | BatchOutcome::More => {
                leased.state = State::Queued;
                self.queue.push_back(key);
                self.failures.remove(&key);
            }
            BatchOutcome::Failed(error) => {
                let failures = self.failures.entry(key).or_default();
                *failures += 1;
                let pause = match error {
                    Error::TenantUnavailable(UnavailableReason::Moving) => MIN_RETRY_DELAY,
                    Error::TenantUnavailable(_) => {
                        self.unavailable.insert(key);
                        backoff(*failures, MIN_UNAVAILABLE_DELAY, MAX_UNAVAILABLE_DELAY)
                    }
                    _ => backoff(*failures, MIN_RETRY_DELAY, MAX_RETRY_DELAY),
                };
                tracing::warn!(
                    tenant_id = key.map(tracing::field::display),
                    error = &error as &dyn std::error::Error,
                    ?pause,
                    "cannot publish events; will retry"
                );
                self.defer(key, pause);
            }
            BatchOutcome::Paused(pause) => self.defer(key, pause),
        }
    }

    /// Defers a key and has its lease released meanwhile.
    fn defer(&mut self, key: OrderingKey, pause: Duration) {
        if let Some(leased) = self.leased.get_mut(&key) {
            // Only one batch of a key is in flight at a time, whichever relay has its lease.
            if let State::Publishing { lost, .. } = &mut leased.state {
                *lost = true;
                return;
            }
            leased.state = State::Deferred;
        }
        self.deferred.insert(key, Instant::now() + pause);
    }
}

/// Publishes one batch of a key's events.
async fn publish(services: &EventServices, bus: &dyn Bus, key: OrderingKey) -> BatchOutcome {
    let unpublished = match services.unpublished(key, bus.batch()).await {
        Ok(unpublished) if unpublished.events.is_empty() => return BatchOutcome::Empty,
        Ok(unpublished) => unpublished,
        Err(error) => return BatchOutcome::Failed(error),
    };
    let Published { count, pause } = bus.publish(key, &unpublished.events).await;
    if count > 0
        && let Err(error) = services.record_published(&unpublished, count).await
    {
        return BatchOutcome::Failed(error);
    }
    match pause {
        Some(pause) => BatchOutcome::Paused(pause),
        // A new event of this process causes a notification. One of another instance is found once that instance has the lease.
        None if unpublished.are_all && count == unpublished.events.len() => BatchOutcome::Empty,
        None => BatchOutcome::More,
    }
}
