//! `/api/objects/{key}`: downloads by signed URL, where the storage has no URLs of its own.

use axum::{
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::{Denial, Error, TenantId, UploadId};
use futures_util::StreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use services::{ContentHeaders, SignedDownload, SignedPart, UserServices};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{
    documents::range::{self, Selection},
    error::ApiError,
    extract::{Number, PathIds, Query},
    operation_errors::{BadSignature, Errors, ObjectChanged, ObjectNotFound, RangeNotSatisfiable, UploadClosed},
    response::{Empty, Response},
    schemas,
};

/// The signature and what it covers besides the key.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedQuery {
    /// The value of Content-Type.
    content_type: String,
    /// The value of Content-Disposition.
    disposition: String,
    /// Until when, in seconds since 1970.
    expires: i64,
    /// HMAC-SHA-256 in hexadecimal.
    signature: String,
}

/// What stays as it is in a query (RFC 3986, unreserved).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The path and query of a signed download.
pub(crate) fn object_url(download: &SignedDownload, signature: &str) -> String {
    format!(
        "/api/objects/{}?content_type={}&disposition={}&expires={}&signature={signature}",
        download.key,
        utf8_percent_encode(&download.headers.content_type, QUERY),
        utf8_percent_encode(&download.headers.content_disposition, QUERY),
        download.expires,
    )
}

/// Download an object
///
/// Needs no token: the signature, which a document's `download` hands out, is for this object until it expires. Understands
/// Range, If-Range, If-None-Match and HEAD.
#[utoipa::path(get, path = "/api/objects/{key}", tag = "objects", security(()),
    params(("key" = String, Path, description = "The object's key, slashes included"), SignedQuery),
    responses(
        (status = 200, description = "The object", body = schemas::Binary, content_type = "*/*"),
        (status = 206, description = "The part that was asked for", body = schemas::Binary, content_type = "*/*"),
        (status = 304, description = "The client has it already"), Errors<(BadSignature, ObjectNotFound, ObjectChanged, RangeNotSatisfiable)>))]
pub(crate) async fn download_object(
    State(services): State<UserServices>,
    method: Method,
    key: Result<Path<String>, PathRejection>,
    Query(query): Query<SignedQuery>,
    headers: HeaderMap,
) -> Result<HttpResponse, ApiError> {
    let Path(key) = key.map_err(|_| ApiError::path_not_utf8())?;
    let content_headers = ContentHeaders { content_type: query.content_type, content_disposition: query.disposition };
    let download = SignedDownload { key, headers: content_headers, expires: query.expires };
    let object = services.open_download(&download, &query.signature).await?;
    let size = object.size();
    // A key is never used for other content, so its last part names the content.
    let etag = format!("\"{}\"", download.key.rsplit('/').next().unwrap_or_default());
    if !range::if_match(&headers, &etag) {
        return Err(ApiError::PreconditionFailed);
    }
    let mut response = HttpResponse::new(Body::empty());
    *response.headers_mut() = presented(&download, &etag)?;
    if !range::if_none_match(&headers, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let (status, bytes) = match range::select(&headers, &etag, size) {
        Selection::Full => (StatusCode::OK, 0..size),
        Selection::Partial(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Selection::Unsatisfiable => {
            let mut refused = ApiError::RangeNotSatisfiable.into_response();
            refused.headers_mut().insert(header::CONTENT_RANGE, value(format!("bytes */{size}"))?);
            return Ok(refused);
        }
    };
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, value(range)?);
    }
    if method != Method::HEAD {
        *response.body_mut() = Body::from_stream(object.read(bytes).await?);
    }
    Ok(response)
}

/// The signature of a part and what it covers besides the path.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedPartQuery {
    /// Who was given the URL.
    user_id: Uuid,
    /// The part's first byte's place in the content.
    offset: u64,
    /// How many bytes the body has.
    size: u64,
    /// Until when, in seconds since 1970.
    expires: i64,
    /// HMAC-SHA-256 in hexadecimal.
    signature: String,
}

/// A part in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct PartPath {
    /// The tenant.
    tenant_id: Uuid,
    /// The upload.
    upload_id: Uuid,
    /// The part's number.
    #[param(minimum = 1, maximum = 1000)]
    number: u64,
}

/// The path and query of a signed part.
pub(crate) fn part_url(part: &SignedPart, signature: &str) -> String {
    let SignedPart { tenant_id, upload_id, user_id, number, offset, size, expires } = part;
    format!(
        "/api/objects/parts/{tenant_id}/{upload_id}/{number}?user_id={user_id}&offset={offset}&size={size}&expires={expires}&signature={signature}"
    )
}

/// Upload a part
///
/// Of a direct upload, where the storage has no URLs of its own. Needs no token: the signature is for this part until it expires.
#[utoipa::path(put, path = "/api/objects/parts/{tenant_id}/{upload_id}/{number}", tag = "objects", security(()),
    params(PartPath, SignedPartQuery),
    request_body(content = schemas::Content, content_type = "application/octet-stream"),
    responses((status = 200, description = "Part stored", body = Response<Empty>), Errors<(BadSignature, UploadClosed)>))]
pub(crate) async fn upload_part(
    State(services): State<UserServices>,
    PathIds((tenant_id, upload_id, Number(number))): PathIds<(TenantId, UploadId, Number)>,
    Query(query): Query<SignedPartQuery>,
    request: Request,
) -> Result<HttpResponse, ApiError> {
    let SignedPartQuery { user_id, offset, size, expires, signature } = query;
    let number = u32::try_from(number).map_err(|_| Error::Forbidden(Denial::BadSignature))?;
    let part = SignedPart { tenant_id, upload_id, user_id: user_id.into(), number, offset, size, expires };
    let mut upload = services.begin_part(part, &signature).await?;
    let mut body = request.into_body().into_data_stream();
    while let Some(bytes) = body.next().await {
        upload.write(bytes.map_err(|error| ApiError::from_body(StatusCode::BAD_REQUEST, &error))?).await?;
    }
    let hash = services.finish_part(upload).await?;
    // As S3 does, so that one client suits both.
    Ok(([(header::ETAG, format!("\"{}\"", hash.md5_hex()))], Response::ok("Part stored", Empty)).into_response())
}

fn presented(download: &SignedDownload, etag: &str) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, value(download.headers.content_type.clone())?);
    headers.insert(header::CONTENT_DISPOSITION, value(download.headers.content_disposition.clone())?);
    headers.insert(header::ETAG, value(etag.to_owned())?);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Whatever a browser makes of it, it runs nothing and reaches nothing of ours.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    Ok(headers)
}

/// What was signed fits into a header; what does not was never signed.
fn value(text: String) -> Result<HeaderValue, ApiError> {
    HeaderValue::try_from(text).map_err(|_| Error::Forbidden(Denial::BadSignature).into())
}
