//! Tenants, their members and their quotas.

mod members;
mod quotas;
mod tenants;
