//! Tenants: their members, and the databases that they live in.

pub(crate) mod deletion;
pub(crate) mod fleet;
pub(crate) mod members;
pub(crate) mod migrations;
pub(crate) mod moves;
pub(crate) mod provisioning;
pub(crate) mod reset;
pub(crate) mod tenants;
pub(crate) mod warm_pool;
