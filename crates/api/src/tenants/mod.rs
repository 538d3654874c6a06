//! Tenants: their members, and the databases that they live in.

pub(crate) mod members;
pub(crate) mod tenants;
