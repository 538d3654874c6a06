//! `/api/tenants/{tenant_id}/documents`.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::{Document, DocumentFilter, DocumentId, FieldErrors, Filename, MimeType, TenantId};
use serde::{Deserialize, Serialize};
use services::{Download, DownloadAt, IdempotentOutcome, IdempotentRequest, Uploaded, UserServices};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    App,
    client::BaseUrl,
    documents::{
        files::FileOut,
        form::{FormRequest, ReceivedForm, UploadIn},
        objects::object_url,
    },
    error::ApiError,
    extract::{Authenticated, JsonBody, PathIds, Query, idempotency_key, optional, present, uuid_field},
    operation_errors::{DocumentChanged, Errors, IdempotencyKeyReused, NotOwner, QuotaExceeded, UploadTooLarge},
    preconditions,
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

/// The preconditions of a change of a document: `If-Match` and `If-None-Match` (RFC 9110, section 13).
pub(crate) fn unchanged(headers: &HeaderMap) -> impl Fn(&Document) -> bool + Sync + '_ {
    |document| {
        let etag = document.etag();
        preconditions::if_match(headers, &etag) && preconditions::if_none_match(headers, &etag)
    }
}

/// The header with the expected entity tag.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "documents the header; `unchanged` evaluates it")]
pub(crate) struct IfMatch {
    /// The document's ETag as the client knows it. If the document was changed since, the response is 412.
    #[param(rename = "If-Match", required = false)]
    if_match: String,
}

/// The header with the entity tag of the client's copy.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "documents the header; `get_document` evaluates it")]
pub(crate) struct IfNoneMatch {
    /// The ETag of the client's copy. If the document is unchanged, the response is 304.
    #[param(rename = "If-None-Match", required = false)]
    if_none_match: String,
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
/// The form's fields may come in any order; unknown ones are ignored. Identical content is stored once per tenant.
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
    let form = FormRequest::new(request, services.settings().max_upload_bytes)?;
    let upload = services.begin_upload(&caller, tenant_id, form.declared).await?;
    let ReceivedForm { upload, filename, mime_type } = form.receive(upload).await?;
    let created = |uploaded: Uploaded| Response::created("Document uploaded", UploadOut::from(uploaded));
    let response_body = |uploaded: &Uploaded| created(uploaded.clone()).body();
    let idempotent = key.map(|key| IdempotentRequest { key, answer: &response_body });
    Ok(match services.finish_upload(upload, &filename, &mime_type, idempotent.as_ref()).await? {
        IdempotentOutcome::Fresh(uploaded) => Tagged(uploaded.document.etag(), created(uploaded)).into_response(),
        IdempotentOutcome::Replayed(body) => replayed_response(body),
    })
}

/// Get a document
///
/// Returns the document with its file.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/{document_id}", tag = "documents", params(DocumentPath, IfNoneMatch),
    responses((status = 200, description = "Document found", body = Response<DocumentOut>), (status = 304, description = "Not modified"),
        Errors<DocumentChanged>))]
pub(crate) async fn get_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
    headers: HeaderMap,
) -> Result<HttpResponse, ApiError> {
    let document = services.get_document(&caller, tenant_id, document_id).await?;
    preconditions::conditional(&headers, &document.etag(), || Response::ok("Document found", DocumentOut::from(document)))
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
    base: BaseUrl,
) -> Result<HttpResponse, ApiError> {
    let download = app.services.get_download(&caller, tenant_id, document_id).await?;
    Ok(download_response(&app, base, download, query.redirect.unwrap_or(true)))
}

/// Redirects to the download's URL, or returns the URL.
pub(crate) fn download_response(app: &App, BaseUrl(base): BaseUrl, download: Download, redirects: bool) -> HttpResponse {
    let Download { at, expires_at } = download;
    let url = match at {
        DownloadAt::Storage(url) => url,
        // A redirect works without a host behind any proxy; a URL in a body needs one.
        DownloadAt::Here { download, signature } if redirects => app.public_url() + &object_url(&download, &signature),
        DownloadAt::Here { download, signature } => base + &object_url(&download, &signature),
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
    let document = services.update_document(&caller, tenant_id, document_id, filename, mime_type, &unchanged(&headers)).await?;
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
    services.delete_document(&caller, tenant_id, document_id, &unchanged(&headers)).await?;
    Ok(Response::ok("Document deleted", Empty))
}
