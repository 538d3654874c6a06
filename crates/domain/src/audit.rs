//! The audit log.

use crate::{EventId, TenantId, TextProblem, Timestamp, UserId};

/// Something that somebody did, for an auditor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// The event that told of it.
    pub event_id: EventId,
    /// The tenant that it concerns, if any.
    pub tenant_id: Option<TenantId>,
    /// What was done, as in `member.added`.
    pub action: String,
    /// Who did it; absent when it was nobody with an account, or the operator.
    pub user_id: Option<UserId>,
    /// When.
    pub at: Timestamp,
    /// The particulars, a JSON object as text.
    pub data: String,
}

/// Which entries are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only what was done so.
    pub action: Option<String>,
    /// Only what this user did.
    pub user_id: Option<UserId>,
    /// Only what was done then or later.
    pub from: Option<Timestamp>,
    /// Only what was done before.
    pub to: Option<Timestamp>,
}

impl AuditFilter {
    /// What may be asked for as an action: words in lower case with points between them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_action(text: &str) -> Result<String, TextProblem> {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if text.len() <= 64 && text.split('.').all(is_word) { Ok(text.to_owned()) } else { Err("must be an action, such as member.added") }
    }
}
