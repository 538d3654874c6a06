//! `/api/tenants/{tenant_id}/documents/trash`: deleted documents.

use axum::extract::State;
use domain::{Document, DocumentId, TenantId};
use serde::Serialize;
use services::Services;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    answer::{Answer, ApiResult, List, Moment, Nothing},
    documents::documents::{DocumentOut, DocumentPath, Tagged},
    error::ApiError,
    extract::{Ids, LoggedIn, Query},
    query::{PageQuery, TenantPath},
};

/// A document in the trash.
#[derive(Serialize, ToSchema)]
pub(crate) struct TrashedOut {
    #[serde(flatten)]
    document: DocumentOut,
    deleted_at: Moment,
    #[schema(required = true)]
    deleted_by: Option<Uuid>,
}

impl From<Document> for TrashedOut {
    fn from(document: Document) -> Self {
        Self {
            deleted_at: Moment(document.deleted_at.unwrap_or(document.updated_at)),
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
    responses((status = 200, description = "Deleted documents found", body = Answer<List<TrashedOut>>)))]
pub(crate) async fn list_trash(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
    Query(query): Query<PageQuery>,
) -> ApiResult<List<TrashedOut>> {
    let page = services.list_trash(&caller, tenant_id, query.parse()?).await?;
    Ok(Answer::ok("Deleted documents found", List::of(page, TrashedOut::from)))
}

/// Empty the trash
///
/// For admins. What was in it can't be brought back.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/trash", tag = "trash", params(TenantPath),
    responses((status = 200, description = "Trash emptied", body = Answer<EmptiedOut>)))]
pub(crate) async fn empty_trash(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
) -> ApiResult<EmptiedOut> {
    Ok(Answer::ok("Trash emptied", EmptiedOut { documents: services.empty_trash(&caller, tenant_id).await? }))
}

/// Restore a document
///
/// Takes it out of the trash with all its versions. For its owner and admins.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/trash/{document_id}/restore", tag = "trash", params(DocumentPath),
    responses((status = 200, description = "Document restored", body = Answer<DocumentOut>)))]
pub(crate) async fn restore_document(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids((tenant_id, document_id)): Ids<(TenantId, DocumentId)>,
) -> Result<Tagged<DocumentOut>, ApiError> {
    let document = services.restore_document(&caller, tenant_id, document_id).await?;
    Ok(Tagged(document.etag(), Answer::ok("Document restored", document.into())))
}

/// Delete a document for good
///
/// For its owner and admins, when it is in the trash. It can't be brought back.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/trash/{document_id}", tag = "trash", params(DocumentPath),
    responses((status = 200, description = "Document deleted for good", body = Answer<Nothing>)))]
pub(crate) async fn purge_document(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids((tenant_id, document_id)): Ids<(TenantId, DocumentId)>,
) -> ApiResult<Nothing> {
    services.purge_document(&caller, tenant_id, document_id).await?;
    Ok(Answer::ok("Document deleted for good", Nothing))
}
