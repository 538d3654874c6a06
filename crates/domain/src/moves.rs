//! Moves of tenants' databases from one server to another.

use crate::{TenantId, Timestamp};

/// A move that is under way, was interrupted, or has left the former database behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Whose database.
    pub tenant_id: TenantId,
    /// The server that it leaves.
    pub from_server: String,
    /// The server that it goes to.
    pub to_server: String,
    /// How far it has come.
    pub state: MoveState,
    /// When it began.
    pub began_at: Timestamp,
}

/// How far a move has come. Until [`MoveState::Switched`] the tenant is where it was, from then on where it goes to, whatever
/// becomes of the process that moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveState {
    /// The new database is made and filled; work in the old one goes on.
    Copying,
    /// Nobody may write until the last changes are copied and compared.
    Paused,
    /// Given up: what there is of the new database is to be dropped.
    Abandoned,
    /// The tenant is in its new database. Nobody may write until every instance knows that.
    Switched,
    /// Complete. The former database is kept, closed for writing, until the operator drops it.
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
