//! `/api/tenants/{tenant_id}/documents/trash`: deleted documents.

use axum::extract::State;
use domain::{Document, DocumentId, TenantId};
use serde::Serialize;
use services::UserServices;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    documents::documents::{DocumentOut, DocumentPath, Tagged},
    error::ApiError,
    extract::{Authenticated, PathIds, Query},
    operation_errors::{Errors, NotOwner},
    query::{PageQuery, TenantPath},
    response::{ApiResult, Empty, List, Response, Timestamp},
};

/// A document in the trash.
#[derive(Serialize, ToSchema)]
pub(crate) struct TrashedOut {
    #[serde(flatten)]
    document: DocumentOut,
    deleted_at: Timestamp,
    #[schema(required = true)]
    deleted_by: Option<Uuid>,
}

impl From<Document> for TrashedOut {
    fn from(document: Document) -> Self {
        Self {
            deleted_at: Timestamp(document.deleted_at.unwrap_or(document.updated_at)),
            deleted_by: document.deleted_by.map(Into::into),
            document: document.into(),
        }
    }
}

/// How many documents were removed.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmptiedOut {
    #[schema(example = 3)]
    documents: u64,
}

/// List the trash
///
/// Those deleted last first. Admins see all, users their own.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/trash", tag = "trash", params(TenantPath, PageQuery),
    responses((status = 200, description = "Deleted documents found", body = Response<List<TrashedOut>>)))]
pub(crate) async fn list_trash(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    Query(query): Query<PageQuery>,
) -> ApiResult<List<TrashedOut>> {
    let page = services.list_trash(&caller, tenant_id, query.parse()?).await?;
    Ok(Response::ok("Deleted documents found", List::of(page, TrashedOut::from)))
}

/// Empty the trash
///
/// For admins. What was in it can't be brought back.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/trash", tag = "trash", params(TenantPath),
    responses((status = 200, description = "Trash emptied", body = Response<EmptiedOut>)))]
pub(crate) async fn empty_trash(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
) -> ApiResult<EmptiedOut> {
    Ok(Response::ok("Trash emptied", EmptiedOut { documents: services.empty_trash(&caller, tenant_id).await? }))
}

/// Restore a document
///
/// Takes it out of the trash with all its versions. For its owner and admins.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/trash/{document_id}/restore", tag = "trash", params(DocumentPath),
    responses((status = 200, description = "Document restored", body = Response<DocumentOut>), Errors<NotOwner>))]
pub(crate) async fn restore_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
) -> Result<Tagged<DocumentOut>, ApiError> {
    let document = services.restore_document(&caller, tenant_id, document_id).await?;
    Ok(Tagged(document.etag(), Response::ok("Document restored", document.into())))
}

/// Delete a document for good
///
/// For its owner and admins, when it is in the trash. It can't be brought back.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/trash/{document_id}", tag = "trash", params(DocumentPath),
    responses((status = 200, description = "Document deleted for good", body = Response<Empty>), Errors<NotOwner>))]
pub(crate) async fn purge_document(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, document_id)): PathIds<(TenantId, DocumentId)>,
) -> ApiResult<Empty> {
    services.purge_document(&caller, tenant_id, document_id).await?;
    Ok(Response::ok("Document deleted for good", Empty))
}
