//! Sessions and tokens.

use crate::{SessionId, Timestamp, TokenId, UserId};

/// A session: a login with its access tokens and its chain of refresh tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its identifier (`sid` in tokens).
    pub id: SessionId,
    /// The user who logged in.
    pub user_id: UserId,
    /// The current refresh token.
    pub refresh_id: TokenId,
    /// When that token was issued.
    pub refresh_issued_at: Timestamp,
    /// The previous refresh token. Its reuse within the grace period yields the same successor; later reuse counts as theft.
    pub previous_refresh_id: Option<TokenId>,
    /// When a logout, a theft or a deactivation ended it.
    pub ended_at: Option<Timestamp>,
    /// When the user logged in.
    pub created_at: Timestamp,
}

/// The kind of a token (`type` in tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Authorizes API requests.
    Access,
    /// Obtains the next access token.
    Refresh,
    /// Shows at a login that the client logged in before.
    Device,
}

impl TokenKind {
    /// The kind's name in tokens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
            Self::Device => "device",
        }
    }
}
