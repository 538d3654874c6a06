//! What happened, for the outbox.

use crate::{EventId, TenantId, Timestamp, UserId};

/// Something that happened, written in the transaction of what it tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its identifier, by which consumers recognise a duplicate.
    pub id: EventId,
    /// What happened; also the topic.
    pub kind: EventKind,
    /// The tenant that it concerns; the platform's own when absent.
    pub tenant_id: Option<TenantId>,
    /// Who did it.
    pub user_id: Option<UserId>,
    /// When.
    pub at: Timestamp,
    /// The particulars, a JSON object as text.
    pub data: String,
}

/// The types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A tenant is ready.
    TenantCreated,
    /// A tenant was deactivated, or, when its data says `hard`, deleted for good.
    TenantDeleted,
    /// A document was uploaded.
    DocumentUploaded,
    /// A document was deleted.
    DocumentDeleted,
    /// A file wants processing.
    FileProcess,
    /// Something that an auditor wants to know.
    AuditLog,
}

impl EventKind {
    /// The type's name, which is also its topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TenantCreated => "tenant.created",
            Self::TenantDeleted => "tenant.deleted",
            Self::DocumentUploaded => "document.uploaded",
            Self::DocumentDeleted => "document.deleted",
            Self::FileProcess => "file.process",
            Self::AuditLog => "audit.log",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let kinds =
            [Self::TenantCreated, Self::TenantDeleted, Self::DocumentUploaded, Self::DocumentDeleted, Self::FileProcess, Self::AuditLog];
        kinds.into_iter().find(|kind| kind.as_str() == text)
    }
}
