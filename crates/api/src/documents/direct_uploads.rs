//! `/api/tenants/{tenant_id}/documents/uploads`: uploads whose parts go to URLs of their own, and how uploads in parts stand.

use axum::{extract::State, http::HeaderMap};
use domain::{ContentHash, Document, FieldErrors, Filename, MimeType, MultipartUpload, TenantId, TextProblem, UploadId, UploadState};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use services::{Announcement, Begun, PartAt, PartUrl};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    App,
    documents::documents::UploadOut,
    documents::objects::part_url,
    extract::{Authenticated, JsonBody, PathIds, all, optional, present, required},
    operation_errors::{Errors, QuotaExceeded, UploadClosed, UploadFailed},
    query::TenantPath,
    response::{ApiResult, Empty, Response, Timestamp},
    schemas,
};

/// The most bytes of a direct upload: what S3 copies in one go.
const LARGEST: u64 = 5 * 1024 * 1024 * 1024;

/// What is to be uploaded.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BeginUploadIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::Filename)]
    filename: Option<String>,
    /// By default application/octet-stream.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::MediaType)]
    mime_type: Option<String>,
    /// Bytes.
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
    fn parse(&self) -> Result<Announcement, crate::error::ApiError> {
        let mut errors = FieldErrors::default();
        let filename = required(&mut errors, "filename", self.filename.as_ref(), Filename::parse);
        let mime_type = optional(&mut errors, "mime_type", self.mime_type.as_ref(), MimeType::parse);
        let size = self.size.filter(|size| (1..=LARGEST).contains(size)).ok_or("is required, a whole number from 1 to 5368709120");
        let size = errors.take("size", size);
        let sha256 = required(&mut errors, "sha256", self.sha256.as_ref(), parse_sha256);
        let md5 = optional(&mut errors, "md5", self.md5.as_ref(), |text| ContentHash::parse_md5(text).ok_or("must be 32 hex digits"));
        let fields = filename.zip(size).zip(sha256);
        let ((filename, size), sha256) = all(errors, fields)?;
        Ok(Announcement { filename, mime_type: mime_type.unwrap_or_else(MimeType::octet_stream), size, sha256, md5 })
    }
}

/// A whole number, also one that is written as `43.0`: to JSON Schema it is an integer.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let written_out = || number.as_f64().filter(|number| number.fract() == 0.0).and_then(|number| format!("{number:.0}").parse().ok());
    Ok(Some(number.as_u64().or_else(written_out).ok_or_else(|| D::Error::custom("must be a whole number from 1 to 5368709120"))?))
}

fn parse_sha256(text: &str) -> Result<[u8; 32], TextProblem> {
    ContentHash::parse_sha256(text).ok_or("must be 64 hex digits")
}

/// Where a part is to be sent.
#[derive(Serialize, ToSchema)]
pub(crate) struct PartOut {
    /// From 1.
    #[schema(example = 1)]
    number: u32,
    /// The part's first byte's place in the content.
    #[schema(example = 0)]
    offset: u64,
    /// Exactly so many bytes are taken.
    #[schema(example = 43)]
    size: u64,
    /// Takes a PUT of the bytes, without a token: keep it secret.
    #[schema(example = "https://storage.example.com/tenantry/tenants/…?partNumber=1&uploadId=…&X-Amz-Signature=…")]
    url: String,
}

