//! `/api/tenants/{tenant_id}/documents/uploads`: direct uploads, whose parts go to signed URLs, and the state of multipart uploads.

use axum::extract::State;
use domain::{ContentHash, Document, FieldErrors, Filename, MimeType, MultipartUpload, TenantId, TextProblem, UploadId, UploadState};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use services::{DeclarationOutcome, DeclaredUpload, PartAt, PartUrl};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    App,
    client::BaseUrl,
    documents::documents::UploadOut,
    documents::objects::part_url,
    extract::{Authenticated, JsonBody, PathIds, all, optional, present, required},
    operation_errors::{Errors, QuotaExceeded, UploadClosed, UploadFailed},
    query::TenantPath,
    response::{ApiResult, Empty, Response, Timestamp},
    schemas,
};

/// The largest direct upload, in bytes: the limit of a single S3 copy.
const MAX_DIRECT_UPLOAD_BYTES: u64 = 5 * 1024 * 1024 * 1024;

/// The declared upload.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BeginUploadIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::Filename)]
    filename: Option<String>,
    /// Default: application/octet-stream.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::MediaType)]
    mime_type: Option<String>,
    /// Size in bytes.
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(required = true, value_type = u64, minimum = 1, maximum = 5_368_709_120_u64, example = 43)]
    size: Option<u64>,
    /// 64 hex digits.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = String, pattern = "^[0-9a-fA-F]{64}$", example = "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592")]
    sha256: Option<String>,
    /// 32 hex digits.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, pattern = "^[0-9a-fA-F]{32}$", example = "9e107d9d372bb6826bd81d3542a419d6")]
    md5: Option<String>,
}

impl BeginUploadIn {
    fn parse(&self) -> Result<DeclaredUpload, crate::error::ApiError> {
        let mut errors = FieldErrors::default();
        let filename = required(&mut errors, "filename", self.filename.as_ref(), Filename::parse);
        let mime_type = optional(&mut errors, "mime_type", self.mime_type.as_ref(), MimeType::parse);
        let size =
            self.size.filter(|size| (1..=MAX_DIRECT_UPLOAD_BYTES).contains(size)).ok_or("is required: a whole number from 1 to 5368709120");
        let size = errors.take("size", size);
        let sha256 = required(&mut errors, "sha256", self.sha256.as_ref(), parse_sha256);
        let md5 = optional(&mut errors, "md5", self.md5.as_ref(), |text| ContentHash::parse_md5(text).ok_or("must be 32 hex digits"));
        let fields = filename.zip(size).zip(sha256);
        let ((filename, size), sha256) = all(errors, fields)?;
        Ok(DeclaredUpload { filename, mime_type: mime_type.unwrap_or_else(MimeType::octet_stream), size, sha256, md5 })
    }
}

/// Deserializes a whole number. Accepts `43.0`, which is an integer to JSON Schema.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let from_float = || number.as_f64().filter(|number| number.fract() == 0.0).and_then(|number| format!("{number:.0}").parse().ok());
    Ok(Some(number.as_u64().or_else(from_float).ok_or_else(|| D::Error::custom("must be a whole number from 1 to 5368709120"))?))
}

fn parse_sha256(text: &str) -> Result<[u8; 32], TextProblem> {
    ContentHash::parse_sha256(text).ok_or("must be 64 hex digits")
}

/// A part to send.
#[derive(Serialize, ToSchema)]
pub(crate) struct PartOut {
    /// Part number, from 1.
    #[schema(example = 1)]
    number: u32,
    /// Offset of the part's first byte in the content.
    #[schema(example = 0)]
    offset: u64,
    /// Exact number of bytes to send.
    #[schema(example = 43)]
    size: u64,
    /// PUT the bytes to this URL. It needs no token: keep it secret.
    #[schema(example = "https://storage.example.com/tenantry/tenants/…?partNumber=1&uploadId=…&X-Amz-Signature=…")]
    url: String,
}

/// A multipart upload.
#[derive(Serialize, ToSchema)]
pub(crate) struct StagedUploadOut {
    id: Uuid,
    /// `direct` or `tus`.
    #[schema(example = "direct")]
    protocol: &'static str,
    /// `open`, `completing`, `completed` or `failed`.
    #[schema(example = "open")]
    state: &'static str,
    #[schema(example = "Report 2026.pdf")]
    filename: String,
    #[schema(example = "application/pdf")]
    mime_type: String,
    /// Size in bytes.
    #[schema(example = 43)]
    size: u64,
    /// For tus uploads: the number of bytes received.
    #[schema(example = 0)]
    received: u64,
    /// Why the upload failed.
    #[schema(required = true, example = "its SHA-256 is d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592")]
    failure: Option<String>,
    created_at: Timestamp,
    /// When the upload is aborted or, once it has ended, purged.
    expires_at: Timestamp,
}

