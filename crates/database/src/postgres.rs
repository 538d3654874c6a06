//! PostgreSQL: connections leased from a budget per server, each belonging to one database for its whole life.
//!
//! From the bottom up: `error`, `value` and `stream`, `connector` and `catalog`, `identity`, `session`, `budget`, `migrate`,
//! `server`, `lease`, `unfinished`, `connection` and `shared_reader`, `database`, `provisioner`. A module calls only those before
//! it.

mod budget;
mod catalog;
mod connection;
mod connector;
mod database;
mod error;
mod identity;
mod lease;
mod migrate;
mod provisioner;
mod server;
mod session;
mod shared_reader;
mod stream;
mod unfinished;
mod value;

use std::time::Duration;

pub use self::{budget::Connections, server::PostgresLimits};
pub(crate) use self::{
    connection::PostgresConnection, database::PostgresDatabase, error::from_postgres, identity::check_identity, migrate::ADVISORY_LOCK,
    provisioner::PostgresProvisioner, server::PostgresServer, shared_reader::PostgresReader, value::as_params,
};

/// How long statements may take together before their connection is closed. Longer than the server's own limit, which ends a slow
/// statement; this one ends waiting for a server that no longer answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
