//! `/api/tenants/{tenant_id}/documents/{document_id}/versions`, and new content for a document.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    response::Response as HttpResponse,
};
use domain::{DocumentId, DocumentVersion, Error, MimeType, TenantId};
use futures_util::StreamExt;
use serde::Serialize;
use services::UserServices;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    App,
    client::BaseUrl,
    documents::documents::{
        DocumentOut, DocumentPath, DownloadOut, DownloadQuery, IfMatch, Tagged, UploadOut, download_response, unchanged,
    },
    documents::files::FileOut,
    documents::form::declared_length,
    error::ApiError,
    extract::{Authenticated, Number, PathIds, Query},
    operation_errors::{DocumentChanged, Errors, NotOwner, QuotaExceeded, UploadTooLarge},
    query::PageQuery,
    response::{ApiResult, List, Response, Timestamp},
    schemas,
};

/// A version of a document's content.
#[derive(Serialize, ToSchema)]
pub(crate) struct VersionOut {
    #[schema(minimum = 1, example = 1)]
    version: u64,
    #[schema(example = "application/pdf")]
    mime_type: String,
    /// When the version was created.
    created_at: Timestamp,
    /// The user who created the version.
    #[schema(required = true)]
    created_by: Option<Uuid>,
    file: FileOut,
}

impl From<DocumentVersion> for VersionOut {
    fn from(version: DocumentVersion) -> Self {
        Self {
            version: version.version,
            mime_type: version.mime_type,
            created_at: Timestamp(version.created_at),
            created_by: version.created_by.map(Into::into),
            file: version.file.into(),
        }
    }
}

/// Path parameters of a version.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct VersionPath {
    /// Tenant id.
    tenant_id: Uuid,
    /// Document id.
    document_id: Uuid,
    /// Version number.
    #[param(minimum = 1)]
    version: u64,
}

/// Replace the content
///
/// The body becomes the document's next version; its Content-Type, if present, becomes the version's. Sending the current content
/// again changes nothing. For the document's owner and admins.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}/documents/{document_id}/content", tag = "versions", params(DocumentPath, IfMatch),
    request_body(content = schemas::Content, content_type = "application/octet-stream"),
    responses((status = 200, description = "Content replaced", body = Response<UploadOut>), Errors<(NotOwner, DocumentChanged, QuotaExceeded, UploadTooLarge)>))]
pub(crate) async fn replace_content(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
    headers: HeaderMap,
    request: Request,
) -> Result<Tagged<UploadOut>, ApiError> {
    let mime_type = media_type(&headers)?;
    let declared = declared_length(&headers);
    let limit = services.settings().max_upload_bytes;
    if declared.is_some_and(|bytes| bytes > limit) {
        return Err(Error::TooLarge { limit }.into());
    }
    let mut upload = services.begin_version(&caller, tenant_id, document_id, declared, &unchanged(&headers)).await?;
    let mut body = request.into_body().into_data_stream();
    while let Some(bytes) = body.next().await {
        upload.write(bytes.map_err(|error| ApiError::from_body(&error))?).await?;
    }
    let uploaded = services.finish_version(upload, document_id, mime_type.as_ref(), &unchanged(&headers)).await?;
    Ok(Tagged(uploaded.document.etag(), Response::ok("Content replaced", uploaded.into())))
}

/// The declared media type of the body; none for the types that clients send by default.
fn media_type(headers: &HeaderMap) -> Result<Option<MimeType>, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let mime_type = MimeType::parse(essence).map_err(|problem| Error::invalid("Content-Type", problem))?;
    match mime_type.as_str() {
        // A form instead of the content itself: stored verbatim, it would be unreadable.
        "multipart/form-data" => Err(ApiError::UnsupportedMediaType("the content itself, not a form")),
        "application/octet-stream" | "application/x-www-form-urlencoded" => Ok(None),
        _ => Ok(Some(mime_type)),
    }
}

/// List versions
///
/// Current and former versions, newest first. Versions beyond the configured maximum (100 by default) are purged, oldest first.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/{document_id}/versions", tag = "versions", params(DocumentPath, PageQuery),
    responses((status = 200, description = "Versions found", body = Response<List<VersionOut>>)))]
pub(crate) async fn list_versions(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
    Query(query): Query<PageQuery>,
) -> ApiResult<List<VersionOut>> {
    let page = services.list_versions(&caller, tenant_id, document_id, query.parse()?).await?;
    Ok(Response::ok("Versions found", List::of(page, VersionOut::from)))
}

/// Download a version
///
/// Like the download of the document, for one of its versions.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/{document_id}/versions/{version}/download", tag = "versions",
    params(VersionPath, DownloadQuery),
    responses(
        (status = 302, description = "The signed URL is in the Location header", headers(("Location" = String, description = "The signed URL."))),
        (status = 200, description = "Download ready", body = Response<DownloadOut>)))]
pub(crate) async fn download_version(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id, Number(number))): PathIds<(TenantId, DocumentId, Number)>,
    Query(query): Query<DownloadQuery>,
    base: BaseUrl,
) -> Result<HttpResponse, ApiError> {
    let download = app.services.get_version_download(&caller, tenant_id, document_id, number).await?;
    Ok(download_response(&app, base, download, query.redirect.unwrap_or(true)))
}

/// Restore a version
///
/// Makes this content the document's next version; existing versions are kept. For the document's owner and admins.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/{document_id}/versions/{version}/restore", tag = "versions",
    params(VersionPath, IfMatch),
    responses((status = 200, description = "Version restored", body = Response<DocumentOut>), Errors<(NotOwner, DocumentChanged)>))]
pub(crate) async fn restore_version(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id, Number(number))): PathIds<(TenantId, DocumentId, Number)>,
    headers: HeaderMap,
) -> Result<Tagged<DocumentOut>, ApiError> {
    let document = services.restore_version(&caller, tenant_id, document_id, number, &unchanged(&headers)).await?;
    Ok(Tagged(document.etag(), Response::ok("Version restored", document.into())))
}
