//! The event bus, to which the relay publishes.

use std::time::Duration;

use domain::Event;
use futures_util::future::BoxFuture;
use services::OrderingKey;

/// Accepts events from the relay.
pub trait Bus: Send + Sync {
    /// Publishes events of one ordering key in their order, up to the first that fails. The events that it reports as published
    /// stay published, whatever crashes next.
    fn publish<'a>(&'a self, key: OrderingKey, events: &'a [Event]) -> BoxFuture<'a, Published>;

    /// The maximum number of events in one call of [`publish`](Self::publish).
    fn batch(&self) -> u32;

    /// The maximum number of ordering keys with concurrent calls of [`publish`](Self::publish).
    fn keys_at_once(&self) -> usize;
}

/// The outcome of publishing a batch of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// How many events, counted from the first, were published.
    pub count: usize,
    /// How long to wait before retrying the next event; absent if none failed.
    pub pause: Option<Duration>,
}
