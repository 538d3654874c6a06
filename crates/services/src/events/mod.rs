//! Events: from the transaction that records them to the audit log.

pub(crate) mod audit;
pub(crate) mod dead_letters;
pub(crate) mod demo;
pub(crate) mod events;
pub(crate) mod outbox;
