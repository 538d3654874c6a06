//! `/api/tenants/{tenant_id}/documents`.

use axum::{
    extract::{FromRequest, Multipart, Request, State, multipart::Field},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::{Document, DocumentFilter, DocumentId, Error, FieldErrors, Filename, MimeType, TenantId};
use serde::{Deserialize, Serialize};
use services::{Download, DownloadAt, IdempotentOutcome, IdempotentRequest, Upload, Uploaded, UserServices};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    App,
    documents::files::FileOut,
    documents::objects::object_url,
    error::ApiError,
    extract::{Authenticated, JsonBody, PathIds, Query, idempotency_key, optional, present, uuid_field},
    operation_errors::{DocumentChanged, Errors, IdempotencyKeyReused, NotOwner, QuotaExceeded, UploadTooLarge},
    query::{Idempotency, TenantPath},
    response::{ApiResult, Empty, List, Response, Timestamp, replayed_response},
    schemas,
};

/// A document.
#[derive(Serialize, ToSchema)]
pub(crate) struct DocumentOut {
    id: Uuid,
    #[schema(example = "Report 2026.pdf")]
    filename: String,
    #[schema(example = "application/pdf")]
    mime_type: String,
    file_id: Uuid,
    /// The owner's user id.
    user_id: Uuid,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[schema(required = true)]
    created_by: Option<Uuid>,
    /// The version number of the content: 1 for the first, incremented by each new version.
    #[schema(minimum = 1, example = 1)]
    version: u64,
    file: FileOut,
}

impl From<Document> for DocumentOut {
    fn from(document: Document) -> Self {
        Self {
            id: document.id.uuid(),
            filename: document.filename,
            mime_type: document.mime_type,
            file_id: document.file.id.uuid(),
            user_id: document.user_id.uuid(),
            created_at: Timestamp(document.created_at),
            updated_at: Timestamp(document.updated_at),
            created_by: document.created_by.map(Into::into),
            version: document.version,
            file: document.file.into(),
        }
    }
}

/// A response with the entity tag of its document, for a later `If-Match`.
pub(crate) struct Tagged<T>(pub(crate) String, pub(crate) Response<T>);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> HttpResponse {
        ([(header::ETAG, self.0)], self.1).into_response()
    }
}

/// The precondition of `If-Match` on a document.
pub(crate) fn if_match(headers: &HeaderMap) -> impl Fn(&Document) -> bool + Sync + '_ {
    |document| crate::documents::range::if_match(headers, &document.etag())
}

/// The header with the expected entity tag.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "documents the header; `if_match` evaluates it")]
pub(crate) struct IfMatch {
    /// The document's ETag as the client knows it. If the document was changed since, the response is 412.
    #[param(rename = "If-Match", required = false)]
    if_match: String,
}

/// Path parameters of a document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct DocumentPath {
    /// Tenant id.
    tenant_id: Uuid,
    /// Document id.
    document_id: Uuid,
}

/// Filters and page of a list of documents.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DocumentQuery {
    /// Page number, from 1.
    #[param(required = false, inline, value_type = schemas::PageNumber)]
    page: Option<i64>,
    /// Items per page.
    #[param(required = false, inline, value_type = schemas::PerPage)]
    per_page: Option<i64>,
    /// Filter by a substring of the name, case-insensitive.
    #[param(required = false, inline, value_type = schemas::PartOfFilename)]
    filename: Option<String>,
    /// Filter by owner.
    #[param(required = false, value_type = Uuid)]
    user_id: Option<String>,
    /// Filter by media type.
    #[param(required = false, inline, value_type = schemas::MediaType)]
    mime_type: Option<String>,
}

/// List documents
///
/// Returns documents that match all filters, newest first.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents", tag = "documents", params(TenantPath, DocumentQuery),
    responses((status = 200, description = "Documents found", body = Response<List<DocumentOut>>)))]
