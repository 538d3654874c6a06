//! `/api/tenants/{tenant_id}/files`: what a tenant stores.

use axum::extract::State;
use domain::{Document, File, FileId, FileUsage, Quota, StorageUse, TenantId};
use serde::{Deserialize, Serialize};
use services::UserServices;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    error::ApiError,
    extract::{Authenticated, PathIds, Query},
    operation_errors::{Errors, FileInUse},
    query::TenantPath,
    response::{ApiResult, Empty, List, Response, Timestamp},
    schemas,
};

/// Stored content.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileOut {
    id: Uuid,
    /// 32 hex digits.
    #[schema(pattern = "^[0-9a-f]{32}$", example = "9e107d9d372bb6826bd81d3542a419d6")]
    md5_hash: String,
    /// 64 hex digits.
    #[schema(pattern = "^[0-9a-f]{64}$", example = "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592")]
    sha256: String,
    /// The key of the object.
    #[schema(
        max_length = 500,
        example = "tenants/01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a/files/9e/10/9e107d9d372bb6826bd81d3542a419d6_01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a"
    )]
    s3_path: String,
    /// Bytes.
    #[schema(minimum = 1, example = 43)]
    file_size: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[schema(required = true)]
    created_by: Option<Uuid>,
    /// What it is by its first bytes, whatever it was said to be; null while nobody has looked.
    #[schema(required = true, example = "text/plain")]
    detected_mime_type: Option<String>,
}

impl From<File> for FileOut {
    fn from(file: File) -> Self {
        Self {
            id: file.id.uuid(),
            md5_hash: file.hash.md5_hex(),
            sha256: file.hash.sha256_hex(),
            s3_path: file.object_key,
            file_size: file.size,
            created_at: Timestamp(file.created_at),
            updated_at: Timestamp(file.updated_at),
            created_by: file.created_by.map(Into::into),
            detected_mime_type: file.detected_mime_type,
        }
    }
}

/// A file in a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct ListedFileOut {
    #[serde(flatten)]
    file: FileOut,
    /// With `include_stats`: how many contents of documents it is, former ones and those in the trash included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = u64, example = 1)]
    document_count: Option<u64>,
    /// With `include_stats`: whether none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = bool, example = false)]
    is_orphaned: Option<bool>,
}

/// What a tenant stores, and how much it may.
#[derive(Serialize, ToSchema)]
pub(crate) struct StorageOut {
    /// Different contents.
    #[schema(example = 1)]
    total_files: u64,
    #[schema(example = 2_310_000)]
    total_storage_bytes: u64,
    /// Millions of bytes, to two digits.
    #[schema(example = 2.31)]
    total_storage_mb: f64,
    /// Documents, those in the trash included.
    #[schema(example = 1)]
    total_documents: u64,
    /// Of them, those in the trash.
    #[schema(example = 0)]
    trashed_documents: u64,
    /// What uploads under way may come to add.
    #[schema(example = 0)]
    reserved_bytes: u64,
    #[schema(example = 0)]
    reserved_documents: u64,
    /// How many bytes the tenant may store; null for no limit.
    #[schema(required = true, example = 10_000_000_000_u64)]
    quota_bytes: Option<u64>,
    /// How many documents it may have; null for no limit.
    #[schema(required = true, example = 100_000)]
    quota_documents: Option<u64>,
}

impl From<(StorageUse, Quota)> for StorageOut {
    fn from((used, quota): (StorageUse, Quota)) -> Self {
        // In whole units of 10 kB first: those fit a double exactly.
        let hundredths = u32::try_from(used.bytes / 10_000).unwrap_or(u32::MAX);
        Self {
            total_files: used.files,
            total_storage_bytes: used.bytes,
            total_storage_mb: f64::from(hundredths) / 100.0,
            total_documents: used.documents,
            trashed_documents: used.trashed_documents,
            reserved_bytes: used.reserved_bytes,
            reserved_documents: used.reserved_documents,
            quota_bytes: quota.bytes,
            quota_documents: quota.documents,
        }
    }
}

