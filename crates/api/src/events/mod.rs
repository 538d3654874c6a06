//! What follows of events, as clients see it.

pub(crate) mod audit;
pub(crate) mod demo;