pub(crate) async fn list_documents(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    Query(query): Query<DocumentQuery>,
) -> ApiResult<List<DocumentOut>> {
    let mut errors = FieldErrors::default();
    let filter = DocumentFilter {
        filename: optional(&mut errors, "filename", query.filename.as_ref(), DocumentFilter::parse_filename),
        user_id: optional(&mut errors, "user_id", query.user_id.as_ref(), uuid_field).map(Into::into),
        mime_type: optional(&mut errors, "mime_type", query.mime_type.as_ref(), MimeType::parse),
    };
    let request = domain::PageRequest::parse(query.page, query.per_page, &mut errors);
    errors.check()?;
    let page = services.list_documents(&caller, tenant_id, &filter, request).await?;
    Ok(Response::ok("Documents found", List::of(page, DocumentOut::from)))
}

/// The upload form.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "documents the form; `Form` parses it")]
pub(crate) struct UploadIn {
    /// The content.
    #[schema(value_type = String, format = Binary, min_length = 1, example = "The quick brown fox jumps over the lazy dog")]
    file: Vec<u8>,
    /// The document's name. Default: the name in the file's part.
    #[schema(required = false, value_type = schemas::Filename)]
    filename: Option<String>,
    /// The document's media type. Default: that of the file's part.
    #[schema(required = false, value_type = schemas::MediaType)]
    mime_type: Option<String>,
}

/// An uploaded document.
#[derive(Serialize, ToSchema)]
pub(crate) struct UploadOut {
    #[serde(flatten)]
    document: DocumentOut,
    /// Whether the tenant already stored this content.
    #[schema(example = false)]
    deduplicated: bool,
}

impl UploadOut {
    pub(crate) fn of(document: Document, deduplicated: bool) -> Self {
        Self { document: document.into(), deduplicated }
    }
}

impl From<Uploaded> for UploadOut {
    fn from(uploaded: Uploaded) -> Self {
        Self { document: uploaded.document.into(), deduplicated: uploaded.deduplicated }
    }
}

/// Upload a document
///
/// The form's fields may come in any order. Identical content is stored once per tenant.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents", tag = "documents", params(TenantPath, Idempotency),
    request_body(content = UploadIn, content_type = "multipart/form-data"),
    responses((status = 201, description = "Document uploaded", body = Response<UploadOut>), Errors<(IdempotencyKeyReused, QuotaExceeded, UploadTooLarge)>))]
pub(crate) async fn upload_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    request: Request,
) -> Result<HttpResponse, ApiError> {
    let key = idempotency_key(request.headers())?;
    let declared = declared_length(request.headers()).map(|form| form.saturating_sub(FORM_OVERHEAD));
    let upload = services.begin_upload(&caller, tenant_id, declared).await?;
    let form = Form::receive(upload, multipart(&services, request).await?).await?;
    let (filename, mime_type) = form.metadata()?;
    let created = |uploaded: Uploaded| Response::created("Document uploaded", UploadOut::from(uploaded));
    let response_body = |uploaded: &Uploaded| created(uploaded.clone()).body();
    let idempotent = key.map(|key| IdempotentRequest { key, answer: &response_body });
    Ok(match services.finish_upload(form.upload, &filename, &mime_type, idempotent.as_ref()).await? {
        IdempotentOutcome::Fresh(uploaded) => Tagged(uploaded.document.etag(), created(uploaded)).into_response(),
        IdempotentOutcome::Replayed(body) => replayed_response(body),
    })
}

/// The body's length in bytes as declared by Content-Length.
pub(crate) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The allowance for a form's content other than its file, in bytes: two short fields and the parts' headers.
pub(crate) const FORM_OVERHEAD: u64 = 64 * 1024;
/// The maximum length of a form field other than the file, in bytes: 255 characters of four bytes.
const MAX_FIELD_BYTES: usize = 1024;

async fn multipart(services: &UserServices, request: Request) -> Result<Multipart, ApiError> {
    check_headers(request.headers(), services.settings().max_upload_bytes)?;
    Multipart::from_request(request, &()).await.map_err(|rejection| ApiError::Malformed(rejection.body_text()))
}

