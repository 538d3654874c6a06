//! Tenants and their members.

pub(crate) mod members;
pub(crate) mod tenants;
