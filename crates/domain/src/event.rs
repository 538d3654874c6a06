//! Events, as the outbox holds them.

use crate::{EventId, TenantId, Timestamp, UserId};

/// An event, written in the transaction of the change that it records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its identifier, by which consumers recognise duplicates.
    pub id: EventId,
    /// Its type, which also names the topic.
    pub kind: EventKind,
    /// The tenant that it concerns; absent for platform events.
    pub tenant_id: Option<TenantId>,
    /// The user who caused it.
    pub user_id: Option<UserId>,
    /// When it happened.
    pub at: Timestamp,
    /// The payload, a JSON object as text.
    pub data: String,
    /// The `traceparent` (W3C Trace Context) of the request that caused it.
    pub traceparent: Option<String>,
}

/// An event that could not be handled or published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event.
    pub event: Event,
    /// The error of the last attempt.
    pub error: String,
    /// The number of attempts.
    pub attempts: u32,
    /// When it was dead-lettered.
    pub dead_lettered_at: Timestamp,
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A tenant is ready.
    TenantCreated,
    /// A tenant was deactivated or, if the payload says `hard`, permanently deleted.
    TenantDeleted,
    /// A document was uploaded.
    DocumentUploaded,
    /// A document was deleted.
    DocumentDeleted,
    /// A file needs processing.
    FileProcess,
    /// An action to record in the audit log.
    AuditLog,
}

impl EventKind {
    /// All event types.
    pub const ALL: [Self; 6] =
        [Self::TenantCreated, Self::TenantDeleted, Self::DocumentUploaded, Self::DocumentDeleted, Self::FileProcess, Self::AuditLog];

    /// The type's name, which is also the name of its topic.
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
