//! Documents: upload, list, look at, download, rename, delete.

use std::time::Duration;

use bytes::Bytes;
use domain::{
    Denial, Document, DocumentFilter, DocumentId, Error, EventKind, File, FileId, Filename, MimeType, Noun, Page, PageRequest, Result,
    Role, TenantId, Timestamp, failpoint, object_key,
};
use models::{TenantTx, documents, files, outbox, uploads};
use serde_json::json;

use crate::{
    Caller, Services, SignedDownload, SpooledContent,
    access::TenantCaller,
    spool,
    storage::{DownloadUrl, Presentation},
};

/// How long an upload may take from its noting to its commit before the collector takes it for abandoned.
const UPLOAD_LIFE: Duration = Duration::from_secs(3600);
/// How long the storage may take for an object: much less.
const STORE_TIMEOUT: Duration = Duration::from_secs(1200);
/// How often an upload is tried again that others disturbed.
const ATTEMPTS: usize = 5;

/// An upload under way, by somebody who may upload there.
pub struct Upload {
    tenant: TenantCaller,
    content: spool::Upload,
}

impl Upload {
    /// Takes the next bytes of the content.
    ///
    /// # Errors
    /// [`Error::TooLarge`] as soon as there are too many.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.content.write(bytes).await
    }
}

/// A document that was uploaded.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The document.
    pub document: Document,
    /// Whether its content was already there.
    pub deduplicated: bool,
}

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

