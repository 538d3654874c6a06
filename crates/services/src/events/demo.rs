//! A demonstration of the bus, for those who try the system: messages to topics of their own, and a consumer that receives them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use domain::{Clock, EventId, Result, Timestamp};
use futures_util::{FutureExt, future::BoxFuture};

/// What the name of every topic of the demonstration begins with.
pub const DEMO_PREFIX: &str = "demo.";
/// How many messages the demonstration's consumer keeps.
pub const DEMO_KEPT: usize = 50;
/// How many topics the demonstration may have.
pub const DEMO_TOPICS: usize = 20;

/// A message of the demonstration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoMessage {
    /// Its own.
    pub id: EventId,
    /// The topic, which begins with [`DEMO_PREFIX`].
    pub topic: String,
    /// Messages with the same key follow each other.
    pub key: Option<String>,
    /// Its content, JSON.
    pub message: String,
    /// When it was sent.
    pub at: Timestamp,
}

impl DemoMessage {
    /// A message that is sent now.
    pub fn new(clock: &dyn Clock, topic: String, key: Option<String>, message: String) -> Self {
        Self { id: EventId::generate(clock), topic, key, message, at: clock.now() }
    }
}

/// The bus that events are published on, as far as the demonstration uses it.
pub trait DemoBus: Send + Sync {
    /// What it is, as operators call it.
    fn name(&self) -> &'static str;

    /// Publishes a message. It is there when this returns.
    fn produce<'a>(&'a self, message: &'a DemoMessage) -> BoxFuture<'a, Result<()>>;

    /// What the consumer received last, the latest first.
    fn received(&self, limit: usize) -> Vec<DemoMessage>;

    /// Asks it whether it is there.
    fn check(&self) -> BoxFuture<'_, Result<()>>;
}

/// What a consumer of the demonstration received last.
#[derive(Clone, Default)]
pub struct DemoReceived(Arc<Mutex<VecDeque<DemoMessage>>>);

impl DemoReceived {
    /// Adds what came just now.
    pub fn push(&self, message: DemoMessage) {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.push_front(message);
        received.truncate(DEMO_KEPT);
    }

    /// The latest first.
    #[must_use]
    pub fn latest(&self, limit: usize) -> Vec<DemoMessage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().take(limit).cloned().collect()
    }
}

/// A message is received where it is published.
#[derive(Default)]
pub struct DemoInProcess(DemoReceived);

impl DemoBus for DemoInProcess {
    fn name(&self) -> &'static str {
        "in-process"
    }

    fn produce<'a>(&'a self, message: &'a DemoMessage) -> BoxFuture<'a, Result<()>> {
        async {
            self.0.push(message.clone());
            Ok(())
        }
        .boxed()
    }

    fn received(&self, limit: usize) -> Vec<DemoMessage> {
        self.0.latest(limit)
    }

    fn check(&self) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }
}