/// Rejects a request by its headers, before reading the body.
fn check_headers(headers: &HeaderMap, limit: u64) -> Result<(), ApiError> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if !header(header::CONTENT_TYPE).is_some_and(|value| value.to_ascii_lowercase().starts_with("multipart/form-data")) {
        return Err(ApiError::UnsupportedMediaType("multipart/form-data"));
    }
    if declared_length(headers).is_some_and(|declared| declared > limit.saturating_add(FORM_OVERHEAD)) {
        return Err(Error::TooLarge { limit }.into());
    }
    Ok(())
}

/// The received upload form.
struct Form {
    upload: Upload,
    has_file: bool,
    filename: Option<String>,
    mime_type: Option<String>,
    /// The filename in the headers of the file's part.
    part_filename: Option<String>,
    part_type: Option<String>,
}

impl Form {
    async fn receive(upload: Upload, mut multipart: Multipart) -> Result<Self, ApiError> {
        let mut form = Self { upload, has_file: false, filename: None, mime_type: None, part_filename: None, part_type: None };
        while let Some(mut field) = multipart.next_field().await.map_err(|error| form_error(&error))? {
            let name = field.name().unwrap_or_default().to_owned();
            match name.as_str() {
                "file" if !form.has_file => {
                    form.has_file = true;
                    form.part_filename = field.file_name().map(str::to_owned);
                    form.part_type = field.content_type().map(str::to_owned);
                    while let Some(bytes) = field.chunk().await.map_err(|error| form_error(&error))? {
                        form.upload.write(bytes).await?;
                    }
                }
                "filename" if form.filename.is_none() => form.filename = Some(read_text("filename", field).await?),
                "mime_type" if form.mime_type.is_none() => form.mime_type = Some(read_text("mime_type", field).await?),
                "file" | "filename" | "mime_type" => return Err(field_error(&name, "must occur only once")),
                _ => return Err(field_error(&name, "unknown field; expected file, filename or mime_type")),
            }
        }
        Ok(form)
    }

    fn metadata(&self) -> Result<(Filename, MimeType), ApiError> {
        let mut errors = FieldErrors::default();
        if !self.has_file {
            errors.add("file", "is required");
        }
        let filename = match self.filename.as_ref().or(self.part_filename.as_ref()) {
            Some(text) => errors.take("filename", Filename::parse(text)),
            None => errors.take("filename", Err("is required because the file's part has no filename")),
        };
        let mime_type = match &self.mime_type {
            Some(text) => errors.take("mime_type", MimeType::parse(text)),
            // HTTP libraries set a type on their own, so an invalid one does not fail the upload.
            None => {
                self.part_type.as_ref().and_then(|text| MimeType::parse(text.split(';').next()?).ok()).or(Some(MimeType::octet_stream()))
            }
        };
        crate::extract::all(errors, filename.zip(mime_type))
    }
}

async fn read_text(name: &'static str, mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(more) = field.chunk().await.map_err(|error| form_error(&error))? {
        bytes.extend_from_slice(&more);
        if bytes.len() > MAX_FIELD_BYTES {
            return Err(field_error(name, "is too long"));
        }
    }
    String::from_utf8(bytes).map_err(|_| field_error(name, "must be UTF-8"))
}

fn field_error(name: &str, problem: &str) -> ApiError {
    let mut errors = FieldErrors::default();
    errors.add(name, problem);
    Error::Invalid(errors).into()
}

fn form_error(error: &axum::extract::multipart::MultipartError) -> ApiError {
    match ApiError::from_body(error.status(), error) {
        ApiError::Malformed(_) => ApiError::Malformed(format!("The form can't be read: {}.", error.body_text())),
        other => other,
    }
}

/// Get a document
///
/// Returns the document with its file.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/{document_id}", tag = "documents", params(DocumentPath),
    responses((status = 200, description = "Document found", body = Response<DocumentOut>)))]
pub(crate) async fn get_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
) -> Result<Tagged<DocumentOut>, ApiError> {
    let document = services.get_document(&caller, tenant_id, document_id).await?;
    Ok(Tagged(document.etag(), Response::ok("Document found", document.into())))
}