impl From<&MultipartUpload> for StagedUploadOut {
    fn from(upload: &MultipartUpload) -> Self {
        Self {
            id: upload.id.uuid(),
            protocol: upload.protocol.as_str(),
            state: upload.state.as_str(),
            filename: upload.filename.clone(),
            mime_type: upload.mime_type.clone(),
            size: upload.size,
            received: upload.received,
            failure: upload.failure.clone(),
            created_at: Timestamp(upload.created_at),
            expires_at: Timestamp(upload.expires_at),
        }
    }
}

/// The state of an upload.
#[derive(Serialize, ToSchema)]
pub(crate) struct UploadStateOut {
    /// Null if the content was already stored, so that no upload is needed.
    #[schema(required = true)]
    upload: Option<StagedUploadOut>,
    /// The parts to send, while the upload is open.
    parts: Vec<PartOut>,
    /// The resulting document.
    #[schema(required = true)]
    document: Option<UploadOut>,
}

impl UploadStateOut {
    fn of(upload: &MultipartUpload, document: Option<Document>, parts: Vec<PartOut>) -> Self {
        let deduplicated = upload.document.is_some_and(|(_, deduplicated)| deduplicated);
        Self { upload: Some(upload.into()), parts, document: document.map(|document| UploadOut::of(document, deduplicated)) }
    }
}

fn parts_out(BaseUrl(base): &BaseUrl, urls: Vec<PartUrl>) -> Vec<PartOut> {
    let url = |at: PartAt| match at {
        PartAt::Storage(url) => url,
        PartAt::Here { part, signature } => format!("{base}{}", part_url(&part, &signature)),
    };
    urls.into_iter().map(|PartUrl { number, offset, size, at }| PartOut { number, offset, size, url: url(at) }).collect()
}

/// Path parameters of an upload.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct UploadPath {
    /// Tenant id.
    tenant_id: Uuid,
    /// Upload id.
    upload_id: Uuid,
}

/// Start a direct upload
///
/// Declares content. If the tenant already stores it in a document that the caller may read, the document is created at once.
/// Otherwise the response has a URL for each part. PUT exactly the part's bytes to each URL, in any order and concurrently, then
/// complete the upload. Completing verifies the declared size and hashes.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/uploads", tag = "uploads", params(TenantPath), request_body = BeginUploadIn,
    responses((status = 201, description = "Upload started", body = Response<UploadStateOut>), Errors<QuotaExceeded>))]
pub(crate) async fn begin_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    base: BaseUrl,
    JsonBody(body): JsonBody<BeginUploadIn>,
) -> ApiResult<UploadStateOut> {
    Ok(match app.services.begin_direct(&caller, tenant_id, &body.parse()?).await? {
        DeclarationOutcome::Stored(uploaded) => {
            Response::created("Document uploaded", UploadStateOut { upload: None, parts: Vec::new(), document: Some(uploaded.into()) })
        }
        DeclarationOutcome::Open(upload, urls) => {
            Response::created("Upload started", UploadStateOut::of(&upload, None, parts_out(&base, urls)))
        }
    })
}

/// Get a multipart upload
///
/// The state of a direct or tus upload. An open direct upload gets fresh URLs for its parts. For the user who started it.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/uploads/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 200, description = "Upload found", body = Response<UploadStateOut>)))]
pub(crate) async fn get_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    base: BaseUrl,
) -> ApiResult<UploadStateOut> {
    let (upload, document) = app.services.get_multipart_upload(&caller, tenant_id, upload_id).await?;
    let urls = app.services.get_part_urls(&caller, tenant_id, &upload).await?;
    Ok(Response::ok("Upload found", UploadStateOut::of(&upload, document, parts_out(&base, urls))))
}

/// Complete a direct upload
///
/// Assembles the parts, verifies size and hashes, and creates the document. If that takes longer than a few seconds, the response
/// is 202: poll the upload until it is completed. Completing it again returns the same result.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/uploads/{upload_id}/complete", tag = "uploads", params(UploadPath),
    responses(
        (status = 200, description = "Document uploaded", body = Response<UploadStateOut>),
        (status = 202, description = "The content is still being verified", body = Response<UploadStateOut>), Errors<UploadFailed>))]
pub(crate) async fn complete_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
) -> ApiResult<UploadStateOut> {
    let (upload, document) = app.services.complete_direct(&caller, tenant_id, upload_id).await?;
    let state = UploadStateOut::of(&upload, document, Vec::new());
    Ok(match upload.state {
        UploadState::Completing => Response::accepted("The content is still being verified", state),
        _ => Response::ok("Document uploaded", state),
    })
}

/// Abort an upload
///
/// Direct or tus. Discards the data received so far.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/uploads/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 200, description = "Upload aborted", body = Response<Empty>), Errors<UploadClosed>))]
pub(crate) async fn abort_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
) -> ApiResult<Empty> {
    app.services.abort_multipart_upload(&caller, tenant_id, upload_id).await?;
    Ok(Response::ok("Upload aborted", Empty))
}
