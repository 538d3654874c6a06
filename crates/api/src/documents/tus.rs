//! `/api/tenants/{tenant_id}/documents/tus`: resumable uploads by tus 1.0 (<https://tus.io/protocols/resumable-upload>), with the
//! extensions creation, expiration, checksum and termination.

use axum::{
    body::Body as RequestBody,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use domain::{
    Conflict, Document, Error, FieldErrors, Filename, MimeType, ResourceKind, TenantId, Timestamp, UploadId, UploadProtocol, UploadState,
};
use futures_util::StreamExt;
use services::{Append, Caller, Checksum, UserServices};

use crate::{
    App,
    documents::direct_uploads::UploadPath,
    error::ApiError,
    extract::{Authenticated, PathIds},
    operation_errors::{
        ChecksumMismatch, Errors, LargerThanDeclared, QuotaExceeded, TusVersion, UploadFailed, UploadOffsetMismatch, UploadTooLarge,
    },
    query::TenantPath,
};

const VERSION: &str = "1.0.0";
const EXTENSIONS: &str = "creation,expiration,checksum,termination";
const ALGORITHMS: &str = "sha1,md5,sha256";
/// The maximum length of `Upload-Metadata`, in bytes.
const MAX_METADATA_BYTES: usize = 4096;

/// The response headers of tus, which CORS must expose.
pub(crate) const RESPONSE_HEADERS: [&str; 9] = [
    "tus-resumable",
    "tus-version",
    "tus-extension",
    "tus-max-size",
    "tus-checksum-algorithm",
    "upload-offset",
    "upload-length",
    "upload-expires",
    "upload-metadata",
];

/// Adds the headers that all tus responses have, including failures.
pub(crate) async fn adapt_response(request: Request, next: Next) -> Response {
    let is_head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    response.headers_mut().insert("tus-resumable", HeaderValue::from_static(VERSION));
    if response.status() == StatusCode::PRECONDITION_FAILED {
        response.headers_mut().insert("tus-version", HeaderValue::from_static(VERSION));
    }
    // On any other failure clients assume that the upload is lost, and restart it from the first byte.
    if is_head && response.status() == StatusCode::SERVICE_UNAVAILABLE {
        *response.status_mut() = StatusCode::LOCKED;
    }
    response
}

/// Adds the tus headers to OPTIONS responses, which the CORS layer answers itself.
pub(crate) async fn add_tus_to_cors(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_discovery = request.method() == Method::OPTIONS && is_tus_path(request.uri().path());
    let mut response = next.run(request).await;
    if is_discovery && let Ok(described) = description(&app.services) {
        response.headers_mut().extend(described.into_parts().0.headers);
    }
    response
}

/// Whether this is the path of a tus endpoint.
fn is_tus_path(path: &str) -> bool {
    let rest = path.strip_prefix("/api/tenants/").and_then(|path| Some(path.split_once('/')?.1));
    rest.is_some_and(|rest| rest == "documents/tus" || rest.starts_with("documents/tus/"))
}

/// An empty response with headers.
fn tus_response(status: StatusCode, headers: impl IntoIterator<Item = (HeaderName, String)>) -> Result<Response, ApiError> {
    let mut response = status.into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::try_from(value).map_err(Error::internal)?);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

const fn named(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

fn check_version(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get("tus-resumable").is_some_and(|version| version == VERSION) { Ok(()) } else { Err(ApiError::TusVersion) }
}

/// A header that must occur at most once: of two contradicting values, a proxy may have used either.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (value, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Error::invalid(name, "must occur only once").into());
    }
    value.map(|value| value.to_str().map_err(|_| Error::invalid(name, "must be ASCII").into())).transpose()
}

/// A header whose value is a number of bytes.
fn number(headers: &HeaderMap, name: &'static str) -> Result<u64, ApiError> {
    let digits = single(headers, name)?.map(str::trim).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| Error::invalid(name, "must be a whole number").into())
}

/// Discover tus capabilities
///
/// Returns version, extensions and limits of tus (<https://tus.io/protocols/resumable-upload>) in the headers that the protocol
/// defines. Any tus client works; let it send an access token in the Authorization header.
#[utoipa::path(options, path = "/api/tenants/{tenant_id}/documents/tus", tag = "uploads", security(()), params(TenantPath),
    responses((status = 204, description = "Capabilities are in the headers")))]
pub(crate) async fn describe_tus(State(services): State<UserServices>, PathIds(_): PathIds<TenantId>) -> Result<Response, ApiError> {
    description(&services)
}

