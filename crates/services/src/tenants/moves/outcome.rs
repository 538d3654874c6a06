//! What a move reports, and why it fails.

use std::time::Duration;

use domain::{Error, Provisioning, Tenant, TenantLocation};
use models::TableSum;

/// A tenant's database after its move.
#[derive(Debug)]
pub struct Moved {
    /// The tenant in its new location.
    pub tenant: Tenant,
    /// The location of its source database, which is kept.
    pub source: TenantLocation,
    /// The compared tables, equal on both sides.
    pub tables: Vec<TableSum>,
    /// How long copying took before writes paused.
    pub copied_in: Duration,
    /// How long writes waited.
    pub paused_for: Duration,
}

/// A step of a move, for its observer.
#[derive(Clone, Copy, Debug)]
pub enum MoveStep {
    /// The target database was created, empty.
    Created,
    /// This many rows were copied in this round.
    Copied(u64),
    /// Writes wait from now on.
    Paused,
    /// This many rows, changed since, were copied, and everything was compared.
    Compared(u64),
    /// The tenant uses its target database; writes resume as soon as every instance applies that.
    Switched,
}

/// Why a tenant's database was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// It is already on the target server.
    #[error("its database is already on server {0}")]
    ThereAlready(String),
    /// The configuration has no such server.
    #[error("no server is named {wanted:?}; known servers: {}", known.join(", "))]
    UnknownServer {
        /// The requested name.
        wanted: String,
        /// The configured names.
        known: Vec<String>,
    },
    /// Another process is moving it.
    #[error("another process is moving its database; if that process has died, `tenantry serve` will undo the move within half a minute")]
    UnderWay,
    /// It was moved before, and its source database must be dropped or returned to first.
    #[error("its source database is still kept on server {0}")]
    SourceKept(String),
    /// There is no source database to drop, to return to or to purge from the records.
    #[error("no source database of it is kept")]
    NoSource,
    /// This program can move only databases of its own schema version; this one is older.
    #[error("its database has schema version {found}: first run `tenantry migrate`, which brings it to {wanted}")]
    Outdated {
        /// The database's version.
        found: i64,
        /// The version of this program.
        wanted: i64,
    },
    /// This program can move only databases of its own schema version; this one is newer.
    #[error("its database has schema version {found}, which is newer than this program's ({wanted}): move it with the newer program")]
    TooNew {
        /// The database's version.
        found: i64,
        /// The version of this program.
        wanted: i64,
    },
    /// It is being created or deleted.
    #[error("it is {}", .0.as_str())]
    NotInUse(Provisioning),
    /// The server has a database of this name that does not belong to the move.
    #[error("server {0} already has a database of this name; if an earlier move left it there, drop it on that server")]
    NameTaken(String),
    /// The source database's server is reachable, so the database can be dropped.
    #[error("server {0} is available, so its database can be dropped")]
    NotGone(String),
    /// Copying the last changes and comparing would take longer than writes may wait.
    #[error("writes would have to wait for longer than {} s", .0.as_secs())]
    PauseTooLong(Duration),
    /// An earlier move left a database on a server that is unavailable.
    #[error("cannot drop what an earlier move left on server {server}: {}", problem.with_causes())]
    LeftBehind {
        /// The server.
        server: String,
        /// Why it can't be dropped.
        problem: Error,
    },
    /// The tenant was moved, but a later step failed.
    #[error("it IS on server {server} now, but a later step failed, which `tenantry serve` will retry: {}", problem.with_causes())]
    Unfinished {
        /// The server.
        server: String,
        /// What went wrong.
        problem: Error,
    },
    /// A dependency is down, or there is a bug.
    #[error("{}", .0.with_causes())]
    Failed(Error),
}

impl From<Error> for MoveError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<models::Error> for MoveError {
    fn from(error: models::Error) -> Self {
        Self::Failed(error.into())
    }
}