/// How to return the URL.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DownloadQuery {
    /// False returns the URL instead of redirecting to it.
    #[param(default = true)]
    pub(crate) redirect: Option<bool>,
}

/// A signed download URL.
#[derive(Serialize, ToSchema)]
pub(crate) struct DownloadOut {
    /// Needs no token: keep it secret.
    #[schema(
        example = "https://api.example.com/api/objects/tenants/01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a/files/9e/10/9e107d9d372bb6826bd81d3542a419d6_01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a?expires=1795512600&signature=b1946ac92492d2347c6235b4d2611184"
    )]
    url: String,
    /// When the URL expires.
    expires_at: Timestamp,
}

/// Download a document
///
/// Redirects to a signed URL, or returns it. The URL expires after a time (one hour by default).
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/{document_id}/download", tag = "documents", params(DocumentPath, DownloadQuery),
    responses(
        (status = 302, description = "The signed URL is in the Location header", headers(("Location" = String, description = "The signed URL."))),
        (status = 200, description = "Download ready", body = Response<DownloadOut>)))]
pub(crate) async fn download_document(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
    Query(query): Query<DownloadQuery>,
    headers: HeaderMap,
) -> Result<HttpResponse, ApiError> {
    let download = app.services.get_download(&caller, tenant_id, document_id).await?;
    Ok(download_response(&app, &headers, download, query.redirect.unwrap_or(true)))
}

/// Redirects to the download's URL, or returns the URL.
pub(crate) fn download_response(app: &App, headers: &HeaderMap, download: Download, redirects: bool) -> HttpResponse {
    let Download { at, expires_at } = download;
    let url = match at {
        DownloadAt::Storage(url) => url,
        // A redirect works without a host behind any proxy; a URL in a body needs one.
        DownloadAt::Here { download, signature } if redirects => app.public_url() + &object_url(&download, &signature),
        DownloadAt::Here { download, signature } => app.base_url(headers) + &object_url(&download, &signature),
    };
    if redirects {
        return (StatusCode::FOUND, [(header::LOCATION, url), (header::CACHE_CONTROL, "no-store".to_owned())]).into_response();
    }
    Response::ok("Download ready", DownloadOut { url, expires_at: Timestamp(expires_at) }).into_response()
}

/// Document changes. Absent fields stay unchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateDocumentIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::Filename)]
    filename: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::MediaType)]
    mime_type: Option<String>,
}

/// Update a document
///
/// Changes name and media type. For its owner and admins.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}/documents/{document_id}", tag = "documents", params(DocumentPath, IfMatch), request_body = UpdateDocumentIn,
    responses((status = 200, description = "Document updated", body = Response<DocumentOut>), Errors<(NotOwner, DocumentChanged)>))]
pub(crate) async fn update_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<UpdateDocumentIn>,
) -> Result<Tagged<DocumentOut>, ApiError> {
    let mut errors = FieldErrors::default();
    let filename = optional(&mut errors, "filename", body.filename.as_ref(), Filename::parse);
    let mime_type = optional(&mut errors, "mime_type", body.mime_type.as_ref(), MimeType::parse);
    errors.check()?;
    let document = services.update_document(&caller, tenant_id, document_id, filename, mime_type, &if_match(&headers)).await?;
    Ok(Tagged(document.etag(), Response::ok("Document updated", document.into())))
}

/// Delete a document
///
/// Moves the document to the trash, from where it can be restored for a time (30 days unless configured otherwise). For its owner
/// and admins.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/{document_id}", tag = "documents", params(DocumentPath, IfMatch),
    responses((status = 200, description = "Document deleted", body = Response<Empty>), Errors<(NotOwner, DocumentChanged)>))]
pub(crate) async fn delete_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
    headers: HeaderMap,
) -> ApiResult<Empty> {
    services.delete_document(&caller, tenant_id, document_id, &if_match(&headers)).await?;
    Ok(Response::ok("Document deleted", Empty))
}
