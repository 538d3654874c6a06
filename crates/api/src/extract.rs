//! Extractors for handlers. Every rejection is an [`ApiError`].

use axum::{
    body::Bytes,
    extract::{FromRef, FromRequest, FromRequestParts, OptionalFromRequest, RawPathParams, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use domain::{DocumentId, Error, FieldErrors, FileId, IdempotencyKey, TenantId, TextProblem, TokenProblem, UploadId, UserId};
use http_body::Body as _;
use http_body_util::Limited;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use services::{Caller, UserServices};
use uuid::Uuid;

use crate::{
    App, MAX_JSON_BYTES,
    error::ApiError,
    limits::{Class, Report},
};

/// The authenticated caller.
pub(crate) struct Authenticated(pub(crate) Caller);

impl FromRequestParts<App> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let services = UserServices::from_ref(app);
        let caller = services.authenticate(bearer_token(&parts.headers)?).await?;
        if let Some(limiters) = &app.limiters {
            let (path, class) = (parts.uri.path(), Class::of(&parts.method, parts.uri.path()));
            let report = Report::of(parts);
            limiters.check_user(class, caller.user_id(), &report)?;
            // A stranger must not use up the limit of the tenant.
            if let Some(tenant_id) = tenant_in(path)
                && services.is_member(&caller, tenant_id).await?
            {
                limiters.check_tenant(tenant_id, &report)?;
            }
        }
        Ok(Self(caller))
    }
}

/// The token of the `Authorization: Bearer TOKEN` header (RFC 6750), if present.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let invalid = || ApiError::from(Error::Unauthenticated(TokenProblem::Invalid));
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(invalid)?;
    if values.next().is_some() || !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid());
    }
    Ok(Some(token.trim()))
}

/// The tenant id in a path, if present.
pub(crate) fn tenant_in(path: &str) -> Option<TenantId> {
    let (_, rest) = path.split_once("/tenants/").or_else(|| path.split_once("/files/"))?;
    percent_decode_str(rest.split('/').next()?).decode_utf8().ok()?.parse().ok()
}

/// The ids in the path, in order.
pub(crate) struct PathIds<T>(pub(crate) T);

/// A positive number: of a version or a part.
pub(crate) struct Number(pub(crate) u64);

/// A value that can be parsed from path segments.
pub(crate) trait FromPath: Sized {
    fn take(segments: &mut Segments<'_>) -> Self;
}

/// The variable segments of a path, and their validation errors.
pub(crate) struct Segments<'a> {
    params: Vec<(&'a str, &'a str)>,
    errors: FieldErrors,
}

impl Segments<'_> {
    /// Parses the next segment. On failure records the error and returns the default as a placeholder.
    fn parse<T: Default>(&mut self, parse: impl FnOnce(&str) -> Result<T, TextProblem>) -> T {
        let (name, text) = self.params.pop().unwrap_or_default();
        parse(text).unwrap_or_else(|problem| {
            self.errors.add(name, problem);
            T::default()
        })
    }
}

macro_rules! ids_from_path {
    ($($id:ty),+) => {$(
        impl FromPath for $id {
            fn take(segments: &mut Segments<'_>) -> Self {
                Self::from(segments.parse(uuid_field))
            }
        }
    )+};
}

ids_from_path!(DocumentId, FileId, TenantId, UploadId, UserId);

impl FromPath for Number {
    fn take(segments: &mut Segments<'_>) -> Self {
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0).ok_or("must be a whole number from 1");
        Self(segments.parse(number))
    }
}

impl<A: FromPath, B: FromPath> FromPath for (A, B) {
    fn take(segments: &mut Segments<'_>) -> Self {
        (A::take(segments), B::take(segments))
    }
}

impl<A: FromPath, B: FromPath, C: FromPath> FromPath for (A, B, C) {
    fn take(segments: &mut Segments<'_>) -> Self {
        (A::take(segments), B::take(segments), C::take(segments))
    }
}

