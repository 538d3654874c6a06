//! The relay: from the outboxes to the bus.
//!
//! It sleeps until a transaction of this process says that it told something, takes a lease of that key, and publishes what is in
//! the outbox, key after key in turn. A lease is kept for a moment after that, since who writes often writes more. What nobody was
//! told of (a crash came between, or another process's lease) is found by the marks, all of them by one statement.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use domain::{Closure, Error, TenantId};
use futures_util::FutureExt;
use services::{EventServices, Mark, OUTBOX_LEASE, OrderingKey, Unnotified};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::backoff,
    bus::{Bus, Published},
};

/// How long a lease is kept after its outbox was found empty.
const LINGER: Duration = Duration::from_millis(200);
/// How much longer, so that several are given up at once.
const GROUPED: Duration = Duration::from_millis(50);
/// When to ask again for a lease that another instance has.
const TAKEN: Duration = Duration::from_millis(100);
/// How long before its end a lease is prolonged.
const PROLONG: Duration = Duration::from_secs(5);
/// How often is looked for what nobody was told of.
const SWEEP: Duration = Duration::from_secs(5);
/// How long to wait after a failure, and at most after several.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a database that is closed is left alone, at first and at most.
const CLOSED: Duration = Duration::from_secs(30);
const LONG_CLOSED: Duration = Duration::from_secs(15 * 60);
/// How long the end waits for what was told until then.
const FLUSH: Duration = Duration::from_secs(5);

/// Publishes what the outboxes have.
pub struct Relay {
    services: EventServices,
    bus: Arc<dyn Bus>,
    /// Keys of which there is something to publish, whose leases are not ours.
    wanted: HashSet<OrderingKey>,
    /// When to want those that can't be had now.
    later: HashMap<OrderingKey, Instant>,
    /// Those of them whose databases were closed: one that tells something is open again.
    closed: HashSet<OrderingKey>,
    held: HashMap<OrderingKey, Held>,
    /// Those of them that wait for their turn.
    queue: VecDeque<OrderingKey>,
    turns: JoinSet<(OrderingKey, Turn)>,
    /// How often in a row a key has failed.
    failures: HashMap<OrderingKey, u32>,
    /// Marks to be cleared once the tenant's outbox was found empty.
    marks: HashMap<TenantId, Mark>,
    /// After which mark the next look goes on.
    next_mark: Option<Mark>,
    /// Until when no leases are asked for, since the main database failed.
    no_leases_before: Option<Instant>,
}

/// A key whose lease is ours.
struct Held {
    lease_until: Instant,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    /// Its turn; whether there was told more meanwhile, and whether the lease is lost since.
    Publishing {
        more: bool,
        lost: bool,
    },
    /// Its outbox is empty; the lease is given up then, unless there is told more.
    Lingering {
        until: Instant,
    },
    /// Its lease is given up.
    PutOff,
}

impl State {
    fn needs_lease(self) -> bool {
        matches!(self, Self::Queued | Self::Publishing { lost: false, .. })
    }
}

/// What became of a key's turn.
enum Turn {
    /// There is nothing more to publish.
    Empty,
    /// There may be more.
    More,
    /// Not now.
    Failed(Error),
    /// The bus says when.
    Paused(Duration),
}

impl Relay {
    /// Publishes to this bus.
    #[must_use]
    pub fn new(services: EventServices, bus: Arc<dyn Bus>) -> Self {
        Self {
            services,
            bus,
            wanted: HashSet::new(),
            later: HashMap::new(),
            closed: HashSet::new(),
            held: HashMap::new(),
            queue: VecDeque::new(),
            turns: JoinSet::new(),
            failures: HashMap::new(),
            marks: HashMap::new(),
            next_mark: None,
            no_leases_before: None,
        }
    }

