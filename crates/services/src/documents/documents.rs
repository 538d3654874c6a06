//! Listing, reading, downloading and renaming documents. `uploads.rs`, `versions.rs` and `trash.rs` add, change and delete them.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use domain::{
    Document, DocumentFilter, DocumentId, Error, File, Filename, ForbiddenReason, MimeType, Page, PageRequest, ResourceKind, Result, Role,
    TenantId, Timestamp,
};
use futures_util::stream::BoxStream;
use models::{TenantTx, documents};
use serde_json::json;

use crate::{
    Caller, Core, SignedDownload, UserServices,
    access::{TenantCaller, authorize, begin, record},
    events::events::audit_event,
    storage::{ContentHeaders, DownloadUrl, ObjectStorage},
};

/// A URL for a document's content.
#[derive(Clone, Debug)]
pub struct Download {
    /// Where the content is served.
    pub at: DownloadAt,
    /// When the URL expires.
    pub expires_at: Timestamp,
}

/// What serves a download.
#[derive(Clone, Debug)]
pub enum DownloadAt {
    /// The object storage, at this URL.
    Storage(String),
    /// This API, for a request with the signature.
    Here {
        /// The claim that the signature covers.
        download: SignedDownload,
        /// The claim's signature.
        signature: String,
    },
}

/// An object opened by a signed claim.
pub struct OpenDownload {
    storage: Arc<dyn ObjectStorage>,
    key: String,
    size: u64,
}

impl OpenDownload {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Streams this range of its bytes from the storage.
    ///
    /// # Errors
    /// When the storage is down or the object is gone.
    pub async fn read(&self, range: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
        Ok(self.storage.get(&self.key, Some(range)).await?.bytes)
    }
}

impl UserServices {
    /// A tenant's documents that match a filter, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the caller is a member.
    pub async fn list_documents(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        filter: &DocumentFilter,
        request: PageRequest,
    ) -> Result<Page<Document>> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        Ok(documents::list(&mut tenant.read().await?, filter, request).await?)
    }

    /// A document.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document.
    pub async fn get_document(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<Document> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        documents::find(&mut tenant.read().await?, id).await?.ok_or(Error::NotFound(ResourceKind::Document))
    }

    /// A temporary URL that lets anyone who has it download the document.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document.
    pub async fn get_download(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<Download> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        let document = documents::find(&mut tenant.read().await?, id).await?.ok_or(Error::NotFound(ResourceKind::Document))?;
        let download = sign_download(&self.core, &document.file, &document.filename, &document.mime_type).await?;
        record(&self.core, &tenant, "document.downloaded", event_payload(&document)).await?;
        Ok(download)
    }

    /// Opens the object that a signed claim names. Handlers have no other way to open an object.
    ///
    /// # Errors
    /// [`ForbiddenReason::BadSignature`] when the claim was changed or has expired; [`Error::NotFound`] when the object is gone.
    pub async fn open_download(&self, claim: &SignedDownload, signature: &str) -> Result<OpenDownload> {
        self.core.parts.url_signer.verify(claim, signature, self.core.clock().now())?;
        let storage = Arc::clone(&self.core.parts.storage);
        Ok(OpenDownload { size: storage.head(&claim.key).await?, key: claim.key.clone(), storage })
    }

    /// Changes the given properties of a document.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller owns it or is an admin; [`Error::PreconditionFailed`].
    pub async fn update_document(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        filename: Option<Filename>,
        mime_type: Option<MimeType>,
        precondition: Precondition<'_>,
    ) -> Result<Document> {
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::Viewer).await?;
        require_precondition(&lock_own(&mut tx, &tenant, id).await?, precondition)?;
        documents::update(&mut tx, id, filename.as_ref(), mime_type.as_ref(), self.core.clock().now()).await?;
        let document = documents::find(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::Document))?;
        tx.emit(&audit_event(&self.core, "document.updated", Some(tenant_id), Some(caller.user_id()), event_payload(&document)));
        tx.commit().await?;
        Ok(document)
    }
}

/// A temporary URL that lets anyone who has it download the file.
pub(crate) async fn sign_download(core: &Core, file: &File, filename: &str, mime_type: &str) -> Result<Download> {
    let headers = content_headers(filename, mime_type)?;
    let life = core.settings().download_url_life;
    let expires_at = Timestamp::from_seconds(core.clock().now().plus(life).seconds());
    let at = match core.parts.storage.signed_url(&file.object_key, life, &headers).await? {
        DownloadUrl::Store(url) => DownloadAt::Storage(url),
        DownloadUrl::Api => {
            let download = SignedDownload { key: file.object_key.clone(), headers, expires: expires_at.seconds() };
            DownloadAt::Here { signature: core.parts.url_signer.sign(&download), download }
        }
    };
    Ok(Download { at, expires_at })
}

/// A locked document that the caller may change: any document for an admin, an own one for a user, none for a viewer.
/// Callers authorize as [`Role::Viewer`] before: a document that does not exist is 404 for every member, then the role decides.
pub(crate) async fn lock_own(tx: &mut TenantTx, tenant: &TenantCaller, id: DocumentId) -> Result<Document> {
    let document = documents::lock(tx, id).await?.ok_or(Error::NotFound(ResourceKind::Document))?;
    require_own(tenant, &document)?;
    Ok(document)
}

/// Fails unless the caller may change this document.
pub(crate) fn require_own(tenant: &TenantCaller, document: &Document) -> Result<()> {
    match tenant.role() {
        Role::Admin => Ok(()),
        Role::User if document.user_id == tenant.user_id() => Ok(()),
        Role::User => Err(Error::Forbidden(ForbiddenReason::NotOwner)),
        Role::Viewer => Err(Error::Forbidden(ForbiddenReason::RoleTooLow { needed: Role::User })),
    }
}

/// A condition on the document as it is before the change.
pub type Precondition<'a> = &'a (dyn Fn(&Document) -> bool + Sync);

/// Fails unless the document meets the caller's precondition.
pub(crate) fn require_precondition(document: &Document, precondition: Precondition<'_>) -> Result<()> {
    if precondition(document) { Ok(()) } else { Err(Error::PreconditionFailed) }
}

fn content_headers(filename: &str, mime_type: &str) -> Result<ContentHeaders> {
    let mime_type = MimeType::parse(mime_type).map_err(|problem| Error::internal(format!("a stored document {problem}")))?;
    Ok(ContentHeaders::of(&Filename::from_stored(filename.to_owned()), &mime_type))
}

/// The payload of a document's events.
pub(crate) fn event_payload(document: &Document) -> serde_json::Value {
    json!({
        "document_id": document.id.to_string(),
        "version": document.version,
        "file_id": document.file.id.to_string(),
        "filename": document.filename,
        "mime_type": document.mime_type,
        "file_size": document.file.size,
    })
}
