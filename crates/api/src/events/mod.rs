//! Routes built on events: the audit log and the demo.

pub(crate) mod audit;
pub(crate) mod demo;