impl<T: FromPath> FromRequestParts<App> for PathIds<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, app).await;
        let params = params.map_err(|_| ApiError::path_not_utf8())?;
        let mut params: Vec<_> = params.iter().collect();
        params.reverse();
        let mut segments = Segments { params, errors: FieldErrors::default() };
        let ids = T::take(&mut segments);
        segments.errors.check()?;
        Ok(Self(ids))
    }
}

const NOT_A_UUID: TextProblem = "must be a UUID";

/// Parses a UUID in its canonical form only.
pub(crate) fn parse_uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { text.parse().ok() } else { None }
}

/// Parses a UUID of a body or a query, for [`FieldErrors::take`].
pub(crate) fn uuid_field(text: &str) -> Result<Uuid, TextProblem> {
    parse_uuid(text).ok_or(NOT_A_UUID)
}

/// A JSON body.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::UnsupportedMediaType("application/json"));
        }
        let limited = request.map(|body| axum::body::Body::new(Limited::new(body, MAX_JSON_BYTES)));
        let bytes = Bytes::from_request(limited, app).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge,
            _ => ApiError::from_body(&rejection),
        })?;
        if bytes.trim_ascii_start().starts_with(b"[") {
            // serde would accept an array and fill the fields by position.
            return Err(wrong_value("body", ".".to_owned(), "must be an object"));
        }
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let problem = error.into_inner();
            if problem.is_data() { wrong_value("body", path, &problem.to_string()) } else { not_json(&problem) }
        })?;
        json.end().map_err(|problem| not_json(&problem))?;
        Ok(Self(parsed))
    }
}

impl<T: DeserializeOwned> OptionalFromRequest<App> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Option<Self>, ApiError> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        <Self as FromRequest<App>>::from_request(request, app).await.map(Some)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn not_json(problem: &serde_json::Error) -> ApiError {
    ApiError::Malformed(format!("The body is not JSON: {problem}."))
}

fn wrong_value(whole: &str, path: String, problem: &str) -> ApiError {
    // The field's name makes line and column redundant.
    let problem = problem.split(" at line ").next().unwrap_or(problem);
    let field = if path == "." { whole.to_owned() } else { path };
    let mut errors = FieldErrors::default();
    errors.add(field, problem);
    Error::Invalid(errors).into()
}

/// The value of the `Idempotency-Key` header, if present.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, ApiError> {
    const NAME: &str = "Idempotency-Key";
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = match (value.to_str(), values.next()) {
        (Ok(text), None) => IdempotencyKey::parse(text),
        (Ok(_), Some(_)) => Err("must be given only once"),
        (Err(_), _) => Err("must be ASCII"),
    };
    Ok(Some(key.map_err(|problem| Error::invalid(NAME, problem))?))
}

/// The query string.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
            .map(Self)
            .map_err(|error| wrong_value("query", error.path().to_string(), &error.inner().to_string()))
    }
}

/// Deserializer for optional fields: they may be absent, but not `null`.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Parses a required field.
pub(crate) fn required<T>(
    errors: &mut FieldErrors,
    name: &'static str,
    value: Option<&String>,
    parse: impl FnOnce(&str) -> Result<T, TextProblem>,
) -> Option<T> {
    match value {
        Some(text) => errors.take(name, parse(text)),
        None => errors.take(name, Err("is required")),
    }
}

/// Parses an optional field.
pub(crate) fn optional<T>(
    errors: &mut FieldErrors,
    name: &'static str,
    value: Option<&String>,
    parse: impl FnOnce(&str) -> Result<T, TextProblem>,
) -> Option<T> {
    value.and_then(|text| errors.take(name, parse(text)))
}

/// Returns all recorded errors, or else the parsed value. The value is present whenever no error was recorded.
pub(crate) fn all<T>(errors: FieldErrors, parsed: Option<T>) -> Result<T, ApiError> {
    errors.check()?;
    Ok(parsed.ok_or_else(|| Error::internal("a required field was neither parsed nor reported"))?)
}
