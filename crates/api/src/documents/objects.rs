//! `/api/objects`: downloads and part uploads by signed URL, for storage that has no signed URLs.

use axum::{
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::{Error, ForbiddenReason, TenantId, UploadId};
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
    preconditions,
    response::{Empty, Response},
    schemas,
};

/// The signature, and what it covers besides the key.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedQuery {
    /// The Content-Type to send.
    content_type: String,
    /// The Content-Disposition to send.
    disposition: String,
    /// Expiry, in seconds since 1970.
    expires: i64,
    /// HMAC-SHA-256 in hexadecimal.
    signature: String,
}

/// All characters except the unreserved ones (RFC 3986).
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
/// Needs no token: the signature, issued by a document's `download`, authorizes access to this object until it expires. Supports
/// Range, If-Range, If-Match, If-None-Match and HEAD.
#[utoipa::path(get, path = "/api/objects/{key}", tag = "objects", security(()),
    params(("key" = String, Path, description = "The object's key, including slashes"), SignedQuery),
    responses(
        (status = 200, description = "The object", body = schemas::Binary, content_type = "*/*"),
        (status = 206, description = "The requested range", body = schemas::Binary, content_type = "*/*"),
        (status = 304, description = "Not modified"), Errors<(BadSignature, ObjectNotFound, ObjectChanged, RangeNotSatisfiable)>))]
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
    // A key is never reused for other content, so its last segment identifies the content.
    let etag = format!("\"{}\"", download.key.rsplit('/').next().unwrap_or_default());
    if !preconditions::if_match(&headers, &etag) {
        return Err(ApiError::PreconditionFailed);
    }
    let mut response = HttpResponse::new(Body::empty());
    *response.headers_mut() = download_headers(&download, &etag)?;
    if !preconditions::if_none_match(&headers, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // A range is defined for GET only (RFC 9110, section 14.2).
    let selection = if method == Method::GET { range::select(&headers, &etag, size) } else { Selection::Full };
    let (status, bytes) = match selection {
        Selection::Full => (StatusCode::OK, 0..size),
        Selection::Partial(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Selection::Unsatisfiable => {
            let mut response = ApiError::RangeNotSatisfiable.into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, header_value(format!("bytes */{size}"))?);
            return Ok(response);
        }
    };
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, header_value(range)?);
    }
    if method != Method::HEAD {
        *response.body_mut() = Body::from_stream(object.read(bytes).await?);
    }
    Ok(response)
}

/// The signature of a part, and what it covers besides the path.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedPartQuery {
    /// The user to whom the URL was issued.
    user_id: Uuid,
    /// Offset of the part's first byte in the content.
    offset: u64,
    /// Size of the part in bytes.
    size: u64,
    /// Expiry, in seconds since 1970.
    expires: i64,
    /// HMAC-SHA-256 in hexadecimal.
    signature: String,
}

/// Path parameters of a part.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct PartPath {
    /// Tenant id.
    tenant_id: Uuid,
    /// Upload id.
    upload_id: Uuid,
    /// Part number.
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
/// Uploads a part of a direct upload, if the storage has no signed URLs. Needs no token: the signature authorizes this part until it
/// expires.
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
    let number = u32::try_from(number).map_err(|_| Error::Forbidden(ForbiddenReason::BadSignature))?;
    let part = SignedPart { tenant_id, upload_id, user_id: user_id.into(), number, offset, size, expires };
    let mut upload = services.begin_part(part, &signature).await?;
    let mut body = request.into_body().into_data_stream();
    while let Some(bytes) = body.next().await {
        upload.write(bytes.map_err(|error| ApiError::from_body(&error))?).await?;
    }
    let hash = services.finish_part(upload).await?;
    // S3 returns the part's ETag too, so clients work with both.
    Ok(([(header::ETAG, format!("\"{}\"", hash.md5_hex()))], Response::ok("Part stored", Empty)).into_response())
}

fn download_headers(download: &SignedDownload, etag: &str) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, header_value(download.headers.content_type.clone())?);
    headers.insert(header::CONTENT_DISPOSITION, header_value(download.headers.content_disposition.clone())?);
    headers.insert(header::ETAG, header_value(etag.to_owned())?);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600"));
    // However a browser interprets the content, it must not run scripts or reach the API's origin.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox; frame-ancestors 'none'"));
    Ok(headers)
}

/// Signed values are valid header values, so an invalid one was never signed.
fn header_value(text: String) -> Result<HeaderValue, ApiError> {
    HeaderValue::try_from(text).map_err(|_| Error::Forbidden(ForbiddenReason::BadSignature).into())
}
