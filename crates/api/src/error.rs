//! The form of every error response, and the only place that maps errors to statuses.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use domain::{Conflict, Error, FieldErrors, ForbiddenReason, QuotaExceeded, ResourceKind, TokenProblem, UnavailableReason};
use http_body_util::LengthLimitError;
use http_server::BodyTooSlow;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The services returned an error.
    Service(Error),
    /// The request is malformed.
    Malformed(String),
    /// The body's media type is not supported by this operation.
    UnsupportedMediaType(&'static str),
    /// The body exceeds the size limit of this operation.
    BodyTooLarge,
    /// The client sent the body too slowly.
    BodyTooSlow,
    /// No route matches the path.
    NoRoute,
    /// The route does not support the method.
    NoMethod,
    /// The requested range lies outside the object.
    RangeNotSatisfiable,
    /// The object's entity tag does not match `If-Match`.
    PreconditionFailed,
    /// The client uses an unsupported version of tus.
    TusVersion,
    /// A dependency is down; holds the state of each dependency.
    NotReady(BTreeMap<String, &'static str>),
    /// The request is no valid HTTP, so no route got it.
    Rejected(StatusCode),
    /// A handler panicked.
    Panicked,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::Service(error)
    }
}

impl ApiError {
    /// The error for a body that could not be read to its end.
    pub(crate) fn from_body(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = std::iter::successors(Some(error), |&error| error.source());
        if BodyTooSlow::is_cause_of(error) {
            Self::BodyTooSlow
        } else if causes.any(|error| error.is::<LengthLimitError>()) {
            Self::BodyTooLarge
        } else {
            Self::Malformed("The body is truncated or malformed.".to_owned())
        }
    }

    /// The error for a path that is not UTF-8.
    pub(crate) fn path_not_utf8() -> Self {
        Self::Malformed("The path is not UTF-8.".to_owned())
    }

    /// The response without a body that streams.
    pub(crate) fn to_bytes(&self) -> http::Response<Bytes> {
        let described = self.describe();
        let status = described.status;
        let mut response = http::Response::new(serde_json::to_vec(&Failure::from(described)).unwrap_or_default().into());
        *response.status_mut() = status;
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        response.headers_mut().extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    }

    /// Status, code and body of the response, for the specification.
    pub(crate) fn example(&self) -> (StatusCode, &'static str, Value) {
        let described = self.describe();
        let (status, code) = (described.status, described.code);
        (status, code, json!(Failure::from(described)))
    }
}

/// `{"success": false, "error": {…}}`
#[derive(Serialize, ToSchema)]
pub(crate) struct Failure {
    /// Always false.
    #[schema(example = false)]
    success: bool,
    error: FailureDetails,
}

/// Error details.
#[derive(Serialize, ToSchema)]
pub(crate) struct FailureDetails {
    /// Machine-readable error code: stable, in snake_case.
    code: &'static str,
    /// Human-readable message.
    message: Cow<'static, str>,
    /// If validation failed: the problems of each field. Otherwise error-specific details, if any.
    #[schema(value_type = BTreeMap<String, Value>)]
    details: Value,
}

impl From<Problem> for Failure {
    fn from(Problem { code, message, details, .. }: Problem) -> Self {
        Self { success: false, error: FailureDetails { code, message, details } }
    }
}

struct Problem {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    details: Value,
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), details: json!({}), retry_after: None }
    }

    fn details(self, details: Value) -> Self {
        Self { details, ..self }
    }

    fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }
}

/// `Retry-After` while a dependency is down.
const DEPENDENCY_RETRY: Duration = Duration::from_secs(5);

/// `Retry-After` while a tenant's database is being migrated or moved.
const MIGRATION_RETRY: Duration = Duration::from_secs(2);
/// `Retry-After` while a tenant's database is unavailable until the operator acts.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(60);

