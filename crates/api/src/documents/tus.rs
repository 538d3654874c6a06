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
    Conflict, Document, Error, FieldErrors, Filename, MimeType, Noun, TenantId, Timestamp, UploadId, UploadProtocol, UploadState,
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
/// The longest `Upload-Metadata`, in bytes.
const MAX_METADATA: usize = 4096;

/// What clients send, for other origins to be allowed to.
pub(crate) const REQUEST_HEADERS: [&str; 6] =
    ["tus-resumable", "upload-length", "upload-metadata", "upload-offset", "upload-checksum", "x-http-method-override"];
/// What clients need to see.
pub(crate) const ANSWER_HEADERS: [&str; 9] = [
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

/// What all answers have in common, failures included.
pub(crate) async fn speak(request: Request, next: Next) -> Response {
    let asks_where = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    response.headers_mut().insert("tus-resumable", HeaderValue::from_static(VERSION));
    if response.status() == StatusCode::PRECONDITION_FAILED {
        response.headers_mut().insert("tus-version", HeaderValue::from_static(VERSION));
    }
    // Clients take any other failure for the loss of the upload and begin a new one, from the first byte on.
    if asks_where && response.status() == StatusCode::SERVICE_UNAVAILABLE {
        *response.status_mut() = StatusCode::LOCKED;
    }
    response
}

/// Adds to the answers of CORS, which answers every OPTIONS itself, what OPTIONS means in tus.
pub(crate) async fn describe_beside_cors(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_asked = request.method() == Method::OPTIONS && is_at(request.uri().path());
    let mut response = next.run(request).await;
    if is_asked && let Ok(described) = description(&app.services) {
        response.headers_mut().extend(described.into_parts().0.headers);
    }
    response
}

/// Whether tus is spoken at this path.
fn is_at(path: &str) -> bool {
    let rest = path.strip_prefix("/api/tenants/").and_then(|path| Some(path.split_once('/')?.1));
    rest.is_some_and(|rest| rest == "documents/tus" || rest.starts_with("documents/tus/"))
}

/// An answer's headers.
fn tus(status: StatusCode, headers: impl IntoIterator<Item = (HeaderName, String)>) -> Result<Response, ApiError> {
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

/// A header that may be sent once. Of two that contradict each other, who knows which one a proxy went by.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (value, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Error::invalid(name, "must be sent once").into());
    }
    value.map(|value| value.to_str().map_err(|_| Error::invalid(name, "must be ASCII").into())).transpose()
}

/// A header that is a number of bytes.
fn number(headers: &HeaderMap, name: &'static str) -> Result<u64, ApiError> {
    let digits = single(headers, name)?.map(str::trim).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| Error::invalid(name, "must be a whole number").into())
}

/// What is spoken
///
/// Version, extensions and limits of tus (<https://tus.io/protocols/resumable-upload>), in the headers that the protocol has for
/// them. Any tus client works; give it an access token in the Authorization header.
#[utoipa::path(options, path = "/api/tenants/{tenant_id}/documents/tus", tag = "uploads", security(()), params(TenantPath),
    responses((status = 204, description = "In the headers")))]
pub(crate) async fn describe_tus(State(services): State<UserServices>, PathIds(_): PathIds<TenantId>) -> Result<Response, ApiError> {
    description(&services)
}

fn description(services: &UserServices) -> Result<Response, ApiError> {
    tus(
        StatusCode::NO_CONTENT,
        [
            (named("tus-version"), VERSION.to_owned()),
            (named("tus-extension"), EXTENSIONS.to_owned()),
            (named("tus-max-size"), services.settings().max_upload_bytes.to_string()),
            (named("tus-checksum-algorithm"), ALGORITHMS.to_owned()),
        ],
    )
}

/// Begin a resumable upload
///
/// By tus 1.0, in the headers: `Tus-Resumable: 1.0.0`, `Upload-Length`, and `Upload-Metadata` with `filename` (or `name`), required,
/// and `filetype` (or `type`), each followed by its value in Base64. The upload is at the URL of the Location header.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/tus", tag = "uploads", params(TenantPath),
    responses((status = 201, description = "Upload begun"), Errors<(QuotaExceeded, UploadTooLarge, TusVersion)>))]
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
    // Ignored, it would make a document of each part.
    if headers.contains_key("upload-concat") {
        return Err(Error::invalid("upload-concat", "belongs to the extension concatenation, which is not spoken here").into());
    }
    let metadata = single(&headers, "upload-metadata")?.unwrap_or_default();
    let (filename, mime_type) = parse_metadata(metadata)?;
    let upload = app.services.begin_tus(&caller, tenant_id, &filename, &mime_type, size, metadata).await?;
    // Relative unless the operator says otherwise: only the client knows whether it came by https.
    let url = format!("{}/api/tenants/{tenant_id}/documents/tus/{}", app.public_url(), upload.id);
    tus(StatusCode::CREATED, [(header::LOCATION, url), (named("upload-offset"), "0".to_owned()), expires(upload.expires_at)])
}