    /// Publishes until it is to stop; what was told until then is published first, unless that takes longer than some seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        let services = self.services.clone();
        let mut next_sweep = Instant::now();
        let mut at_start = true;
        while !stop.is_cancelled() {
            if Instant::now() >= next_sweep {
                at_start = !self.sweep(at_start).await;
                next_sweep = Instant::now() + SWEEP;
            }
            let wake = self.advance().await.unwrap_or(next_sweep).min(next_sweep);
            tokio::select! {
                keys = services.notified() => keys.into_iter().for_each(|key| self.told(key)),
                Some(turn) = self.turns.join_next() => self.after(turn.ok()),
                () = sleep_until(wake) => {}
                () = stop.cancelled() => {}
            }
        }
        self.flush().await;
    }

    /// Publishes what there is, and gives up the leases.
    async fn flush(mut self) {
        let (services, deadline) = (self.services.clone(), Instant::now() + FLUSH);
        let mut quiet = false;
        while !quiet && Instant::now() < deadline {
            // Nobody waits any more.
            self.later.retain(|key, at| {
                *at = (*at).min(Instant::now() + FIRST_PAUSE);
                !self.closed.contains(key)
            });
            self.advance().await;
            tokio::select! {
                biased;
                Some(turn) = self.turns.join_next() => self.after(turn.ok()),
                keys = services.notified() => keys.into_iter().for_each(|key| self.told(key)),
                () = sleep_until(deadline.min(Instant::now() + TAKEN)) => {
                    quiet = [self.wanted.is_empty(), self.later.is_empty(), self.queue.is_empty(), self.turns.is_empty()].iter().all(|it| *it);
                }
            }
        }
        self.turns.shutdown().await;
        let held: Vec<_> = self.held.into_keys().collect();
        if let Err(error) = self.services.release_outboxes(&held, &[]).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "leases of outboxes could not be given up; they expire");
        }
    }

    /// Looks for what nobody was told of. Answers whether it could, and was through at the start.
    async fn sweep(&mut self, at_start: bool) -> bool {
        match self.services.find_unnotified(at_start, self.next_mark).await {
            Ok(Unnotified { keys, marks, next }) => {
                self.marks.extend(marks.into_iter().map(|mark| (mark.tenant_id, mark)));
                self.next_mark = next;
                keys.into_iter().for_each(|key| self.want(key));
                next.is_none() || !at_start
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "events that nobody was told of can't be looked for");
                false
            }
        }
    }

    /// Somebody has told something just now.
    fn told(&mut self, key: OrderingKey) {
        if self.closed.remove(&key) {
            self.later.remove(&key);
        }
        self.want(key);
    }

    fn want(&mut self, key: OrderingKey) {
        // Whoever is to wait, waits, whatever is told meanwhile.
        if self.later.contains_key(&key) {
            return;
        }
        match self.held.get_mut(&key) {
            None => {
                self.wanted.insert(key);
            }
            Some(Held { state: State::Queued | State::PutOff, .. }) => {}
            Some(Held { state: State::Publishing { more, .. }, .. }) => *more = true,
            Some(held) => {
                held.state = State::Queued;
                self.queue.push_back(key);
            }
        }
    }

    /// Does what can be done now. Answers when there is more, if nothing happens.
    async fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due: Vec<_> = self.later.extract_if(|_, at| *at <= now).map(|(key, _)| key).collect();
        for key in due {
            self.closed.remove(&key);
            self.want(key);
        }
        self.take_leases(now).await;
        self.give_up_leases(now).await;
        while self.turns.len() < self.bus.keys_at_once()
            && let Some(key) = self.queue.pop_front()
        {
            if let Some(held) = self.held.get_mut(&key).filter(|held| held.state == State::Queued) {
                held.state = State::Publishing { more: false, lost: false };
                let (services, bus) = (self.services.clone(), Arc::clone(&self.bus));
                self.turns.spawn(async move {
                    let turn = AssertUnwindSafe(publish(&services, &*bus, key)).catch_unwind().await;
                    (key, turn.unwrap_or_else(|_| Turn::Failed(Error::internal("the bus panicked"))))
                });
            }
        }
        let due = self.held.values().filter_map(|held| match held.state {
            State::Lingering { until } => Some(until + GROUPED),
            state => state.needs_lease().then(|| held.lease_until - PROLONG),
        });
        let next = due.chain(self.later.values().copied()).min();
        next.map(|next| self.no_leases_before.filter(|before| now < *before).map_or(next, |before| next.max(before)))
    }

    /// Takes the leases that are wanted, and prolongs those that are needed and about to expire.
    async fn take_leases(&mut self, now: Instant) {
        if self.no_leases_before.is_some_and(|before| now < before) {
            return;
        }
        let expiring = self.held.iter().filter(|(_, held)| held.lease_until < now + PROLONG && held.state.needs_lease());
        let keys: Vec<OrderingKey> = expiring.map(|(key, _)| *key).chain(self.wanted.drain()).collect();
        if keys.is_empty() {
            return;
        }
        match self.services.hold_outboxes(&keys).await {
            Ok(taken) => {
                self.no_leases_before = None;
                for (key, taken) in keys.into_iter().zip(taken) {
                    let lease_until = now + OUTBOX_LEASE;
                    match (taken, self.held.get_mut(&key)) {
                        (true, Some(held)) => held.lease_until = lease_until,
                        (true, None) => {
                            self.held.insert(key, Held { lease_until, state: State::Queued });
                            self.queue.push_back(key);
                        }
                        (false, _) => self.put_off(key, TAKEN),
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "leases of outboxes can't be had; they are asked for again");
                self.no_leases_before = Some(now + FIRST_PAUSE);
                for key in keys {
                    if self.held.get(&key).is_none_or(|held| held.lease_until <= now) {
                        self.put_off(key, FIRST_PAUSE);
                    }
                }
                self.queue.retain(|key| self.held.get(key).is_some_and(|held| held.state == State::Queued));
            }
        }
    }

    /// Gives up the leases of those of whom nothing was told for a moment.
    async fn give_up_leases(&mut self, now: Instant) {
        let is_over = |held: &Held| match held.state {
            State::Lingering { until } => until <= now,
            state => state == State::PutOff,
        };
        let is_late = |held: &Held| match held.state {
            State::Lingering { until } => until + GROUPED <= now,
            state => state == State::PutOff,
        };
        if !self.held.values().any(is_late) {
            return;
        }
        let over: Vec<_> = self.held.extract_if(|_, held| is_over(held)).collect();
        // Their outboxes were found empty, after the marks were found.
        let empty = over.iter().filter(|(_, held)| held.state != State::PutOff);
        let marks: Vec<_> = empty.filter_map(|(key, _)| self.marks.remove(&(*key)?)).collect();
        let keys: Vec<_> = over.into_iter().map(|(key, _)| key).collect();
        if let Err(error) = self.services.release_outboxes(&keys, &marks).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "leases of outboxes could not be given up; they expire");
        }
    }

    /// Goes on after a key's turn.
    fn after(&mut self, turn: Option<(OrderingKey, Turn)>) {
        let Some((key, turn)) = turn else { return };
        let Some(held) = self.held.get_mut(&key) else { return };
        let State::Publishing { more, lost } = std::mem::replace(&mut held.state, State::PutOff) else { return };
        match turn {
            // Whoever has the lease goes on; there was a moment when it was not known that it is another.
            Turn::Empty | Turn::More if lost => self.put_off(key, TAKEN),
            Turn::Empty if !more => {
                held.state = State::Lingering { until: Instant::now() + LINGER };
                self.failures.remove(&key);
            }
            Turn::Empty | Turn::More => {
                held.state = State::Queued;
                self.queue.push_back(key);
                self.failures.remove(&key);
            }
            Turn::Failed(error) => {
                let failures = self.failures.entry(key).or_default();
                *failures += 1;
                let pause = match error {
                    Error::Closed(Closure::Moving) => FIRST_PAUSE,
                    Error::Closed(_) => {
                        self.closed.insert(key);
                        backoff(*failures, CLOSED, LONG_CLOSED)
                    }
                    _ => backoff(*failures, FIRST_PAUSE, LONGEST_PAUSE),
                };
                tracing::warn!(
                    tenant_id = key.map(tracing::field::display),
                    error = &error as &dyn std::error::Error,
                    ?pause,
                    "events can't be published now"
                );
                self.put_off(key, pause);
            }
            Turn::Paused(pause) => self.put_off(key, pause),
        }
    }

    /// Wants a key later; meanwhile its lease is nobody's.
    fn put_off(&mut self, key: OrderingKey, pause: Duration) {
        if let Some(held) = self.held.get_mut(&key) {
            // One turn of a key at a time, whoever has its lease.
            if let State::Publishing { lost, .. } = &mut held.state {
                *lost = true;
                return;
            }
            held.state = State::PutOff;
        }
        self.later.insert(key, Instant::now() + pause);
    }
}

/// A key's turn.
async fn publish(services: &EventServices, bus: &dyn Bus, key: OrderingKey) -> Turn {
    let unpublished = match services.unpublished(key, bus.batch()).await {
        Ok(unpublished) if unpublished.events.is_empty() => return Turn::Empty,
        Ok(unpublished) => unpublished,
        Err(error) => return Turn::Failed(error),
    };
    let Published { count, pause } = bus.publish(key, &unpublished.events).await;
    if count > 0
        && let Err(error) = services.record_published(&unpublished, count).await
    {
        return Turn::Failed(error);
    }
    match pause {
        Some(pause) => Turn::Paused(pause),
        // Whoever tells more meanwhile says so; another instance's is found when it has the lease.
        None if unpublished.are_all && count == unpublished.events.len() => Turn::Empty,
        None => Turn::More,
    }
}