fn description(services: &UserServices) -> Result<Response, ApiError> {
    tus_response(
        StatusCode::NO_CONTENT,
        [
            (named("tus-version"), VERSION.to_owned()),
            (named("tus-extension"), EXTENSIONS.to_owned()),
            (named("tus-max-size"), services.settings().max_upload_bytes.to_string()),
            (named("tus-checksum-algorithm"), ALGORITHMS.to_owned()),
        ],
    )
}

/// Start a resumable upload
///
/// Follows tus 1.0. Required headers: `Tus-Resumable: 1.0.0`, `Upload-Length` and `Upload-Metadata`. The metadata hold `filename` (or
/// `name`), required, and `filetype` (or `type`), each followed by its value in Base64. The Location header of the response is the
/// upload's URL.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/tus", tag = "uploads", params(TenantPath),
    responses((status = 201, description = "Upload started"), Errors<(QuotaExceeded, UploadTooLarge, TusVersion)>))]
pub(crate) async fn begin_tus(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_version(&headers)?;
    let size = number(&headers, "upload-length")?;
    if size == 0 {
        return Err(Error::invalid("upload-length", "must be at least 1: documents are not empty").into());
    }
    // If it were ignored, each part would become a document.
    if headers.contains_key("upload-concat") {
        return Err(Error::invalid("upload-concat", "belongs to the concatenation extension, which is not supported").into());
    }
    let metadata = single(&headers, "upload-metadata")?.unwrap_or_default();
    let (filename, mime_type) = parse_metadata(metadata)?;
    let upload = app.services.begin_tus(&caller, tenant_id, &filename, &mime_type, size, metadata).await?;
    // Relative unless a public URL is configured: only the client knows whether it uses https.
    let url = format!("{}/api/tenants/{tenant_id}/documents/tus/{}", app.public_url(), upload.id);
    tus_response(StatusCode::CREATED, [(header::LOCATION, url), (named("upload-offset"), "0".to_owned()), expires(upload.expires_at)])
}

/// Parses name and media type from the metadata. Other keys belong to the client.
fn parse_metadata(text: &str) -> Result<(Filename, MimeType), ApiError> {
    const NAME: &str = "upload-metadata";
    if text.len() > MAX_METADATA_BYTES {
        return Err(Error::invalid(NAME, "is too long").into());
    }
    let mut errors = FieldErrors::default();
    let (mut filename, mut mime_type) = (None, None);
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
        let value = STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(value) = value else {
            errors.add(NAME, format!("the value of {key} must be UTF-8 in Base64"));
            continue;
        };
        match key {
            "filename" => filename = Some(value),
            "name" => filename = filename.or(Some(value)),
            "filetype" => mime_type = Some(value),
            "type" => mime_type = mime_type.or(Some(value)),
            _ => {}
        }
    }
    let filename = match &filename {
        Some(text) => errors.take("filename", Filename::parse(text)),
        None => errors.take("filename", Err("is required in Upload-Metadata")),
    };
    // Browsers guess the type, so an invalid one does not fail the upload.
    let mime_type = mime_type.and_then(|text| MimeType::parse(text.split(';').next()?).ok()).unwrap_or_else(MimeType::octet_stream);
    Ok((crate::extract::all(errors, filename)?, mime_type))
}

/// The `Upload-Expires` header, as an HTTP date.
fn expires(at: Timestamp) -> (HeaderName, String) {
    (named("upload-expires"), at.http_date())
}

/// Get the offset of a resumable upload
///
/// Returns offset, length and expiry in the headers. While a dependency is down the response is 423, not 503: clients then retry
/// later instead of starting a new upload.
#[utoipa::path(head, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 200, description = "Upload found: its offset is in the header Upload-Offset"), Errors<(TusVersion, UploadFailed)>))]
pub(crate) async fn find_tus(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_version(&headers)?;
    let (upload, document) = services.get_multipart_upload(&caller, tenant_id, upload_id).await?;
    if upload.protocol != UploadProtocol::Tus {
        return Err(Error::NotFound(ResourceKind::Upload).into());
    }
    // The upload is complete but has no document: a client that gets the offset would assume success.
    if let Some(reason) = upload.failure {
        return Err(Error::Conflict(Conflict::UploadFailed { reason }).into());
    }
    let mut answer = vec![
        (named("upload-offset"), upload.received.to_string()),
        (named("upload-length"), upload.size.to_string()),
        expires(upload.expires_at),
    ];
    if !upload.metadata.is_empty() {
        answer.push((named("upload-metadata"), upload.metadata));
    }
    answer.extend(document.map(|document| location(tenant_id, &document)));
    tus_response(StatusCode::OK, answer)
}

