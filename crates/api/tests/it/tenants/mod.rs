//! Tenants, members and quotas.

mod members;
mod quotas;
mod tenants;
