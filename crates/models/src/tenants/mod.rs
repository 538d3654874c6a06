//! Tenants: their members, and the lifecycle of their databases.

pub mod members;
pub mod migrations;
pub mod moves;
mod tenants;
pub mod tombstones;
pub mod warm_pool;

pub use self::tenants::*;