/// The name and the media type that the metadata have. Other keys are the client's own.
fn parse_metadata(text: &str) -> Result<(Filename, MimeType), ApiError> {
    const NAME: &str = "upload-metadata";
    if text.len() > MAX_METADATA {
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
    // What a browser guessed is no reason to refuse the file.
    let mime_type = mime_type.and_then(|text| MimeType::parse(text.split(';').next()?).ok()).unwrap_or_else(MimeType::octet_stream);
    Ok((crate::extract::all(errors, filename)?, mime_type))
}

/// `Upload-Expires`, as HTTP writes dates.
fn expires(at: Timestamp) -> (HeaderName, String) {
    (named("upload-expires"), at.http_date())
}

/// Where a resumable upload is
///
/// How many of its bytes are here, how many there will be, and until when it is waited for, in the headers. While something that
/// this needs is down the answer is 423, not 503: clients try again later, and begin no new upload.
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
        return Err(Error::NotFound(Noun::Upload).into());
    }
    // Whole, but no document: a client that is told the offset takes it for done.
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
    tus(StatusCode::OK, answer)
}

fn location(tenant_id: TenantId, document: &Document) -> (HeaderName, String) {
    (header::CONTENT_LOCATION, format!("/api/tenants/{tenant_id}/documents/{}", document.id))
}

/// The errors of a request that appends.
type AppendErrors = (UploadOffsetMismatch, UploadFailed, ChecksumMismatch, LargerThanDeclared, TusVersion);

/// Send bytes of a resumable upload
///
/// By tus 1.0: the bytes as `application/offset+octet-stream`, and in the headers `Tus-Resumable: 1.0.0`, the `Upload-Offset` where they
/// belong, and on demand an `Upload-Checksum` (sha1, md5 or sha256): when it is another one, nothing is kept (460). What arrives is
/// kept, also when the connection breaks. With the last byte the document is made: Content-Location says where it is.
#[utoipa::path(patch, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 204, description = "Bytes kept: the new offset is in the header Upload-Offset"), Errors<AppendErrors>))]
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
    // In a task of its own: when the client goes away, what came is kept all the same.
    let offset = tokio::spawn(receive(append, request.into_body())).await.map_err(Error::internal)??;
    let (upload, _) = services.get_multipart_upload(&caller, tenant_id, id).await?;
    let document = if upload.state == UploadState::Open { None } else { services.finish_tus(&caller, tenant_id, id).await? };
    let answer = [(named("upload-offset"), offset.to_string()), expires(upload.expires_at)];
    tus(StatusCode::NO_CONTENT, answer.into_iter().chain(document.map(|document| location(tenant_id, &document))))
}

async fn receive(mut append: Append, body: RequestBody) -> Result<u64, ApiError> {
    let mut body = body.into_data_stream();
    while let Some(bytes) = body.next().await {
        match bytes {
            Ok(bytes) => append.write(bytes).await?,
            Err(error) => {
                append.break_off().await?;
                return Err(ApiError::from_body(StatusCode::BAD_REQUEST, &error));
            }
        }
    }
    Ok(append.finish().await?)
}

fn parse_checksum(text: &str) -> Result<Checksum, ApiError> {
    let problem = || ApiError::from(Error::invalid("upload-checksum", "must be sha1, md5 or sha256, and the checksum in Base64"));
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

/// Give up a resumable upload
///
/// By tus 1.0. What was sent of it goes.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 204, description = "Upload given up"), Errors<TusVersion>))]
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
    tus(StatusCode::NO_CONTENT, [])
}

/// PATCH or DELETE, from where only POST gets through
///
/// By the header X-HTTP-Method-Override.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/tus/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 204, description = "As the method that is meant"), Errors<AppendErrors>))]
pub(crate) async fn override_tus(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    request: Request,
) -> Result<Response, ApiError> {
    let meant = request.headers().get("x-http-method-override").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match meant {
        "PATCH" => append(services, caller, tenant_id, upload_id, request).await,
        "DELETE" => end(&services, &caller, tenant_id, upload_id, &request.headers().clone()).await,
        _ => Err(Error::invalid("x-http-method-override", "must be PATCH or DELETE").into()),
    }
}
