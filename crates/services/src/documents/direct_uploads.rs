//! Direct uploads: clients send the parts to signed URLs, at the storage if it can sign them, so that the bytes bypass the API.

use std::time::Duration;

use bytes::Bytes;
use domain::{
    Conflict, ContentHash, Dependency, Document, Error, Filename, MimeType, MultipartUpload, ResourceKind, Result, Role, StorageUpload,
    TenantId, UploadId, UploadPart, UploadProtocol, UploadState, failpoint,
};
use models::{files, multipart_uploads, uploads};

use crate::{
    Caller, Core, SignedPart, Uploaded, UserServices,
    access::{TenantCaller, authorize, begin, reauthorize_and_begin},
    documents::{
        content::insert_document,
        disposal::{abort_upload, discard_object},
        multipart_uploads::{abort_storage_upload, complete_and_wait, find_own, reserve, staged_key, store_part},
        targets::upload_deadline,
    },
    storage::spool,
};

/// The size of a part in bytes; larger where there would be more than [`MAX_PARTS`] of them.
const PART_SIZE: u64 = 16 * 1024 * 1024;
/// The maximum number of parts, and so of URLs in a response.
const MAX_PARTS: u64 = 1_000;
/// How long a URL may be valid, whatever the upload's lifetime: S3's limit.
const MAX_URL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the request that completes an upload waits for the document.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// An upload as the client declares it.
#[derive(Clone, Debug)]
pub struct DeclaredUpload {
    /// The document's future name.
    pub filename: Filename,
    /// Its media type.
    pub mime_type: MimeType,
    /// The content's size in bytes.
    pub size: u64,
    /// The content's SHA-256.
    pub sha256: [u8; 32],
    /// The content's MD5, if the client knows it.
    pub md5: Option<[u8; 16]>,
}

/// The result of declaring an upload.
pub enum DeclarationOutcome {
    /// The content exists, and the caller may read a document that has it. The upload became a document immediately.
    Stored(Uploaded),
    /// The upload awaits its parts.
    Open(MultipartUpload, Vec<PartUrl>),
}

/// A URL to send a part to.
#[derive(Clone, Debug)]
pub struct PartUrl {
    /// The part's number, from 1.
    pub number: u32,
    /// The offset of its first byte in the content.
    pub offset: u64,
    /// Its exact size in bytes.
    pub size: u64,
    /// Where it is received.
    pub at: PartAt,
}

/// What receives a part.
#[derive(Clone, Debug)]
pub enum PartAt {
    /// The object storage, at this URL.
    Storage(String),
    /// This API, for a request with the signature.
    Here {
        /// The claim that the signature covers.
        part: SignedPart,
        /// The claim's signature.
        signature: String,
    },
}

/// A part in flight.
pub struct PartUpload {
    part: SignedPart,
    tenant: TenantCaller,
    content: spool::Upload,
}

impl PartUpload {
    /// Receives the next bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with the first byte past the part's size.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.content.write(bytes).await
    }
}

