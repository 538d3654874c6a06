//! Routes built on events.

mod demo;
