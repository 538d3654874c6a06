//! Tenantry's domain types, which every layer may use.
//!
//! This crate does no I/O and no type is serialisable, so none can leak into a response or a log by accident. Input is parsed
//! into types that only hold valid values ([`Email`], [`Filename`], …), so each rule is checked once, where the value enters.

mod audit;
mod clock;
mod document;
mod error;
mod event;
mod failpoint;
mod file;
mod id;
mod idempotency;
mod membership;
mod migration;
mod moves;
mod multipart_upload;
mod number;
mod page;
mod quota;
mod session;
mod tenant;
mod text;
mod user;

pub use audit::{AuditEntry, AuditFilter};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp, random_bytes};
pub use document::{Document, DocumentFilter, DocumentVersion, Filename, MimeType};
pub use error::{
    Conflict, Dependency, Error, FieldErrors, ForbiddenReason, ResourceKind, Result, TokenProblem, UnavailableReason, dyn_error,
    error_chain,
};
pub use event::{DeadLetter, Event, EventKind};
#[cfg(feature = "failpoints")]
pub use failpoint::failpoint_reached;
pub use file::{ContentHash, File, FileUsage, object_key, object_prefix};
pub use id::{DocumentId, EventId, FileId, SessionId, TenantId, TokenId, UploadId, UserId};
pub use idempotency::{IdempotencyKey, PastRequest};
pub use membership::{Member, Membership, Role};
pub use migration::{MigrationAttempt, MigrationOutcome, Wave};
pub use moves::{Move, MoveState};
pub use multipart_upload::{MultipartUpload, StorageUpload, UploadPart, UploadProtocol, UploadState};
pub use number::saturating_i64;
pub use page::{Page, PageRequest};
pub use quota::{Limit, Quota, QuotaExceeded, QuotaLimits, StorageUse};
pub use session::{Session, TokenKind};
pub use tenant::{DatabaseName, Provisioning, Tenant, TenantLocation, TenantName, Tombstone};
pub use text::{TextProblem, opaque_string, search_key};
pub use user::{Email, NewPassword, PasswordHash, PersonName, User};
