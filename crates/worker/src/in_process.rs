//! The bus of a system without a broker: an event is published when it is handled. The outbox is the queue.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::{Dependency, Error, Event, EventId, Result};
use futures_util::{FutureExt, future::BoxFuture};
use services::{EventServices, OrderingKey};
use tokio::time::timeout;

use crate::{
    backoff::backoff,
    bus::{Bus, Published},
    handle,
};

/// How many events of a key are handled in its turn, and for how long at most: then it is the others' turn.
const BATCH: u32 = 64;
const TURN: Duration = Duration::from_millis(500);
/// How many keys have their turn at the same time.
const KEYS_AT_ONCE: usize = 8;
/// How long handling may take: a database or a store that never answers is no reason to wait for ever.
const HANDLED_WITHIN: Duration = Duration::from_secs(300);
/// How long putting an event on its dead-letter topic may take.
const PARKED_WITHIN: Duration = Duration::from_secs(5);
/// How often an event is tried that fails for a reason of its own.
const ATTEMPTS: u32 = 5;
/// How long to wait between them.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Where events go that can't be handled, beside the operator's list.
pub trait DeadLetterTopic: Send + Sync {
    /// Sends an event there, with what went wrong.
    fn send<'a>(&'a self, event: &'a Event, error: &'a str) -> BoxFuture<'a, Result<()>>;
}

/// Handles events in the process that publishes them.
pub struct InProcess {
    services: EventServices,
    dead_letters: Option<Arc<dyn DeadLetterTopic>>,
    /// How often the first event of a key has failed. One for each key that is waiting to be tried again.
    failures: Mutex<HashMap<OrderingKey, Failures>>,
}

/// How often an event has failed, and how often for a reason of its own.
#[derive(Clone, Copy)]
struct Failures {
    id: EventId,
    attempts: u32,
    own: u32,
}

impl InProcess {
    /// Handles events by these services.
    #[must_use]
    pub fn new(services: EventServices) -> Self {
        Self { services, dead_letters: None, failures: Mutex::default() }
    }

    /// The same, with a topic for those that can't be handled.
    #[must_use]
    pub fn with_dead_letter_topic(services: EventServices, topic: Arc<dyn DeadLetterTopic>) -> Self {
        Self { services, dead_letters: Some(topic), failures: Mutex::default() }
    }

    async fn park(&self, event: &Event, error: &str, attempts: u32) -> Result<()> {
        if let Some(topic) = &self.dead_letters {
            // Who waits here keeps others from their turn.
            let sent = timeout(PARKED_WITHIN, topic.send(event, error)).await;
            sent.unwrap_or_else(|_| Err(Error::Unavailable { dependency: Dependency::EventBus, source: "no answer in time".into() }))?;
        }
        self.services.dead_letter(event, error.to_owned(), attempts).await
    }

    async fn publish_in_turn(&self, key: OrderingKey, events: &[Event]) -> Published {
        let (began, mut count) = (Instant::now(), 0);
        while count < events.len() && began.elapsed() < TURN {
            let left = &events[count..];
            let alike = left.iter().take_while(|event| event.kind == left[0].kind).count();
            let (tried, outcome) = match self.attempt(key, &left[..alike]).await {
                // One of them is to blame: each for itself, then.
                Err(_) if alike > 1 => (1, self.attempt(key, &left[..1]).await),
                outcome => (alike, outcome),
            };
            count += match outcome {
                Ok(()) => tried,
                Err(error) => match self.failed(key, &left[0], error).await {
                    None => 1,
                    pause => return Published { count, pause },
                },
            };
        }
        Published { count, pause: None }
    }

    async fn attempt(&self, key: OrderingKey, events: &[Event]) -> Result<()> {
        let Some(first) = events.first() else { return Ok(()) };
        let handling = AssertUnwindSafe(handle(&self.services, key, first.kind, events)).catch_unwind();
        match timeout(HANDLED_WITHIN, handling).await {
            Ok(Ok(handled)) => handled,
            Ok(Err(_)) => Err(Error::internal("its handler panicked")),
            Err(_) => Err(Error::internal("its handler does not end")),
        }
    }

    /// Notes that an event failed. Answers when to try it again; nothing when it was given up, and parked.
    async fn failed(&self, key: OrderingKey, event: &Event, error: Error) -> Option<Duration> {
        // What is down comes back, and the event is as good as before.
        let is_its_own = !matches!(error, Error::Unavailable { .. } | Error::Closed(_) | Error::Overloaded { .. });
        let (kind, told) = (event.kind.as_str(), error.with_causes());
        let Failures { attempts, own, .. } = self.count_failure(key, event.id, is_its_own);
        if own >= ATTEMPTS {
            match self.park(event, &told, attempts).await {
                Ok(()) => {
                    tracing::error!(event_id = %event.id, kind, error = told, attempts, "an event can't be handled: see `tenantry events dlq`");
                    self.forget(key);
                    return None;
                }
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a dead letter can't be parked"),
            }
        }
        let pause = backoff(attempts, FIRST_PAUSE, LONGEST_PAUSE);
        tracing::warn!(event_id = %event.id, kind, error = told, attempts, ?pause, "an event failed; it is tried again");
        Some(pause)
    }

    fn count_failure(&self, key: OrderingKey, id: EventId, is_its_own: bool) -> Failures {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = failures.entry(key).or_insert(Failures { id, attempts: 0, own: 0 });
        if of_key.id != id {
            *of_key = Failures { id, attempts: 0, own: 0 };
        }
        of_key.attempts += 1;
        of_key.own += u32::from(is_its_own);
        *of_key
    }

    fn forget(&self, key: OrderingKey) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

impl Bus for InProcess {
    fn publish<'a>(&'a self, key: OrderingKey, events: &'a [Event]) -> BoxFuture<'a, Published> {
        async move {
            let published = self.publish_in_turn(key, events).await;
            if published.pause.is_none() {
                self.forget(key);
            }
            published
        }
        .boxed()
    }

    fn batch(&self) -> u32 {
        BATCH
    }

    fn keys_at_once(&self) -> usize {
        KEYS_AT_ONCE
    }
}
