//! Errors in the product's terms. This module knows neither HTTP nor SQL; the API maps errors to responses in one place.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{QuotaExceeded, Role, TextProblem};

/// The result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Validation failed; the messages are grouped by field.
    #[error("validation failed")]
    Invalid(FieldErrors),
    /// The caller is not authenticated.
    #[error("not authenticated: {0:?}")]
    Unauthenticated(TokenProblem),
    /// The caller is authenticated but not permitted.
    #[error("forbidden: {0:?}")]
    Forbidden(ForbiddenReason),
    /// The resource does not exist, or the caller may not know that it does.
    #[error("{0:?} not found")]
    NotFound(ResourceKind),
    /// The request conflicts with the current state.
    #[error("conflict: {0:?}")]
    Conflict(Conflict),
    /// A precondition of the caller does not hold: the resource has changed meanwhile.
    #[error("precondition failed")]
    PreconditionFailed,
    /// The received content does not match the declared checksum.
    #[error("checksum mismatch")]
    ChecksumMismatch,
    /// The content exceeds the maximum size.
    #[error("content larger than {limit} bytes")]
    TooLarge {
        /// The maximum size in bytes.
        limit: u64,
    },
    /// The server is overloaded; a retry may succeed.
    #[error("overloaded: {what}")]
    Overloaded {
        /// The exhausted resource.
        what: &'static str,
        /// How long the caller waits before a retry.
        retry_after: Duration,
    },
    /// The caller, or what the caller asks for, has reached a limit of requests.
    #[error("rate limited")]
    RateLimited {
        /// When the next request is allowed.
        retry_after: Duration,
    },
    /// A dependency is down.
    #[error("{dependency} is unavailable")]
    Unavailable {
        /// The dependency, by the name that operators know.
        dependency: Dependency,
        /// The cause, for the log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// One tenant's database is unavailable; all other tenants work.
    #[error("the tenant is unavailable: {0:?}")]
    TenantUnavailable(UnavailableReason),
    /// A bug, or corrupt data.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A dependency, by the name that operators know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// The main database, or a database that the caller does not name further.
    Database,
    /// The database of one tenant.
    TenantDatabase,
    /// A server that holds tenant databases.
    Server,
    /// The object storage.
    ObjectStorage,
    /// The outbox: events that are not published yet.
    Outbox,
    /// The event bus.
    EventBus,
    /// A dependency that the readiness check does not name.
    Other,
}

impl Dependency {
    /// Its name in responses and logs.
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

    /// The error with all its causes on one line, for operators.
    #[must_use]
    pub fn with_causes(&self) -> String {
        error_chain(self).map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    /// A validation error for one field.
    #[must_use]
    pub fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        let mut errors = FieldErrors::default();
        errors.add(field, problem);
        Self::Invalid(errors)
    }
}

/// Casts an error for use as a log field: `error = dyn_error(&error)` logs it with its causes.
#[must_use]
pub fn dyn_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    error
}

/// Iterates over an error and its chain of causes.
pub fn error_chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Validation messages, grouped by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(BTreeMap<String, Vec<String>>);

impl FieldErrors {
    /// Adds a message for a field.
    pub fn add(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.entry(field.into()).or_default().push(problem.into());
    }

    /// Returns the parsed value, or adds a message for the field.
    pub fn take<T>(&mut self, field: &'static str, parsed: Result<T, TextProblem>) -> Option<T> {
        parsed.map_err(|problem| self.add(field, problem)).ok()
    }

    /// Whether there are no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The messages by field, sorted by field name.
    #[must_use]
    pub fn by_field(&self) -> &BTreeMap<String, Vec<String>> {
        &self.0
    }

    /// Fails if there is any message.
    pub fn check(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::Invalid(self)) }
    }
}

/// Why a token or credentials were rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenProblem {
    /// The request has no token.
    Missing,
    /// The token was not issued by this deployment, was tampered with, or has the wrong type.
    Invalid,
    /// The token has expired.
    Expired,
    /// The token's session has ended.
    Revoked,
    /// A refresh token was reused; this ended the whole session.
    Reused,
    /// The e-mail address and password do not match, or the account may not log in.
    BadCredentials,
}

/// Why an authenticated caller is not permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForbiddenReason {
    /// The caller's role is not sufficient.
    RoleTooLow {
        /// The lowest sufficient role.
        needed: Role,
    },
    /// The document belongs to another user.
    NotOwner,
    /// The tenant is inactive.
    TenantInactive,
    /// The signed URL was altered or has expired.
    BadSignature,
    /// The request would exceed the tenant's quota.
    QuotaExceeded(QuotaExceeded),
    /// The operator alone creates accounts.
    RegistrationClosed,
    /// The user has created as many tenants as are allowed.
    TooManyTenants {
        /// How many are allowed.
        limit: u64,
    },
}

/// Why a tenant is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableReason {
    /// Its database is being migrated to this program's schema.
    Migrating,
    /// Its database is moving to another server and is read-only.
    Moving,
    /// A migration of its database failed.
    Quarantined,
    /// Its database has a newer schema than this program supports.
    TooNew,
}

/// The kind of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
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
    /// A current or former version of a document.
    Version,
    /// A multipart upload.
    Upload,
    /// An event that could not be handled or published.
    DeadLetter,
}

/// What a request conflicts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The e-mail address already has an account.
    EmailTaken,
    /// The user is already a member.
    AlreadyMember {
        /// The member's current role.
        role: Role,
    },
    /// The user is the tenant's last admin, and a tenant needs one.
    LastAdmin,
    /// Documents refer to the file.
    FileInUse {
        /// The number of documents.
        documents: u64,
    },
    /// The idempotency key was used for a different request.
    IdempotencyKeyReused,
    /// The request with this idempotency key is still in progress.
    IdempotencyKeyInUse,
    /// The offset of the request differs from the upload's offset.
    UploadOffset {
        /// The number of bytes received so far.
        received: u64,
    },
    /// The upload accepts no more parts: it has all of them, or it has ended.
    UploadClosed,
    /// The upload failed.
    UploadFailed {
        /// Why it failed.
        reason: String,
    },
}
