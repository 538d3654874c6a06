//! What can go wrong, in the product's terms. Knows no HTTP and no SQL; the API maps it to an answer in one place.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{Role, Shortage, TextProblem};

/// The result of whatever a user can ask for.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Values that break a rule, by field.
    #[error("validation failed")]
    Invalid(FieldErrors),
    /// Nobody who is known asks.
    #[error("not authenticated: {0:?}")]
    Unauthenticated(TokenProblem),
    /// Who asks is known, and may not.
    #[error("forbidden: {0:?}")]
    Forbidden(Denial),
    /// It is not there, or not the caller's to know of.
    #[error("{0:?} not found")]
    NotFound(Noun),
    /// It contradicts what is there.
    #[error("conflict: {0:?}")]
    Conflict(Conflict),
    /// It is not as the caller expects it to be: somebody changed it meanwhile.
    #[error("precondition failed")]
    PreconditionFailed,
    /// What arrived is not what was sent.
    #[error("checksum mismatch")]
    ChecksumMismatch,
    /// The content has more bytes than allowed.
    #[error("content larger than {limit} bytes")]
    TooLarge {
        /// The most bytes allowed.
        limit: u64,
    },
    /// There is more to do than can be done; later there may not be.
    #[error("overloaded: {what}")]
    Overloaded {
        /// What is short.
        what: &'static str,
        /// When to come back.
        retry_after: Duration,
    },
    /// Something that it needs is down.
    #[error("{dependency} is unavailable")]
    Unavailable {
        /// What is down, as operators call it.
        dependency: Dependency,
        /// What it said, for the log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// One tenant's database takes nobody in, while everything else works.
    #[error("the tenant is closed: {0:?}")]
    Closed(Closure),
    /// A bug, or a damaged system.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What the product depends on, as operators call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// The main database, or a database that its caller does not name further.
    Database,
    /// The database of one tenant.
    TenantDatabase,
    /// A server of tenants' databases.
    Server,
    /// The object storage.
    ObjectStorage,
    /// The events that wait to be published.
    Outbox,
    /// What delivers events.
    EventBus,
    /// One that the check of all dependencies does not name.
    Other,
}

impl Dependency {
    /// Its name in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::TenantDatabase => "tenant database",
            Self::Server => "server",
            Self::ObjectStorage => "object storage",
            Self::Outbox => "outbox",
            Self::EventBus => "event bus",
            Self::Other => "dependency",
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    /// An internal error from a cause.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// What went wrong with all its causes, on one line: for operators.
    #[must_use]
    pub fn with_causes(&self) -> String {
        error_chain(self).map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    /// The error for one field that breaks a rule.
    #[must_use]
    pub fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        let mut errors = FieldErrors::default();
        errors.add(field, problem);
        Self::Invalid(errors)
    }
}

/// An error as the value of a field of a log event: `error = dyn_error(&error)` logs it with its causes.
#[must_use]
pub fn dyn_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    error
}

/// An error, its cause, the cause of that, and so on.
pub fn error_chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Messages by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(BTreeMap<String, Vec<String>>);

impl FieldErrors {
    /// Notes that a field breaks a rule.
    pub fn add(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.entry(field.into()).or_default().push(problem.into());
    }

    /// Takes a parsed value, or notes why there is none.
    pub fn take<T>(&mut self, field: &'static str, parsed: Result<T, TextProblem>) -> Option<T> {
        parsed.map_err(|problem| self.add(field, problem)).ok()
    }

    /// Whether no field breaks a rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The messages by field, in the order of the fields' names.
    #[must_use]
    pub fn by_field(&self) -> &BTreeMap<String, Vec<String>> {
        &self.0
    }

    /// Fails when any field breaks a rule.
    pub fn check(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::Invalid(self)) }
    }
}

/// What is wrong with a token or credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenProblem {
    /// There is none.
    Missing,
    /// It is none of ours, was tampered with, or is of the wrong type.
    Invalid,
    /// Its time is over.
    Expired,
    /// Its session has ended.
    Revoked,
    /// A refresh token was used again: the whole session has ended.
    Reused,
    /// E-mail address and password don't belong together, or the account may not log in.
    BadCredentials,
}

/// Why somebody who is known may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The role allows less.
    RoleTooLow {
        /// The least role that would do.
        needed: Role,
    },
    /// The document is somebody else's.
    NotOwner,
    /// The tenant is inactive.
    TenantInactive,
    /// A signed URL was changed, or its time is over.
    BadSignature,
    /// The tenant's quota does not reach.
    QuotaExceeded(Shortage),
}

/// Why nobody is let into a tenant's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// It is being brought to this program's schema.
    Migrating,
    /// It is moving to another server, and can only be read.
    Moving,
    /// A migration of it failed.
    Quarantined,
    /// It has the schema of a program that is too new for this one to understand.
    TooNew,
}

/// What was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noun {
    /// A user.
    User,
    /// A tenant.
    Tenant,
    /// A member of a tenant.
    Member,
    /// A document.
    Document,
    /// A file.
    File,
    /// A stored object.
    Object,
    /// A content that a document has or had.
    Version,
    /// An upload in parts.
    Upload,
    /// An event that could not be handled.
    DeadLetter,
}

/// What is already there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Somebody has an account with this address.
    EmailTaken,
    /// The user is already a member.
    AlreadyMember {
        /// As what.
        role: Role,
    },
    /// A tenant needs an admin, and this is the last one.
    LastAdmin,
    /// Documents refer to the file.
    FileInUse {
        /// How many.
        documents: u64,
    },
    /// Another request was made with this idempotency key.
    IdempotencyKeyReused,
    /// The request with this idempotency key is still being done.
    IdempotencyKeyInUse,
    /// The bytes belong to another place of the upload than where it is.
    UploadOffset {
        /// How many bytes of it are here.
        received: u64,
    },
    /// The upload takes nothing more: it has all its parts, or came to its end.
    UploadClosed,
    /// The upload came to nothing.
    UploadFailed {
        /// Why.
        reason: String,
    },
}