impl UserServices {
    /// Begins an upload whose parts are sent to signed URLs. If the caller may already read a document with the same content, the
    /// upload becomes a document at once. Whether other documents have this content is not revealed.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for viewers and when the quota would be exceeded; [`Error::TooLarge`].
    pub async fn begin_direct(&self, caller: &Caller, tenant_id: TenantId, declared: &DeclaredUpload) -> Result<DeclarationOutcome> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::User).await?;
        let limit = self.core.settings().max_upload_bytes;
        if declared.size > limit {
            return Err(Error::TooLarge { limit });
        }
        if let Some(uploaded) = refer_to_readable(&self.core, &tenant, declared).await? {
            return Ok(DeclarationOutcome::Stored(uploaded));
        }
        let id = UploadId::generate(self.core.clock());
        let gathered = match self.core.parts.storage.direct_uploads() {
            None => None,
            Some(storage) => {
                let key = format!("{}/content", staged_key(tenant_id, id));
                let storage_upload_id = storage.begin(&key).await?;
                failpoint!("direct.gathering");
                Some(StorageUpload { key, storage_upload_id })
            }
        };
        let now = self.core.clock().now();
        let upload = MultipartUpload {
            id,
            protocol: UploadProtocol::Direct,
            state: UploadState::Open,
            user_id: caller.user_id(),
            filename: declared.filename.as_str().to_owned(),
            mime_type: declared.mime_type.as_str().to_owned(),
            metadata: String::new(),
            size: declared.size,
            sha256: Some(declared.sha256),
            md5: declared.md5,
            received: 0,
            gathered,
            part_size: PART_SIZE.max(declared.size.div_ceil(MAX_PARTS)),
            document: None,
            failure: None,
            created_at: now,
            updated_at: now,
            expires_at: upload_deadline(&self.core),
        };
        if let Err(error) = record_direct(&self.core, &tenant, &upload).await {
            // The commit may have happened although its response was lost, but no client got URLs for it.
            if let Some(gathered) = &upload.gathered {
                abort_storage_upload(&self.core, gathered).await;
            }
            return Err(error);
        }
        failpoint!("direct.begun");
        let urls = sign_part_urls(&self.core, &tenant, &upload).await?;
        Ok(DeclarationOutcome::Open(upload, urls))
    }

    /// Signs fresh part URLs for an open upload of the caller, for use after the earlier ones expire.
    ///
    /// # Errors
    /// As [`UserServices::get_multipart_upload`].
    pub async fn get_part_urls(&self, caller: &Caller, tenant_id: TenantId, upload: &MultipartUpload) -> Result<Vec<PartUrl>> {
        if upload.state != UploadState::Open || upload.protocol != UploadProtocol::Direct {
            return Ok(Vec::new());
        }
        sign_part_urls(&self.core, &authorize(&self.core, caller, tenant_id, Role::User).await?, upload).await
    }

    /// Begins to receive a part, authorized by its signature.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when the signature is invalid or has expired, or when the user that it was issued to may no longer
    /// upload; [`Conflict::UploadClosed`].
    pub async fn begin_part(&self, part: SignedPart, signature: &str) -> Result<PartUpload> {
        self.core.parts.url_signer.verify_part(&part, signature, self.core.clock().now())?;
        let caller = Caller::of(part.user_id);
        require_open(&find_own(&self.core, &caller, part.tenant_id, part.upload_id).await?)?;
        let tenant = authorize(&self.core, &caller, part.tenant_id, Role::User).await?;
        let content = self.core.parts.spool.begin(part.size);
        Ok(PartUpload { part, tenant, content })
    }

    /// Finishes a part. When this returns, it is durable; it replaces a part that was sent before.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it has fewer bytes than declared; [`Conflict::UploadClosed`].
    pub async fn finish_part(&self, upload: PartUpload) -> Result<ContentHash> {
        let PartUpload { part, tenant, content } = upload;
        let content = content.finish().await?;
        if content.size != part.size {
            return Err(Error::invalid("body", format!("must have {} bytes", part.size)));
        }
        let (hash, id) = (content.hash, part.upload_id);
        let key = store_part(&self.core, &tenant, id, content).await?;
        let part = UploadPart { offset: part.offset, size: part.size, key };
        match insert_part(&self.core, &tenant, id, &part).await {
            Ok(Some(replaced)) => discard_object(&self.core, &tenant, &replaced).await,
            Ok(None) => {}
            Err(error) => {
                abort_upload(&self.core, &tenant, &part.key).await;
                return Err(error);
            }
        }
        Ok(hash)
    }

    /// Completes an upload whose parts were all sent: they are assembled, verified, and become a document. This waits up to a
    /// timeout, after which the upload is still completing. The call is idempotent.
    ///
    /// # Errors
    /// [`Error::Invalid`] when parts are missing; [`Conflict::UploadFailed`] when the content differs from the declaration.
    pub async fn complete_direct(&self, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<(MultipartUpload, Option<Document>)> {
        let upload = find_own(&self.core, caller, tenant_id, id).await?;
        if upload.protocol != UploadProtocol::Direct {
            return Err(Error::NotFound(ResourceKind::Upload));
        }
        if upload.state == UploadState::Open {
            assemble(&self.core, caller, tenant_id, &upload).await?;
        }
        complete_and_wait(&self.core, caller, tenant_id, id, WAIT_TIMEOUT).await
    }
}

async fn record_direct(core: &Core, tenant: &TenantCaller, upload: &MultipartUpload) -> Result<()> {
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    reserve(core, &mut tx, tenant.quota(), upload.size).await?;
    multipart_uploads::insert(&mut tx, upload).await?;
    failpoint!("direct.beginning");
    Ok(tx.commit().await?)
}