impl ApiError {
    fn describe(&self) -> Problem {
        use StatusCode as S;
        match self {
            Self::Service(error) => describe(error),
            Self::Malformed(problem) => Problem::new(S::BAD_REQUEST, "malformed_request", problem.clone()),
            Self::UnsupportedMediaType(wanted) => {
                Problem::new(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", format!("The body must be {wanted}."))
            }
            Self::BodyTooLarge => Problem::new(S::PAYLOAD_TOO_LARGE, "payload_too_large", "The body is too large."),
            Self::BodyTooSlow => Problem::new(S::REQUEST_TIMEOUT, "request_timeout", "The request body arrived too slowly."),
            Self::NoRoute => Problem::new(S::NOT_FOUND, "not_found", "Path not found."),
            Self::NoMethod => Problem::new(S::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed."),
            Self::RangeNotSatisfiable => {
                Problem::new(S::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", "The requested range starts beyond the end of the object.")
            }
            Self::PreconditionFailed => Problem::new(S::PRECONDITION_FAILED, "precondition_failed", PRECONDITION_FAILED),
            Self::TusVersion => {
                Problem::new(S::PRECONDITION_FAILED, "tus_version", "The Tus-Resumable header must be 1.0.0, the only supported version.")
            }
            Self::NotReady(dependencies) => Problem::new(S::SERVICE_UNAVAILABLE, "not_ready", "A dependency is down.")
                .details(json!(dependencies))
                .retry_after(DEPENDENCY_RETRY),
            Self::Rejected(status) => rejected(*status),
            Self::Panicked => internal_error(),
        }
    }
}

fn rejected(status: StatusCode) -> Problem {
    let (code, message) = match status {
        StatusCode::URI_TOO_LONG => ("uri_too_long", "The request target is too long."),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ("header_too_large", "The header section is too large."),
        StatusCode::NOT_IMPLEMENTED => ("unknown_transfer_coding", "The only supported transfer coding is chunked."),
        _ => ("malformed_request", "The request is not valid HTTP/1.1: its request line, Host or a header field is malformed."),
    };
    Problem::new(status, code, message)
}

/// The message of a failed precondition.
const PRECONDITION_FAILED: &str = "The current entity tag does not satisfy If-Match or If-None-Match.";

fn internal_error() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal server error. It has been logged.")
}

fn describe(error: &Error) -> Problem {
    use StatusCode as S;
    match error {
        Error::Invalid(fields) => Problem::new(S::BAD_REQUEST, "validation_failed", "Validation failed.").details(by_field(fields)),
        Error::Unauthenticated(problem) => {
            let (code, message) = match problem {
                TokenProblem::Missing => ("missing_token", "A token is required: Authorization: Bearer TOKEN."),
                TokenProblem::Invalid => ("invalid_token", "The token is invalid."),
                TokenProblem::Expired => ("token_expired", "The token has expired."),
                TokenProblem::Revoked => ("token_revoked", "The session has ended. Log in again."),
                TokenProblem::Reused => {
                    ("token_reused", "The refresh token was already used. The session has ended for safety. Log in again.")
                }
                TokenProblem::BadCredentials => ("invalid_credentials", "Wrong e-mail address or password."),
            };
            Problem::new(S::UNAUTHORIZED, code, message)
        }
        Error::Forbidden(denial) => match denial {
            ForbiddenReason::RoleTooLow { needed } => {
                let message = format!("This requires the role {} or a higher one.", needed.as_str());
                Problem::new(S::FORBIDDEN, "insufficient_role", message).details(json!({ "needed": needed.as_str() }))
            }
            ForbiddenReason::NotOwner => Problem::new(S::FORBIDDEN, "not_owner", "Only the owner of the document or an admin may do this."),
            ForbiddenReason::TenantInactive => Problem::new(S::FORBIDDEN, "tenant_inactive", "The tenant is inactive."),
            ForbiddenReason::QuotaExceeded(QuotaExceeded { unit, quota, used, reserved, needed }) => {
                let message = format!("Quota exceeded: the tenant may store {quota} {unit}.");
                Problem::new(S::FORBIDDEN, "quota_exceeded", message)
                    .details(json!({ "unit": unit, "quota": quota, "used": used, "reserved": reserved, "needed": needed }))
            }
            ForbiddenReason::RegistrationClosed => {
                Problem::new(S::FORBIDDEN, "registration_closed", "Registration is closed. Ask the operator for an account.")
            }
            ForbiddenReason::TooManyTenants { limit } => {
                let message = format!("You have created {limit} active tenants, which is the limit.");
                Problem::new(S::FORBIDDEN, "too_many_tenants", message).details(json!({ "limit": limit }))
            }
            ForbiddenReason::BadSignature => Problem::new(S::FORBIDDEN, "invalid_signature", "The signed URL is invalid or has expired."),
        },
        Error::NotFound(noun) => {
            let (code, message) = match noun {
                ResourceKind::User => ("user_not_found", "User not found."),
                ResourceKind::Tenant => ("tenant_not_found", "Tenant not found."),
                ResourceKind::Member => ("member_not_found", "Member not found."),
                ResourceKind::Document => ("document_not_found", "Document not found."),
                ResourceKind::File => ("file_not_found", "File not found."),
                ResourceKind::Object => ("object_not_found", "Object not found."),
                ResourceKind::Version => ("version_not_found", "Version not found."),
                ResourceKind::Upload => ("upload_not_found", "Upload not found."),
                ResourceKind::DeadLetter => ("dead_letter_not_found", "Dead letter not found."),
            };
            Problem::new(S::NOT_FOUND, code, message)
        }
        Error::Conflict(conflict) => match conflict {
            Conflict::EmailTaken => Problem::new(S::CONFLICT, "email_taken", "An account with this e-mail address already exists."),
            Conflict::AlreadyMember { role } => {
                Problem::new(S::CONFLICT, "already_member", "The user is already a member.").details(json!({ "role": role.as_str() }))
            }
            Conflict::LastAdmin => Problem::new(S::CONFLICT, "last_admin", "The last admin of a tenant cannot be removed or demoted."),
            Conflict::FileInUse { documents } => {
                Problem::new(S::CONFLICT, "file_in_use", "The file is in use by documents.").details(json!({ "document_count": documents }))
            }
            Conflict::IdempotencyKeyReused => {
                let message = "This Idempotency-Key was used for a different request. Use a new key for each request.";
                Problem::new(S::CONFLICT, "idempotency_key_reused", message)
            }
            Conflict::UploadOffset { received } => {
                let message = format!("Upload-Offset mismatch: expected {received}.");
                Problem::new(S::CONFLICT, "upload_offset_mismatch", message).details(json!({ "offset": received }))
            }
            Conflict::UploadClosed => Problem::new(S::CONFLICT, "upload_closed", "The upload is closed and accepts no more data."),
            Conflict::UploadFailed { reason } => Problem::new(S::CONFLICT, "upload_failed", format!("The upload failed: {reason}.")),
            Conflict::IdempotencyKeyInUse => {
                let message = "A request with this Idempotency-Key is still in progress. Try again.";
                Problem::new(S::CONFLICT, "idempotency_key_in_use", message).retry_after(MIGRATION_RETRY)
            }
        },
        // 460 is the status that tus defines for a checksum mismatch.
        Error::ChecksumMismatch => Problem::new(
            S::from_u16(460).unwrap_or(S::BAD_REQUEST),
            "checksum_mismatch",
            "The data does not match Upload-Checksum and was discarded.",
        ),
        Error::PreconditionFailed => Problem::new(S::PRECONDITION_FAILED, "precondition_failed", PRECONDITION_FAILED),
        Error::TooLarge { limit } => {
            Problem::new(S::PAYLOAD_TOO_LARGE, "payload_too_large", format!("The file exceeds the limit of {limit} bytes."))
                .details(json!({ "max_bytes": limit }))
        }
        Error::Overloaded { what, retry_after } => {
            let message = format!("The server is overloaded ({what}). Try again.");
            Problem::new(S::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(*retry_after)
        }
        Error::RateLimited { retry_after } => {
            let message = format!("Too many requests. Try again in {} s.", whole_seconds(*retry_after));
            Problem::new(S::TOO_MANY_REQUESTS, "rate_limited", message).retry_after(*retry_after)
        }
        Error::Unavailable { dependency, .. } => {
            Problem::new(S::SERVICE_UNAVAILABLE, "service_unavailable", format!("The {dependency} is not available. Try again."))
                .details(json!({ "dependency": dependency.as_str() }))
                .retry_after(DEPENDENCY_RETRY)
        }
        Error::TenantUnavailable(closure) => {
            let (code, message, after) = match closure {
                UnavailableReason::Migrating => {
                    ("tenant_migrating", "The tenant's database is being migrated. Try again.", MIGRATION_RETRY)
                }
                UnavailableReason::Moving => {
                    ("tenant_moving", "The tenant's database is being moved and accepts no changes. Try again.", MIGRATION_RETRY)
                }
                UnavailableReason::Quarantined | UnavailableReason::TooNew => {
                    ("tenant_unavailable", "The tenant's database is unavailable until the operator fixes it.", UNAVAILABLE_RETRY)
                }
            };
            Problem::new(S::SERVICE_UNAVAILABLE, code, message).retry_after(after)
        }
        Error::Internal(_) => internal_error(),
    }
}

/// A time in seconds for `Retry-After`: rounded up, since a client that comes too early waits again.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0).max(u64::from(time.is_zero()))
}

fn by_field(fields: &FieldErrors) -> Value {
    json!(fields.by_field())
}

/// Response extension of a denied request: the error's code, for the audit log.
#[derive(Clone, Copy)]
pub(crate) struct Denied(pub(crate) &'static str);

impl ApiError {
    fn is_denial(&self) -> bool {
        let Self::Service(error) = self else { return false };
        match error {
            Error::Forbidden(denial) => !matches!(
                denial,
                ForbiddenReason::QuotaExceeded(_)
                    | ForbiddenReason::BadSignature
                    | ForbiddenReason::RegistrationClosed
                    | ForbiddenReason::TooManyTenants { .. }
            ),
            Error::NotFound(noun) => *noun == ResourceKind::Tenant,
            _ => false,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // Logged here and nowhere else, inside the request's span.
        match &self {
            Self::Service(error @ Error::Internal(_)) => tracing::error!(error = error as &dyn std::error::Error, "internal error"),
            Self::Service(error @ Error::Unavailable { .. }) => {
                tracing::warn!(error = error as &dyn std::error::Error, "a dependency is unavailable");
            }
            _ => {}
        }
        let described = self.describe();
        let Problem { status, code, retry_after, .. } = described;
        let mut response = (status, Json(Failure::from(described))).into_response();
        if self.is_denial() {
            response.extensions_mut().insert(Denied(code));
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3: the challenge for a request without a token carries no error code.
            let missing = code == "missing_token" || code == "invalid_credentials";
            let challenge = if missing { "Bearer" } else { "Bearer error=\"invalid_token\"" };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::REQUEST_TIMEOUT {
            // The server does not read the rest of the body.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
