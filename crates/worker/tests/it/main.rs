//! Events from the outboxes to whoever handles them.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod handlers;
mod kafka;
mod recorder;
mod relay;
