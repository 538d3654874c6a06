//! Documents: list, look at, download, rename. How they come and go: `uploads.rs`, `versions.rs`, `trash.rs`.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use domain::{
    Denial, Document, DocumentFilter, DocumentId, Error, File, Filename, MimeType, Noun, Page, PageRequest, Result, Role, TenantId,
    Timestamp,
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

/// Where a document's content can be had.
#[derive(Clone, Debug)]
pub struct Download {
    /// At the storage, or at this API.
    pub at: DownloadAt,
    /// Until when.
    pub expires_at: Timestamp,
}

/// Who serves a download.
#[derive(Clone, Debug)]
pub enum DownloadAt {
    /// The storage, at this URL.
    Storage(String),
    /// This API, for whoever presents the signature.
    Here {
        /// What may be downloaded.
        download: SignedDownload,
        /// The signature of it.
        signature: String,
    },
}

/// An object that a signed claim opened.
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

    /// Its bytes in this range, as they arrive from the storage.
    ///
    /// # Errors
    /// When the storage is down or the object is gone.
    pub async fn read(&self, range: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
        Ok(self.storage.get(&self.key, Some(range)).await?.bytes)
    }
}

impl UserServices {
    /// The documents of a tenant that meet a filter, newest first.
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
        documents::find(&mut tenant.read().await?, id).await?.ok_or(Error::NotFound(Noun::Document))
    }

    /// A URL at which whoever has it can download the document for a time.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document.
    pub async fn get_download(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<Download> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        let document = documents::find(&mut tenant.read().await?, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        let download = sign_download(&self.core, &document.file, &document.filename, &document.mime_type).await?;
        record(&self.core, &tenant, "document.downloaded", event_payload(&document)).await?;
        Ok(download)
    }

    /// Opens the object that a signed claim names. Nothing else opens an object.
    ///
    /// # Errors
    /// [`Denial::BadSignature`] when the claim was changed or has expired; [`Error::NotFound`] when the object is gone.
    pub async fn open_download(&self, claim: &SignedDownload, signature: &str) -> Result<OpenDownload> {
        self.core.parts.url_signer.verify(claim, signature, self.core.clock().now())?;
        let storage = Arc::clone(&self.core.parts.storage);
        Ok(OpenDownload { size: storage.head(&claim.key).await?, key: claim.key.clone(), storage })
    }

    /// Changes what is given of a document.
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
        let document = documents::find(&mut tx, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        tx.emit(&audit_event(&self.core, "document.updated", Some(tenant_id), Some(caller.user_id()), event_payload(&document)));
        tx.commit().await?;
        Ok(document)
    }
}

/// A URL at which whoever has it can download a file for a time.
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

/// A document that the caller may change, locked: an admin any, a user its own, a viewer none.
pub(crate) async fn lock_own(tx: &mut TenantTx, tenant: &TenantCaller, id: DocumentId) -> Result<Document> {
    let document = documents::lock(tx, id).await?.ok_or(Error::NotFound(Noun::Document))?;
    require_own(tenant, &document)?;
    Ok(document)
}

/// Fails unless the caller may change this document.
pub(crate) fn require_own(tenant: &TenantCaller, document: &Document) -> Result<()> {
    match tenant.role() {
        Role::Admin => Ok(()),
        Role::User if document.user_id == tenant.user_id() => Ok(()),
        Role::User => Err(Error::Forbidden(Denial::NotOwner)),
        Role::Viewer => Err(Error::Forbidden(Denial::RoleTooLow { needed: Role::User })),
    }
}

/// What a change expects of the document, as it is before the change.
pub type Precondition<'a> = &'a (dyn Fn(&Document) -> bool + Sync);

/// Fails unless the document is as the caller expects.
pub(crate) fn require_precondition(document: &Document, precondition: Precondition<'_>) -> Result<()> {
    if precondition(document) { Ok(()) } else { Err(Error::PreconditionFailed) }
}

fn content_headers(filename: &str, mime_type: &str) -> Result<ContentHeaders> {
    let damaged = |problem| Error::internal(format!("a stored document {problem}"));
    Ok(ContentHeaders::of(&Filename::parse(filename).map_err(damaged)?, &MimeType::parse(mime_type).map_err(damaged)?))
}

/// What events tell of a document.
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
