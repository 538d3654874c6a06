//! Moves of tenant databases from one server to another.

use crate::{TenantId, Timestamp};

/// A move that is in progress, was interrupted, or still keeps the source database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The source server.
    pub from_server: String,
    /// The target server.
    pub to_server: String,
    /// Its progress.
    pub state: MoveState,
    /// When it began.
    pub began_at: Timestamp,
}

/// The progress of a move. Before [`MoveState::Switched`] the tenant uses the source database, from then on the target database,
/// even if the moving process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveState {
    /// The target database is created and filled; the source database stays writable.
    Copying,
    /// The source database is read-only until the last changes are copied and verified.
    Paused,
    /// The move was aborted; the partial target database is to be dropped.
    Abandoned,
    /// The tenant uses the target database, which is read-only until every instance knows of the switch.
    Switched,
    /// Complete. The source database is kept, write-blocked, until the operator drops it.
    Kept,
}

impl MoveState {
    /// The state's stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Paused => "paused",
            Self::Abandoned => "abandoned",
            Self::Switched => "switched",
            Self::Kept => "kept",
        }
    }

    /// The state with this stored name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Copying, Self::Paused, Self::Abandoned, Self::Switched, Self::Kept].into_iter().find(|state| state.as_str() == text)
    }
}
