//! The API as its users see it, over real sockets and real databases.

mod accounts;
mod authorization;
mod demo;
mod documents;
mod files;
mod members;
mod quotas;
mod races;
mod sessions;
mod storage_faults;
mod tenants;
mod tokens;
mod uploads;
mod versions;
