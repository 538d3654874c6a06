//! The audit log.

use crate::{EventId, TenantId, TextProblem, Timestamp, UserId};

/// An action that was recorded for auditors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// The event that recorded it.
    pub event_id: EventId,
    /// The tenant that it concerns, if any.
    pub tenant_id: Option<TenantId>,
    /// The action, such as `member.added`.
    pub action: String,
    /// The user who acted; absent for the operator and for callers without an account.
    pub user_id: Option<UserId>,
    /// When it happened.
    pub at: Timestamp,
    /// The payload, a JSON object as text.
    pub data: String,
}

/// A filter over audit entries. An entry must meet every condition that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only this action.
    pub action: Option<String>,
    /// Only actions of this user.
    pub user_id: Option<UserId>,
    /// Only entries at this time or later.
    pub from: Option<Timestamp>,
    /// Only entries before this time.
    pub to: Option<Timestamp>,
}

impl AuditFilter {
    /// Parses the name of an action: lowercase words separated by dots.
    ///
    /// # Errors
    /// Why the text is not an action.
    pub fn parse_action(text: &str) -> Result<String, TextProblem> {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if text.len() <= 64 && text.split('.').all(is_word) { Ok(text.to_owned()) } else { Err("must be an action, such as member.added") }
    }
}
