//! The one form of every failure, and the only place that knows which error has which status.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use domain::{Closure, Conflict, Denial, Error, FieldErrors, Noun, Shortage, TokenProblem};
use http_server::BodyTooSlow;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The services refused.
    Refused(Error),
    /// The request can't be read.
    Malformed(String),
    /// Its body is of a type that is not understood here.
    UnsupportedMediaType(&'static str),
    /// Its body is larger than anything that is read here.
    BodyTooLarge,
    /// Its body came too slowly.
    BodyTooSlow,
    /// There is no such path.
    NoRoute,
    /// The path knows no such method.
    NoMethod,
    /// These bytes are not in the object.
    RangeNotSatisfiable,
    /// The object is not the one that `If-Match` names.
    PreconditionFailed,
    /// The client speaks another version of tus.
    TusVersion,
    /// Dependencies are down: each with its state.
    NotReady(BTreeMap<String, &'static str>),
    /// A handler panicked.
    Panicked,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl ApiError {
    /// The error for a body that could not be read to its end; `status` is what the reader makes of it.
    pub(crate) fn from_body(status: StatusCode, error: &(dyn std::error::Error + 'static)) -> Self {
        if BodyTooSlow::is_cause_of(error) {
            Self::BodyTooSlow
        } else if status == StatusCode::PAYLOAD_TOO_LARGE {
            Self::BodyTooLarge
        } else {
            Self::Malformed("The body was cut off or is damaged.".to_owned())
        }
    }

    /// The error for a path that is not UTF-8.
    pub(crate) fn path_not_utf8() -> Self {
        Self::Malformed("The path is not UTF-8.".to_owned())
    }

    /// What it is answered with: status, code and body, for the specification.
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

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub(crate) struct FailureDetails {
    /// For programs: stable, in snake_case.
    code: &'static str,
    /// For a person.
    message: Cow<'static, str>,
    /// When validation failed: for each field, what is wrong with it. Otherwise particulars of the error, if any.
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

/// How long a client should leave a dependency alone that is down.
const DEPENDENCY_RETRY: Duration = Duration::from_secs(5);

/// How long a client should leave a tenant alone whose database is being migrated or moved, and one that waits for the operator.
const MIGRATION_RETRY: Duration = Duration::from_secs(2);
const CLOSED_RETRY: Duration = Duration::from_secs(60);

impl ApiError {
    fn describe(&self) -> Problem {
        use StatusCode as S;
        match self {
            Self::Refused(error) => describe(error),
            Self::Malformed(problem) => Problem::new(S::BAD_REQUEST, "malformed_request", problem.clone()),
            Self::UnsupportedMediaType(wanted) => {
                Problem::new(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", format!("The body must be {wanted}."))
            }
            Self::BodyTooLarge => Problem::new(S::PAYLOAD_TOO_LARGE, "payload_too_large", "The body is too large."),
            Self::BodyTooSlow => Problem::new(S::REQUEST_TIMEOUT, "request_timeout", "The body came too slowly."),
            Self::NoRoute => Problem::new(S::NOT_FOUND, "not_found", "There is nothing at this path."),
            Self::NoMethod => Problem::new(S::METHOD_NOT_ALLOWED, "method_not_allowed", "The path does not know this method."),
            Self::RangeNotSatisfiable => {
                Problem::new(S::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", "The object ends before the first of these bytes.")
            }
            Self::PreconditionFailed => {
                Problem::new(S::PRECONDITION_FAILED, "precondition_failed", "The object is not the one that If-Match names.")
            }
            Self::TusVersion => Problem::new(
                S::PRECONDITION_FAILED,
                "tus_version",
                "The header Tus-Resumable must name the version that is spoken here: 1.0.0.",
            ),
            Self::NotReady(dependencies) => Problem::new(S::SERVICE_UNAVAILABLE, "not_ready", "A dependency is down.")
                .details(json!(dependencies))
                .retry_after(DEPENDENCY_RETRY),
            Self::Panicked => internal_error(),
        }
    }
}

fn internal_error() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Something went wrong on our side. It has been logged.")
}

fn describe(error: &Error) -> Problem {
    use StatusCode as S;
    match error {
        Error::Invalid(fields) => Problem::new(S::BAD_REQUEST, "validation_failed", "Some values are not valid.").details(by_field(fields)),
        Error::Unauthenticated(problem) => {
            let (code, message) = match problem {
                TokenProblem::Missing => ("missing_token", "A token is needed: Authorization: Bearer TOKEN."),
                TokenProblem::Invalid => ("invalid_token", "The token is not valid."),
                TokenProblem::Expired => ("token_expired", "The token has expired."),
                TokenProblem::Revoked => ("token_revoked", "The session has ended. Log in again."),
                TokenProblem::Reused => {
                    ("token_reused", "The refresh token was used before. For safety the session has ended: log in again.")
                }
                TokenProblem::BadCredentials => ("invalid_credentials", "E-mail address or password is wrong."),
            };
            Problem::new(S::UNAUTHORIZED, code, message)
        }
        Error::Forbidden(denial) => match denial {
            Denial::RoleTooLow { needed } => {
                let message = format!("This needs the role {} or a higher one.", needed.as_str());
                Problem::new(S::FORBIDDEN, "insufficient_role", message).details(json!({ "needed": needed.as_str() }))
            }
            Denial::NotOwner => Problem::new(S::FORBIDDEN, "not_owner", "Only the owner of the document or an admin may do this."),
            Denial::TenantInactive => Problem::new(S::FORBIDDEN, "tenant_inactive", "The tenant is inactive."),
            Denial::QuotaExceeded(Shortage { unit, quota, used, reserved, needed }) => {
                let message = format!("The tenant may store {quota} {unit}, and this would be more.");
                Problem::new(S::FORBIDDEN, "quota_exceeded", message)
                    .details(json!({ "unit": unit, "quota": quota, "used": used, "reserved": reserved, "needed": needed }))
            }
            Denial::BadSignature => Problem::new(S::FORBIDDEN, "invalid_signature", "The URL was changed or has expired."),
        },
        Error::NotFound(noun) => {
            let (code, message) = match noun {
                Noun::User => ("user_not_found", "There is no such user."),
                Noun::Tenant => ("tenant_not_found", "There is no such tenant."),
                Noun::Member => ("member_not_found", "The tenant has no such member."),
                Noun::Document => ("document_not_found", "There is no such document."),
                Noun::File => ("file_not_found", "There is no such file."),
                Noun::Object => ("object_not_found", "There is no such object."),
                Noun::Version => ("version_not_found", "The document has no such version."),
                Noun::Upload => ("upload_not_found", "There is no such upload."),
                Noun::DeadLetter => ("dead_letter_not_found", "There is no such dead letter."),
            };
            Problem::new(S::NOT_FOUND, code, message)
        }
        Error::Conflict(conflict) => match conflict {
            Conflict::EmailTaken => Problem::new(S::CONFLICT, "email_taken", "Somebody has an account with this e-mail address."),
            Conflict::AlreadyMember { role } => {
                Problem::new(S::CONFLICT, "already_member", "The user is already a member.").details(json!({ "role": role.as_str() }))
            }
            Conflict::LastAdmin => Problem::new(S::CONFLICT, "last_admin", "A tenant needs an admin, and this is its last one."),
            Conflict::FileInUse { documents } => {
                Problem::new(S::CONFLICT, "file_in_use", "Documents refer to this file.").details(json!({ "document_count": documents }))
            }
            Conflict::IdempotencyKeyReused => {
                let message = "Another request was made with this Idempotency-Key. Take a new one for each request.";
                Problem::new(S::CONFLICT, "idempotency_key_reused", message)
            }
            Conflict::UploadOffset { received } => {
                let message = format!("The upload goes on at byte {received}.");
                Problem::new(S::CONFLICT, "upload_offset_mismatch", message).details(json!({ "offset": received }))
            }
            Conflict::UploadClosed => Problem::new(S::CONFLICT, "upload_closed", "The upload takes nothing more."),
            Conflict::UploadFailed { reason } => {
                Problem::new(S::CONFLICT, "upload_failed", format!("The upload came to nothing: {reason}."))
            }
            Conflict::IdempotencyKeyInUse => {
                let message = "The request with this Idempotency-Key is still being done. Try again.";
                Problem::new(S::CONFLICT, "idempotency_key_in_use", message).retry_after(MIGRATION_RETRY)
            }
        },
        // The status that tus has for it.
        Error::ChecksumMismatch => Problem::new(
            S::from_u16(460).unwrap_or(S::BAD_REQUEST),
            "checksum_mismatch",
            "What arrived has another checksum than Upload-Checksum says. Nothing of it was kept.",
        ),
        Error::PreconditionFailed => {
            Problem::new(S::PRECONDITION_FAILED, "precondition_failed", "The document is not the one that If-Match names: it was changed.")
        }
        Error::TooLarge { limit } => {
            Problem::new(S::PAYLOAD_TOO_LARGE, "payload_too_large", format!("The file is larger than {limit} bytes."))
                .details(json!({ "max_bytes": limit }))
        }
        Error::Overloaded { what, retry_after } => {
            let message = format!("Too much to do at the moment ({what}). Try again.");
            Problem::new(S::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(*retry_after)
        }
        Error::Unavailable { dependency, .. } => {
            Problem::new(S::SERVICE_UNAVAILABLE, "service_unavailable", format!("The {dependency} is not available. Try again."))
                .details(json!({ "dependency": dependency.as_str() }))
                .retry_after(DEPENDENCY_RETRY)
        }
        Error::Closed(closure) => {
            let (code, message, after) = match closure {
                Closure::Migrating => {
                    ("tenant_migrating", "The tenant's database is being brought up to date. Try again.", MIGRATION_RETRY)
                }
                Closure::Moving => ("tenant_moving", "The tenant's database is moving and takes no changes. Try again.", MIGRATION_RETRY),
                Closure::Quarantined | Closure::TooNew => {
                    ("tenant_unavailable", "The tenant's database is not available until its operator has seen to it.", CLOSED_RETRY)
                }
            };
            Problem::new(S::SERVICE_UNAVAILABLE, code, message).retry_after(after)
        }
        Error::Internal(_) => internal_error(),
    }
}

fn by_field(fields: &FieldErrors) -> Value {
    json!(fields.by_field())
}

/// Goes with the answer to somebody who wanted what they may not, for the audit log: the error's code.
#[derive(Clone, Copy)]
pub(crate) struct Denied(pub(crate) &'static str);

impl ApiError {
    fn is_denial(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        match error {
            Error::Forbidden(denial) => !matches!(denial, Denial::QuotaExceeded(_) | Denial::BadSignature),
            Error::NotFound(noun) => *noun == Noun::Tenant,
            _ => false,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // Logged here and nowhere else, inside the request's span.
        match &self {
            Self::Refused(error @ Error::Internal(_)) => tracing::error!(error = error as &dyn std::error::Error, "internal error"),
            Self::Refused(error @ Error::Unavailable { .. }) => {
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
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3: a request without a token is told no error.
            let missing = code == "missing_token" || code == "invalid_credentials";
            let challenge = if missing { "Bearer" } else { "Bearer error=\"invalid_token\"" };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the body is not going to be read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
