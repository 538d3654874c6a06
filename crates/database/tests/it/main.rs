//! The guarantees of the database layer, tested on every available engine: SQLite always, PostgreSQL where
//! `TEST_DATABASE_URL` names a server (`scripts/services.sh`).

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests are tests")]

mod budget;
mod cancellation;
mod concurrency;
mod constraints;
mod engine;
mod migrations;
mod moves;
mod outages;
mod tenants;
mod transactions;
mod values;
