//! Where events are published.

use std::time::Duration;

use domain::Event;
use futures_util::future::BoxFuture;
use services::OrderingKey;

/// Takes events from the relay.
pub trait Bus: Send + Sync {
    /// Publishes events of one key in their order, as many as go well. Those that are said to be published are so for good,
    /// whatever crashes next.
    fn publish<'a>(&'a self, key: OrderingKey, events: &'a [Event]) -> BoxFuture<'a, Published>;

    /// How many events it takes at once.
    fn batch(&self) -> u32;

    /// Of how many keys it takes events at the same time.
    fn keys_at_once(&self) -> usize;
}

/// What became of events that were to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// How many are, from the first on.
    pub count: usize,
    /// How long to wait before the next of them is tried again; nothing when none failed.
    pub pause: Option<Duration>,
}
