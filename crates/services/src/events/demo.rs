//! A demonstration of the event bus for people who try Tenantry: messages on topics of their own, and a consumer that receives
//! them.

use std::{collections::VecDeque, sync::Arc};

use domain::{Clock, EventId, Result, Timestamp};
use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;

/// The prefix of every demo topic.
pub const DEMO_PREFIX: &str = "demo.";
/// How many messages the demo consumer keeps.
pub const DEMO_KEPT: usize = 50;
/// The maximum number of demo topics.
pub const DEMO_TOPICS: usize = 20;

/// A demo message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoMessage {
    /// Its id.
    pub id: EventId,
    /// The topic, which begins with [`DEMO_PREFIX`].
    pub topic: String,
    /// Messages with the same key are delivered in order.
    pub key: Option<String>,
    /// Its content in JSON.
    pub message: String,
    /// When it was sent.
    pub at: Timestamp,
}

impl DemoMessage {
    /// A message sent now.
    pub fn new(clock: &dyn Clock, topic: String, key: Option<String>, message: String) -> Self {
        Self { id: EventId::generate(clock), topic, key, message, at: clock.now() }
    }
}

/// The event bus, as far as the demo uses it.
pub trait DemoBus: Send + Sync {
    /// The name that operators know it by.
    fn name(&self) -> &'static str;

    /// Publishes a message. It is published when this returns.
    fn produce<'a>(&'a self, message: &'a DemoMessage) -> BoxFuture<'a, Result<()>>;

    /// The messages that the consumer received last, the latest first.
    fn received(&self, limit: usize) -> Vec<DemoMessage>;

    /// Checks that the bus is reachable.
    fn check(&self) -> BoxFuture<'_, Result<()>>;
}

/// The last messages that a demo consumer received.
#[derive(Clone, Default)]
pub struct DemoReceived(Arc<Mutex<VecDeque<DemoMessage>>>);

impl DemoReceived {
    /// Adds a message that was just received.
    pub fn push(&self, message: DemoMessage) {
        let mut received = self.0.lock();
        received.push_front(message);
        received.truncate(DEMO_KEPT);
    }

    /// The latest first.
    #[must_use]
    pub fn latest(&self, limit: usize) -> Vec<DemoMessage> {
        self.0.lock().iter().take(limit).cloned().collect()
    }
}

/// A demo bus that delivers within the process.
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