fn location(tenant_id: TenantId, document: &Document) -> (HeaderName, String) {
    (header::CONTENT_LOCATION, format!("/api/tenants/{tenant_id}/documents/{}", document.id))
}

/// The errors of a request that appends.
type AppendErrors = (UploadOffsetMismatch, UploadFailed, ChecksumMismatch, LargerThanDeclared, TusVersion);

/// Send bytes of a resumable upload
///
/// Follows tus 1.0: the body is `application/offset+octet-stream`; required headers are `Tus-Resumable: 1.0.0` and `Upload-Offset`. An
/// optional `Upload-Checksum` (sha1, md5 or sha256) is verified: on a mismatch the bytes are discarded (460). Received bytes are
/// kept even if the connection breaks. The last byte creates the document, whose URL is in Content-Location.
#[utoipa::path(patch, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 204, description = "Bytes stored: the new offset is in the header Upload-Offset"), Errors<AppendErrors>))]
pub(crate) async fn append_tus(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    request: Request,
) -> Result<Response, ApiError> {
    append(services, caller, tenant_id, upload_id, request).await
}

async fn append(services: UserServices, caller: Caller, tenant_id: TenantId, id: UploadId, request: Request) -> Result<Response, ApiError> {
    let headers = request.headers();
    check_version(headers)?;
    if headers.get(header::CONTENT_TYPE).is_none_or(|value| value != "application/offset+octet-stream") {
        return Err(ApiError::UnsupportedMediaType("application/offset+octet-stream"));
    }
    let offset = number(headers, "upload-offset")?;
    let checksum = single(headers, "upload-checksum")?.map(parse_checksum).transpose()?;
    let append = services.append_tus(&caller, tenant_id, id, offset, checksum).await?;
    // In a separate task, so that received bytes are kept when the client disconnects.
    let offset = tokio::spawn(receive(append, request.into_body())).await.map_err(Error::internal)??;
    let (upload, _) = services.get_multipart_upload(&caller, tenant_id, id).await?;
    let document = if upload.state == UploadState::Open { None } else { services.finish_tus(&caller, tenant_id, id).await? };
    let answer = [(named("upload-offset"), offset.to_string()), expires(upload.expires_at)];
    tus_response(StatusCode::NO_CONTENT, answer.into_iter().chain(document.map(|document| location(tenant_id, &document))))
}

async fn receive(mut append: Append, body: RequestBody) -> Result<u64, ApiError> {
    let mut body = body.into_data_stream();
    while let Some(bytes) = body.next().await {
        match bytes {
            Ok(bytes) => append.write(bytes).await?,
            Err(error) => {
                append.break_off().await?;
                return Err(ApiError::from_body(&error));
            }
        }
    }
    Ok(append.finish().await?)
}

fn parse_checksum(text: &str) -> Result<Checksum, ApiError> {
    let problem = || ApiError::from(Error::invalid("upload-checksum", "must be sha1, md5 or sha256, followed by the checksum in Base64"));
    let (algorithm, sum) = text.split_once(' ').ok_or_else(problem)?;
    let sum = STANDARD.decode(sum.trim()).map_err(|_| problem())?;
    let checksum = match algorithm {
        "sha1" => sum.try_into().ok().map(Checksum::Sha1),
        "md5" => sum.try_into().ok().map(Checksum::Md5),
        "sha256" => sum.try_into().ok().map(Checksum::Sha256),
        _ => None,
    };
    checksum.ok_or_else(problem)
}

/// Abort a resumable upload
///
/// Follows tus 1.0. Discards the data received so far.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 204, description = "Upload aborted"), Errors<TusVersion>))]
pub(crate) async fn end_tus(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    end(&services, &caller, tenant_id, upload_id, &headers).await
}

async fn end(
    services: &UserServices,
    caller: &Caller,
    tenant_id: TenantId,
    id: UploadId,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    check_version(headers)?;
    services.abort_multipart_upload(caller, tenant_id, id).await?;
    tus_response(StatusCode::NO_CONTENT, [])
}

/// PATCH or DELETE over POST
///
/// For clients behind proxies that pass only POST. The X-HTTP-Method-Override header names the method.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 204, description = "As for the overriding method"), Errors<AppendErrors>))]
pub(crate) async fn override_tus(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    request: Request,
) -> Result<Response, ApiError> {
    let method = request.headers().get("x-http-method-override").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match method {
        "PATCH" => append(services, caller, tenant_id, upload_id, request).await,
        "DELETE" => end(&services, &caller, tenant_id, upload_id, &request.headers().clone()).await,
        _ => Err(Error::invalid("x-http-method-override", "must be PATCH or DELETE").into()),
    }
}