/// A page of files.
#[derive(Serialize, ToSchema)]
pub(crate) struct FilesOut {
    #[serde(flatten)]
    list: List<ListedFileOut>,
    /// With `include_stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = StorageOut)]
    storage: Option<StorageOut>,
}

/// Which page, and whether with figures.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileQuery {
    /// The page's number, from 1.
    #[param(required = false, inline, value_type = schemas::PageNumber)]
    page: Option<i64>,
    /// How many items a page has.
    #[param(required = false, inline, value_type = schemas::PerPage)]
    per_page: Option<i64>,
    /// Adds document_count and is_orphaned to every file, and the totals.
    #[param(default = false)]
    include_stats: Option<bool>,
}

/// A file in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct FilePath {
    /// The tenant.
    tenant_id: Uuid,
    /// The file.
    file_id: Uuid,
}

/// List files
///
/// Newest first.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/files", tag = "files", params(TenantPath, FileQuery),
    responses((status = 200, description = "Files found", body = Response<FilesOut>)))]
pub(crate) async fn list_files(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    Query(query): Query<FileQuery>,
) -> ApiResult<FilesOut> {
    let mut errors = domain::FieldErrors::default();
    let request = domain::PageRequest::parse(query.page, query.per_page, &mut errors);
    errors.check()?;
    let with_stats = query.include_stats.unwrap_or(false);
    let page = services.list_files(&caller, tenant_id, request).await?;
    let list = List::of(page, |FileUsage { file, document_count }| ListedFileOut {
        file: file.into(),
        document_count: with_stats.then_some(document_count),
        is_orphaned: with_stats.then_some(document_count == 0),
    });
    let storage = if with_stats { Some(services.get_storage_use(&caller, tenant_id).await?.into()) } else { None };
    Ok(Response::ok("Files found", FilesOut { list, storage }))
}

/// A document that refers to a file.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReferenceOut {
    id: Uuid,
    #[schema(example = "Report 2026.pdf")]
    filename: String,
    #[schema(example = "application/pdf")]
    mime_type: String,
    user_id: Uuid,
    created_at: Timestamp,
    /// Whether the file is the document's content now; else it was that of a former version.
    #[schema(example = true)]
    is_current: bool,
    /// Whether the document is in the trash.
    #[schema(example = false)]
    is_in_trash: bool,
}

impl ReferenceOut {
    fn of(document: Document, file_id: FileId) -> Self {
        Self {
            is_current: document.file.id == file_id,
            is_in_trash: document.deleted_at.is_some(),
            id: document.id.uuid(),
            filename: document.filename,
            mime_type: document.mime_type,
            user_id: document.user_id.uuid(),
            created_at: Timestamp(document.created_at),
        }
    }
}

/// A file with the documents that refer to it.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileDetailsOut {
    #[serde(flatten)]
    file: FileOut,
    #[schema(example = 1)]
    document_count: u64,
    #[schema(example = false)]
    is_orphaned: bool,
    /// Newest first.
    documents: Vec<ReferenceOut>,
}

/// A file
///
/// With the documents that refer to it.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/files/{file_id}", tag = "files", params(FilePath),
    responses((status = 200, description = "File found", body = Response<FileDetailsOut>)))]
pub(crate) async fn get_file(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, file_id)): PathIds<(TenantId, FileId)>,
) -> Result<Response<FileDetailsOut>, ApiError> {
    let (file, documents) = services.get_file(&caller, tenant_id, file_id).await?;
    let details = FileDetailsOut {
        file: file.into(),
        document_count: documents.len() as u64,
        is_orphaned: documents.is_empty(),
        documents: documents.into_iter().map(|document| ReferenceOut::of(document, file_id)).collect(),
    };
    Ok(Response::ok("File found", details))
}

/// Delete a file
///
/// For admins, and only when no document refers to it.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/files/{file_id}", tag = "files", params(FilePath),
    responses((status = 200, description = "File deleted", body = Response<Empty>), Errors<FileInUse>))]
pub(crate) async fn delete_file(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, file_id)): PathIds<(TenantId, FileId)>,
) -> ApiResult<Empty> {
    services.delete_file(&caller, tenant_id, file_id).await?;
    Ok(Response::ok("File deleted", Empty))
}
