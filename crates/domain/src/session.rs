//! Logins.

use crate::{SessionId, Timestamp, TokenId, UserId};

/// A login, from which access tokens and one refresh token after the other descend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its identifier (`sid` in tokens).
    pub id: SessionId,
    /// Whose login it is.
    pub user_id: UserId,
    /// The refresh token that may be used next.
    pub refresh_id: TokenId,
    /// When that token was issued.
    pub refresh_issued_at: Timestamp,
    /// The refresh token used last: using it again within the grace gets the same successor, later it is theft.
    pub previous_refresh_id: Option<TokenId>,
    /// When it ended by logout, theft or deactivation.
    pub ended_at: Option<Timestamp>,
    /// When the login took place.
    pub created_at: Timestamp,
}

/// What a token is good for (`type` in tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Calls the API.
    Access,
    /// Gets the next access token.
    Refresh,
}

impl TokenKind {
    /// The kind's name in tokens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
        }
    }
}
