//! Events: the outbox, its dirty flags, dead letters, handled events, and the audit log.

pub mod audit;
pub mod dead_letters;
pub mod dirty_tenants;
pub mod handled_events;
pub mod outbox;