/// An upload in parts.
#[derive(Serialize, ToSchema)]
pub(crate) struct StagedUploadOut {
    id: Uuid,
    /// direct or tus
    #[schema(example = "direct")]
    protocol: &'static str,
    /// open, completing, completed or failed
    #[schema(example = "open")]
    state: &'static str,
    #[schema(example = "Report 2026.pdf")]
    filename: String,
    #[schema(example = "application/pdf")]
    mime_type: String,
    /// Bytes.
    #[schema(example = 43)]
    size: u64,
    /// Of a tus upload: how many of its bytes are here.
    #[schema(example = 0)]
    received: u64,
    /// Why it failed.
    #[schema(required = true, example = "its SHA-256 is d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592")]
    failure: Option<String>,
    created_at: Timestamp,
    /// When it is given up, or forgotten.
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

/// How an upload stands.
#[derive(Serialize, ToSchema)]
pub(crate) struct UploadStateOut {
    /// Null when nothing needs to be uploaded, since the content was there.
    #[schema(required = true)]
    upload: Option<StagedUploadOut>,
    /// Where the parts are to be sent, as long as it is open.
    parts: Vec<PartOut>,
    /// What it became.
    #[schema(required = true)]
    document: Option<UploadOut>,
}

impl UploadStateOut {
    fn of(upload: &MultipartUpload, document: Option<Document>, parts: Vec<PartOut>) -> Self {
        let deduplicated = upload.document.is_some_and(|(_, deduplicated)| deduplicated);
        Self { upload: Some(upload.into()), parts, document: document.map(|document| UploadOut::of(document, deduplicated)) }
    }
}

fn parts_out(app: &App, headers: &HeaderMap, urls: Vec<PartUrl>) -> Vec<PartOut> {
    let base = app.base_url(headers);
    let url = |at: PartAt| match at {
        PartAt::Storage(url) => url,
        PartAt::Here { part, signature } => format!("{base}{}", part_url(&part, &signature)),
    };
    urls.into_iter().map(|PartUrl { number, offset, size, at }| PartOut { number, offset, size, url: url(at) }).collect()
}

/// An upload in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` reads it")]
pub(crate) struct UploadPath {
    /// The tenant.
    tenant_id: Uuid,
    /// The upload.
    upload_id: Uuid,
}

/// Begin a direct upload
///
/// Announces a content. When the tenant has it already, in a document that the caller may read, it becomes a document at once. Else
/// the answer has a URL for each part; send each with PUT and exactly its bytes, in any order, several at a time, and then complete
/// the upload. Nothing is believed: size and hashes are checked when it is completed.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/uploads", tag = "uploads", params(TenantPath), request_body = BeginUploadIn,
    responses((status = 201, description = "Upload begun", body = Response<UploadStateOut>), Errors<QuotaExceeded>))]
pub(crate) async fn begin_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<BeginUploadIn>,
) -> ApiResult<UploadStateOut> {
    Ok(match app.services.begin_direct(&caller, tenant_id, &body.parse()?).await? {
        Begun::Here(uploaded) => {
            Response::created("Document uploaded", UploadStateOut { upload: None, parts: Vec::new(), document: Some(uploaded.into()) })
        }
        Begun::Open(upload, urls) => Response::created("Upload begun", UploadStateOut::of(&upload, None, parts_out(&app, &headers, urls))),
    })
}

/// An upload in parts
///
/// How it stands, whatever its protocol, with fresh URLs for the parts of an open direct one. For who began it.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/uploads/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 200, description = "Upload found", body = Response<UploadStateOut>)))]
pub(crate) async fn get_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
    headers: HeaderMap,
) -> ApiResult<UploadStateOut> {
    let (upload, document) = app.services.get_multipart_upload(&caller, tenant_id, upload_id).await?;
    let urls = app.services.get_part_urls(&caller, tenant_id, &upload).await?;
    Ok(Response::ok("Upload found", UploadStateOut::of(&upload, document, parts_out(&app, &headers, urls))))
}

/// Complete a direct upload
///
/// Puts the parts together, checks size and hashes, and makes the document. When that takes longer than some seconds the answer is
/// 202: ask for the upload until it is completed. Completing it again answers the same.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/documents/uploads/{upload_id}/complete", tag = "uploads", params(UploadPath),
    responses(
        (status = 200, description = "Document uploaded", body = Response<UploadStateOut>),
        (status = 202, description = "The content is still being checked", body = Response<UploadStateOut>), Errors<UploadFailed>))]
pub(crate) async fn complete_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
) -> ApiResult<UploadStateOut> {
    let (upload, document) = app.services.complete_direct(&caller, tenant_id, upload_id).await?;
    let state = UploadStateOut::of(&upload, document, Vec::new());
    Ok(match upload.state {
        UploadState::Completing => Response::accepted("The content is still being checked", state),
        _ => Response::ok("Document uploaded", state),
    })
}

/// Give up an upload
///
/// Direct or tus. What was sent of it goes.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/documents/uploads/{upload_id}", tag = "uploads", params(UploadPath),
    responses((status = 200, description = "Upload given up", body = Response<Empty>), Errors<UploadClosed>))]
pub(crate) async fn abort_upload(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, upload_id)): PathIds<(TenantId, UploadId)>,
) -> ApiResult<Empty> {
    app.services.abort_multipart_upload(&caller, tenant_id, upload_id).await?;
    Ok(Response::ok("Upload given up", Empty))
}
