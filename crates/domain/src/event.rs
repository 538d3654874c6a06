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
    /// Which request it came of, as W3C Trace Context has it.
    pub traceparent: Option<String>,
}

/// An event that could not be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event.
    pub event: Event,
    /// What went wrong the last time.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was given up.
    pub parked_at: Timestamp,
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
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::TenantCreated, Self::TenantDeleted, Self::DocumentUploaded, Self::DocumentDeleted, Self::FileProcess, Self::AuditLog];

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
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}
