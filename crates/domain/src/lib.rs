//! The vocabulary of Tenantry: what every layer may name.
//!
//! No I/O and nothing serialisable: a type from here can't leak into an answer or a log by accident. Values that come
//! from outside are parsed into types that can only hold what is valid ([`Email`], [`Filename`], …), so a rule is checked
//! once, where the value enters.

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
pub use error::{Closure, Conflict, Denial, Dependency, Error, FieldErrors, Noun, Result, TokenProblem, dyn_error, error_chain};
pub use event::{DeadLetter, Event, EventKind};
#[cfg(feature = "failpoints")]
pub use failpoint::failpoint_reached;
pub use file::{ContentHash, File, FileUsage, object_key, object_prefix};
pub use id::{DocumentId, EventId, FileId, SessionId, TenantId, TokenId, UploadId, UserId};
pub use idempotency::{IdempotencyKey, PastRequest};
pub use membership::{Member, Membership, Role};
pub use migration::{MigrationAttempt, MigrationOutcome, Wave};
pub use moves::{Move, MoveState};
pub use multipart_upload::{Gathered, MultipartUpload, UploadPart, UploadProtocol, UploadState};
pub use number::saturating_i64;
pub use page::{Page, PageRequest};
pub use quota::{Limit, Quota, QuotaLimits, Shortage, StorageUse};
pub use session::{Session, TokenKind};
pub use tenant::{DatabaseName, Provisioning, Tenant, TenantName, TenantPlace, Tombstone};
pub use text::TextProblem;
pub use user::{Email, NewPassword, PasswordHash, PersonName, User};
