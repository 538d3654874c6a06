//! Events on their way from the outboxes to the handlers.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod handlers;
mod kafka;
mod recorder;
mod relay;
