//! The bus of a deployment without a broker. The outbox is the queue, and to publish an event is to handle it.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Dependency, Error, Event, EventId, Result};
use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use services::{EventServices, OrderingKey};
use tokio::time::timeout;

use crate::{
    backoff::backoff,
    bus::{Bus, Published},
    handle,
};

/// The maximum size and duration of a key's batch: after it, other keys are served.
const BATCH_SIZE: u32 = 64;
const TIME_SLICE: Duration = Duration::from_millis(500);
/// How many keys are served concurrently.
const KEY_CONCURRENCY: usize = 8;
/// The timeout of a handler, in case a database or a store never answers.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(300);
/// The timeout for publishing an event to its dead-letter topic.
const DEAD_LETTER_TIMEOUT: Duration = Duration::from_secs(5);
/// How many attempts an event gets that fails by its own fault.
const MAX_ATTEMPTS: u32 = 5;
/// The delay between attempts: at first and at most.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);

/// A topic that receives events that can't be handled, in addition to the table of dead letters.
pub trait DeadLetterTopic: Send + Sync {
    /// Publishes an event to the topic, with the error.
    fn send<'a>(&'a self, event: &'a Event, error: &'a str) -> BoxFuture<'a, Result<()>>;
}

/// Handles events in this process.
pub struct InProcess {
    services: EventServices,
    dead_letters: Option<Arc<dyn DeadLetterTopic>>,
    /// The failures of the first event of each key that waits for a retry.
    failures: Mutex<HashMap<OrderingKey, Failures>>,
}

/// The failures of an event: the total, and those by its own fault.
#[derive(Clone, Copy)]
struct Failures {
    id: EventId,
    attempts: u32,
    own: u32,
}

impl InProcess {
    /// A bus that handles events with these services.
    #[must_use]
    pub fn new(services: EventServices) -> Self {
        Self { services, dead_letters: None, failures: Mutex::default() }
    }

    /// A bus that handles events with these services and also publishes dead letters to a topic.
    #[must_use]
    pub fn with_dead_letter_topic(services: EventServices, topic: Arc<dyn DeadLetterTopic>) -> Self {
        Self { services, dead_letters: Some(topic), failures: Mutex::default() }
    }

    async fn dead_letter(&self, event: &Event, error: &str, attempts: u32) -> Result<()> {
        if let Some(topic) = &self.dead_letters {
            // A wait here delays other keys.
            let sent = timeout(DEAD_LETTER_TIMEOUT, topic.send(event, error)).await;
            sent.unwrap_or_else(|_| Err(Error::Unavailable { dependency: Dependency::EventBus, source: "no answer in time".into() }))?;
        }
        self.services.dead_letter(event, error.to_owned(), attempts).await
    }

    async fn handle_batch(&self, key: OrderingKey, events: &[Event]) -> Published {
        let (began, mut count) = (Instant::now(), 0);
        while count < events.len() && began.elapsed() < TIME_SLICE {
            let rest = &events[count..];
            let alike = rest.iter().take_while(|event| event.kind == rest[0].kind).count();
            let (tried, outcome) = match self.attempt(key, &rest[..alike]).await {
                // One of them caused the failure: handle them one at a time.
                Err(_) if alike > 1 => (1, self.attempt(key, &rest[..1]).await),
                outcome => (alike, outcome),
            };
            count += match outcome {
                Ok(()) => tried,
                Err(error) => match self.on_failure(key, &rest[0], error).await {
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
        match timeout(HANDLER_TIMEOUT, handling).await {
            Ok(Ok(handled)) => handled,
            Ok(Err(_)) => Err(Error::internal("the handler panicked")),
            Err(_) => Err(Error::internal("the handler timed out")),
        }
    }

    /// Records a failure of an event. Returns the delay before its retry, or nothing if it was dead-lettered.
    async fn on_failure(&self, key: OrderingKey, event: &Event, error: Error) -> Option<Duration> {
        // Outages pass; they don't count against the event.
        let is_its_own = !matches!(error, Error::Unavailable { .. } | Error::TenantUnavailable(_) | Error::Overloaded { .. });
        let (kind, message) = (event.kind.as_str(), error.with_causes());
        let Failures { attempts, own, .. } = self.count_failure(key, event.id, is_its_own);
        if own >= MAX_ATTEMPTS {
            match self.dead_letter(event, &message, attempts).await {
                Ok(()) => {
                    tracing::error!(event_id = %event.id, kind, error = message, attempts, "event dead-lettered: see `tenantry events dlq`");
                    self.reset_failures(key);
                    return None;
                }
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot dead-letter the event; will retry"),
            }
        }
        let pause = backoff(attempts, MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        tracing::warn!(event_id = %event.id, kind, error = message, attempts, ?pause, "cannot handle the event; will retry");
        Some(pause)
    }

    fn count_failure(&self, key: OrderingKey, id: EventId, is_its_own: bool) -> Failures {
        let mut failures = self.failures.lock();
        let current = failures.entry(key).or_insert(Failures { id, attempts: 0, own: 0 });
        if current.id != id {
            *current = Failures { id, attempts: 0, own: 0 };
        }
        current.attempts += 1;
        current.own += u32::from(is_its_own);
        *current
    }

    fn reset_failures(&self, key: OrderingKey) {
        self.failures.lock().remove(&key);
    }
}

impl Bus for InProcess {
    fn publish<'a>(&'a self, key: OrderingKey, events: &'a [Event]) -> BoxFuture<'a, Published> {
        async move {
            let published = self.handle_batch(key, events).await;
            if published.pause.is_none() {
                self.reset_failures(key);
            }
            published
        }
        .boxed()
    }

    fn batch(&self) -> u32 {
        BATCH_SIZE
    }

    fn keys_at_once(&self) -> usize {
        KEY_CONCURRENCY
    }
}