/// Creates a document from existing content, if the caller may read a document that has it.
async fn refer_to_readable(core: &Core, tenant: &TenantCaller, declared: &DeclaredUpload) -> Result<Option<Uploaded>> {
    let hash = ContentHash { md5: declared.md5.unwrap_or_default(), sha256: declared.sha256 };
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    let quota = tenant.quota();
    if !quota.is_unlimited() {
        models::quotas::lock(&mut tx).await?;
    }
    let Some(file) = files::lock_readable_by_content(&mut tx, &hash, declared.size).await? else { return Ok(None) };
    // The client declares other content or made a mistake; the upload will show which.
    if declared.md5.is_some_and(|md5| md5 != file.hash.md5) {
        return Ok(None);
    }
    reserve(core, &mut tx, quota, 0).await?;
    let document = insert_document(core, &mut tx, tenant, file, &declared.filename, &declared.mime_type);
    tx.commit().await?;
    Ok(Some(Uploaded { document, deduplicated: true }))
}

async fn sign_part_urls(core: &Core, tenant: &TenantCaller, upload: &MultipartUpload) -> Result<Vec<PartUrl>> {
    let life = core.settings().upload_life.min(MAX_URL_LIFE);
    let expires = core.clock().now().plus(life).seconds();
    let mut urls = Vec::new();
    let mut offset = 0;
    for (number, size) in (1..).zip(upload.part_sizes()) {
        let at = match (&upload.gathered, core.parts.storage.direct_uploads()) {
            (Some(StorageUpload { key, storage_upload_id }), Some(storage)) => {
                PartAt::Storage(storage.part_url(key, storage_upload_id, number, size, life).await?)
            }
            _ => {
                let (tenant_id, upload_id, user_id) = (tenant.tenant_id(), upload.id, tenant.user_id());
                let part = SignedPart { tenant_id, upload_id, user_id, number, size, offset, expires };
                PartAt::Here { signature: core.parts.url_signer.sign_part(&part), part }
            }
        };
        urls.push(PartUrl { number, offset, size, at });
        offset += size;
    }
    Ok(urls)
}

/// Makes a stored object a part of an open upload. Returns the key of the part that it replaces, which is marked for deletion.
async fn insert_part(core: &Core, tenant: &TenantCaller, id: UploadId, part: &UploadPart) -> Result<Option<String>> {
    let (now, until) = (core.clock().now(), upload_deadline(core));
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    let upload = multipart_uploads::lock(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::Upload))?;
    require_open(&upload)?;
    if !uploads::complete(&mut tx, &part.key).await? {
        return Err(Error::Unavailable { dependency: Dependency::ObjectStorage, source: "a part took too long to store".into() });
    }
    let replaced = multipart_uploads::replace_part(&mut tx, id, part).await?;
    if let Some(replaced) = &replaced {
        uploads::insert(&mut tx, replaced, 0, 0, now);
        uploads::mark_for_deletion(&mut tx, replaced, now).await?;
    }
    multipart_uploads::set_received(&mut tx, id, upload.received, now, until).await?;
    failpoint!("direct.part_keeping");
    tx.commit().await?;
    failpoint!("direct.part_kept");
    Ok(replaced)
}

/// Ensures that all parts exist and that none can be changed any more.
async fn assemble(core: &Core, caller: &Caller, tenant_id: TenantId, upload: &MultipartUpload) -> Result<()> {
    let sizes: Vec<_> = upload.part_sizes().collect();
    if let (Some(StorageUpload { key, storage_upload_id }), Some(storage)) = (&upload.gathered, core.parts.storage.direct_uploads()) {
        storage.complete(key, storage_upload_id, &sizes).await?;
        failpoint!("direct.gathered");
    }
    let (_, mut tx) = begin(core, caller, tenant_id, Role::User).await?;
    let locked = multipart_uploads::lock(&mut tx, upload.id).await?.ok_or(Error::NotFound(ResourceKind::Upload))?;
    if locked.state != UploadState::Open {
        return Ok(());
    }
    if locked.gathered.is_none() {
        let parts = multipart_uploads::list_parts(&mut tx, upload.id).await?;
        let offset_of = |n: &usize| sizes[..*n].iter().sum::<u64>();
        let missing = (0..sizes.len()).find(|n| !parts.iter().any(|part| part.offset == offset_of(n) && part.size == sizes[*n]));
        if let Some(n) = missing {
            return Err(Error::invalid("parts", format!("part {} was not sent", n + 1)));
        }
    }
    let (now, until) = (core.clock().now(), upload_deadline(core));
    multipart_uploads::set_state(&mut tx, upload.id, UploadState::Completing, None, None, now, until).await?;
    failpoint!("direct.completing");
    tx.commit().await?;
    failpoint!("direct.completed");
    Ok(())
}

fn require_open(upload: &MultipartUpload) -> Result<()> {
    if upload.state == UploadState::Open && upload.protocol == UploadProtocol::Direct {
        Ok(())
    } else {
        Err(Error::Conflict(Conflict::UploadClosed))
    }
}