impl Services {
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
        let tenant = self.enter(caller, tenant_id, Role::Viewer).await?;
        Ok(documents::list(&mut tenant.read().await?, filter, request).await?)
    }

    /// A document.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document.
    pub async fn get_document(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<Document> {
        let tenant = self.enter(caller, tenant_id, Role::Viewer).await?;
        documents::find(&mut tenant.read().await?, id).await?.ok_or(Error::NotFound(Noun::Document))
    }

    /// Begins an upload: checks that the caller may, before the first byte is taken.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for viewers.
    pub async fn begin_upload(&self, caller: &Caller, tenant_id: TenantId) -> Result<Upload> {
        let tenant = self.enter(caller, tenant_id, Role::User).await?;
        Ok(Upload { tenant, content: self.0.parts.spool.begin(self.settings().max_upload_bytes) })
    }

    /// Ends an upload: the content becomes a document. When this returns, both are durable.
    ///
    /// The steps, of which a crash may interrupt any: (a) note the object's key as an upload under way, unless the content is
    /// already there; (b) store the object under that key, which was never used before; (c) in one transaction: refer to
    /// the same content if somebody else stored it meanwhile, else add the file; add the document and its event; forget
    /// the upload. What (b) left without (c), the collector finds by (a).
    ///
    /// # Errors
    /// [`Error::Invalid`] when the content is empty; [`Error::Unavailable`] when database or storage are down; as
    /// [`Services::begin_upload`] when the caller may no longer.
    pub async fn finish_upload(&self, upload: Upload, filename: &Filename, mime_type: &MimeType) -> Result<Uploaded> {
        let Upload { tenant, content } = upload;
        let content = content.finish().await?;
        if content.size == 0 {
            return Err(Error::invalid("file", "must not be empty"));
        }
        failpoint!("upload.received");
        for _ in 0..ATTEMPTS {
            let file = self.new_file(&tenant, &content);
            if let Some(document) = self.refer_or_note_upload(&tenant, &file, filename, mime_type).await? {
                failpoint!("upload.referred");
                return Ok(Uploaded { document, deduplicated: true });
            }
            failpoint!("upload.noted");
            let stored = tokio::time::timeout(STORE_TIMEOUT, self.0.parts.storage.put(&file.object_key, &content)).await;
            stored.map_err(|_| Error::Unavailable { dependency: "object storage", source: "storing took too long".into() })??;
            failpoint!("upload.stored");
            match self.add_document(&tenant, &file, filename, mime_type).await? {
                Added::New(document) => return Ok(Uploaded { document, deduplicated: false }),
                Added::Deduplicated(document) => {
                    self.discard_object(&tenant, &file.object_key).await;
                    return Ok(Uploaded { document, deduplicated: true });
                }
                // The collector took the upload for abandoned, perhaps before the object was there. Its key is spent.
                Added::UploadExpired => self.discard_object(&tenant, &file.object_key).await,
            }
        }
        Err(Error::Unavailable { dependency: "object storage", source: "the upload was disturbed too often".into() })
    }

    /// Begins a transaction for an upload. It may have taken long: long enough for the tenant to be deleted or to move, or for
    /// the caller to be put out of it.
    async fn begin_again(&self, tenant: &TenantCaller) -> Result<TenantTx> {
        Ok(self.begin(tenant.caller(), tenant.tenant_id(), Role::User).await?.1)
    }

    fn new_file(&self, tenant: &TenantCaller, content: &SpooledContent) -> File {
        let (id, now) = (FileId::generate(self.clock()), self.clock().now());
        File {
            id,
            hash: content.hash,
            object_key: object_key(tenant.tenant_id(), &content.hash, id),
            size: content.size,
            created_at: now,
            updated_at: now,
            created_by: Some(tenant.user_id()),
        }
    }

    /// Step (a).
    async fn refer_or_note_upload(
        &self,
        tenant: &TenantCaller,
        file: &File,
        filename: &Filename,
        mime_type: &MimeType,
    ) -> Result<Option<Document>> {
        let mut tx = self.begin_again(tenant).await?;
        let document = match files::lock_by_content(&mut tx, &file.hash, file.size).await? {
            Some(there) => Some(self.insert_document(&mut tx, tenant, there, filename, mime_type).await?),
            None => {
                uploads::insert(&mut tx, &file.object_key, self.clock().now().plus(UPLOAD_LIFE)).await?;
                None
            }
        };
        tx.commit().await?;
        Ok(document)
    }

    /// Step (c).
    async fn add_document(&self, tenant: &TenantCaller, file: &File, filename: &Filename, mime_type: &MimeType) -> Result<Added> {
        for _ in 0..ATTEMPTS {
            let mut tx = self.begin_again(tenant).await?;
            if files::insert_if_new(&mut tx, file).await? {
                if !uploads::complete(&mut tx, &file.object_key).await? {
                    return Ok(Added::UploadExpired);
                }
                let document = self.insert_document(&mut tx, tenant, file.clone(), filename, mime_type).await?;
                failpoint!("upload.committing");
                tx.commit().await?;
                failpoint!("upload.committed");
                return Ok(Added::New(document));
            }
            // Absent when it was condemned between the two statements: then the content may be added after all.
            if let Some(there) = files::lock_by_content(&mut tx, &file.hash, file.size).await? {
                let document = self.insert_document(&mut tx, tenant, there, filename, mime_type).await?;
                uploads::condemn(&mut tx, &file.object_key, self.clock().now()).await?;
                failpoint!("upload.condemning");
                tx.commit().await?;
                failpoint!("upload.condemned");
                return Ok(Added::Deduplicated(document));
            }
        }
        Err(Error::Unavailable { dependency: "database", source: "the same content comes and goes too fast".into() })
    }

    async fn insert_document(
        &self,
        tx: &mut TenantTx,
        tenant: &TenantCaller,
        file: File,
        filename: &Filename,
        mime_type: &MimeType,
    ) -> Result<Document> {
        let now = self.clock().now();
        let document = Document {
            id: DocumentId::generate(self.clock()),
            filename: filename.as_str().to_owned(),
            mime_type: mime_type.as_str().to_owned(),
            file,
            user_id: tenant.user_id(),
            created_at: now,
            updated_at: now,
            created_by: Some(tenant.user_id()),
        };
        documents::insert(tx, &document).await?;
        outbox::push(tx, &self.event(EventKind::DocumentUploaded, Some(tenant.tenant_id()), document.created_by, &facts(&document)))
            .await?;
        Ok(document)
    }

    /// Removes an object that no file refers to. What fails here, the collector does.
    async fn discard_object(&self, tenant: &TenantCaller, key: &str) {
        if let Err(error) = self.delete_condemned_upload(tenant.database(), key).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "an object that nobody needs is left to the collector");
        }
    }

    /// A URL at which whoever has it can download the document for a time.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document.
    pub async fn get_download(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<Download> {
        let document = self.get_document(caller, tenant_id, id).await?;
        let presentation = presentation(&document)?;
        let life = self.settings().download_url_life;
        let expires_at = Timestamp::from_seconds(self.clock().now().plus(life).seconds());
        let at = match self.0.parts.storage.signed_url(&document.file.object_key, life, &presentation).await? {
            DownloadUrl::Store(url) => DownloadAt::Storage(url),
            DownloadUrl::Api => {
                let download = SignedDownload { key: document.file.object_key, presentation, expires: expires_at.seconds() };
                DownloadAt::Here { signature: self.0.parts.url_signer.sign(&download), download }
            }
        };
        Ok(Download { at, expires_at })
    }

    /// Checks the signature of a download from this API.
    ///
    /// # Errors
    /// [`Denial::BadSignature`] when anything of it was changed, or its time is over.
    pub fn check_download(&self, download: &SignedDownload, signature: &str) -> Result<()> {
        self.0.parts.url_signer.verify(download, signature, self.clock().now())
    }

    /// Changes what is given of a document.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller owns it or is an admin.
    pub async fn update_document(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        filename: Option<Filename>,
        mime_type: Option<MimeType>,
    ) -> Result<Document> {
        let (tenant, mut tx) = self.begin(caller, tenant_id, Role::Viewer).await?;
        find_own(&mut tx, &tenant, id).await?;
        if !documents::update(&mut tx, id, filename.as_ref(), mime_type.as_ref(), self.clock().now()).await? {
            return Err(Error::NotFound(Noun::Document));
        }
        let document = documents::find(&mut tx, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        outbox::push(&mut tx, &self.audit("document.updated", Some(tenant_id), Some(caller.user_id()), facts(&document))).await?;
        tx.commit().await?;
        Ok(document)
    }

    /// Deletes a document. When nothing else refers to its file, the file is collected after a grace.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller owns it or is an admin.
    pub async fn delete_document(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<()> {
        let (tenant, mut tx) = self.begin(caller, tenant_id, Role::Viewer).await?;
        let document = find_own(&mut tx, &tenant, id).await?;
        // Before the document goes: an upload of the same content either sees it, or waits until it is gone.
        files::lock(&mut tx, document.file.id).await?;
        if !documents::delete(&mut tx, id).await? {
            return Err(Error::NotFound(Noun::Document));
        }
        files::touch(&mut tx, document.file.id, self.clock().now()).await?;
        outbox::push(&mut tx, &self.event(EventKind::DocumentDeleted, Some(tenant_id), Some(caller.user_id()), &facts(&document))).await?;
        failpoint!("document.deleting");
        tx.commit().await?;
        failpoint!("document.deleted");
        Ok(())
    }
}

enum Added {
    New(Document),
    Deduplicated(Document),
    UploadExpired,
}

/// A document that the caller may change: an admin any, a user its own, a viewer none.
async fn find_own(tx: &mut TenantTx, tenant: &TenantCaller, id: DocumentId) -> Result<Document> {
    let document = documents::find(tx, id).await?.ok_or(Error::NotFound(Noun::Document))?;
    match tenant.role() {
        Role::Admin => Ok(document),
        Role::User if document.user_id == tenant.user_id() => Ok(document),
        Role::User => Err(Error::Forbidden(Denial::NotOwner)),
        Role::Viewer => Err(Error::Forbidden(Denial::RoleTooLow { needed: Role::User })),
    }
}

fn presentation(document: &Document) -> Result<Presentation> {
    let damaged = |problem| Error::internal(format!("a stored document {problem}"));
    let filename = Filename::parse(&document.filename).map_err(damaged)?;
    let mime_type = MimeType::parse(&document.mime_type).map_err(damaged)?;
    Ok(Presentation::of(&filename, &mime_type))
}

fn facts(document: &Document) -> serde_json::Value {
    json!({
        "document_id": document.id.to_string(),
        "file_id": document.file.id.to_string(),
        "filename": document.filename,
        "mime_type": document.mime_type,
        "file_size": document.file.size,
    })
}
