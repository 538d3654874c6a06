//! Events: the outbox, what is known of its readers, and the audit log.

pub mod audit;
pub mod dead_letters;
pub mod dirty_tenants;
pub mod handled_events;
pub mod outbox;
