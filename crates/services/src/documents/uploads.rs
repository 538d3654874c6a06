//! Uploads: how content becomes a document, or the next version of one.

use std::time::Duration;

use bytes::Bytes;
use domain::{
    ContentHash, Dependency, DocumentId, Error, File, FileId, Filename, MimeType, Noun, Quota, Result, Role, TenantId, failpoint,
    object_key,
};
use models::{documents, files, files::InsertOutcome, quotas, uploads};

use crate::{
    Caller, Core, IdempotentOutcome, IdempotentRequest, SpooledContent, UserServices,
    access::{TenantCaller, authorize, reauthorize_and_begin},
    documents::{
        content::{Uploaded, insert_document, prune_versions},
        disposal::{abort_upload, discard_object},
        documents::{Precondition, require_own, require_precondition},
        targets::{NewDocument, NewVersion, UploadTarget, UploadTrigger},
    },
    idempotency::fingerprint,
    storage::spool,
};

/// How long an upload may take from its noting to its commit before the collector takes it for abandoned.
pub(crate) const UPLOAD_LIFE: Duration = Duration::from_secs(3600);
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

/// Where content waits to become an object.
pub(crate) enum Content {
    /// In the spool.
    Spooled(SpooledContent),
    /// In an object of its own, which nobody can change any more.
    Staged {
        /// Its key.
        key: String,
        /// Its bytes.
        size: u64,
        /// What it was found to contain.
        hash: ContentHash,
    },
}

impl Content {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Spooled(content) => content.size,
            Self::Staged { size, .. } => *size,
        }
    }

    pub(crate) fn hash(&self) -> ContentHash {
        match self {
            Self::Spooled(content) => content.hash,
            Self::Staged { hash, .. } => *hash,
        }
    }

    /// What it is; nothing where nobody has looked.
    fn detected_mime_type(&self) -> Option<String> {
        match self {
            Self::Spooled(content) => Some(content.detected_mime_type.to_owned()),
            Self::Staged { .. } => None,
        }
    }
}

/// What a transaction of an upload came to, when it did not fail.
enum UploadOutcome<R> {
    /// The content is a document's.
    Done(Box<Uploaded>),
    /// The same trigger was handled before, with this answer.
    Replayed(R),
    /// Another upload of the same trigger has just recorded it.
    Overtaken,
    /// The object is to be stored next.
    Recorded,
    /// The collector took the upload for abandoned.
    Expired,
}

impl UserServices {
    /// Begins an upload: checks that the caller may, before the first byte is taken. `announced` is how many bytes the client
    /// says there will be, if it does.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for viewers, and when the quota can't reach.
    pub async fn begin_upload(&self, caller: &Caller, tenant_id: TenantId, announced: Option<u64>) -> Result<Upload> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::User).await?;
        let quota = tenant.quota();
        if !quota.is_unlimited() {
            // Only what can't fit even as a copy of what is there; the rest is decided when the content is known.
            let used = quotas::find_use(&mut tenant.read().await?, self.core.clock().now()).await?;
            let whole = quota.bytes.filter(|most| announced.is_some_and(|bytes| bytes > *most)).and(announced);
            refuse(used.shortage(quota, whole.unwrap_or(0), 0))?;
        }
        Ok(Upload { tenant, content: self.core.parts.spool.begin(self.core.settings().max_upload_bytes) })
    }

    /// Begins an upload of new content for a document: checks that the caller may give it one, before the first byte is taken.
    ///
    /// # Errors
    /// As [`UserServices::begin_upload`] and [`UserServices::finish_version`].
    pub async fn begin_version(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        announced: Option<u64>,
        precondition: Precondition<'_>,
    ) -> Result<Upload> {
        let upload = self.begin_upload(caller, tenant_id, announced).await?;
        let document = documents::find(&mut upload.tenant.read().await?, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        require_own(&upload.tenant, &document)?;
        require_precondition(&document, precondition)?;
        Ok(upload)
    }

    /// Ends an upload: the content becomes a document. When this returns, both are durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the content is empty; [`Error::Forbidden`] when the quota does not reach; [`Error::Unavailable`]
    /// when database or storage are down; as [`UserServices::begin_upload`] when the caller may no longer.
    pub async fn finish_upload(
        &self,
        upload: Upload,
        filename: &Filename,
        mime_type: &MimeType,
        request: Option<&IdempotentRequest<'_, Uploaded>>,
    ) -> Result<IdempotentOutcome<Uploaded>> {
        let Upload { tenant, content } = upload;
        let content = finish(content).await?;
        let trigger = request.map_or(UploadTrigger::Request, |request| {
            let parts = [b"document", filename.as_str().as_bytes(), mime_type.as_str().as_bytes(), &content.hash.sha256];
            UploadTrigger::Idempotent(request, fingerprint(&parts))
        });
        store(&self.core, &tenant, &Content::Spooled(content), &NewDocument { filename, mime_type, trigger }).await
    }

    /// Ends an upload: the content becomes the next version of a document; when it is what the document has already, nothing
    /// changes. When this returns, it is durable.
    ///
    /// # Errors
    /// As [`UserServices::finish_upload`]; [`Error::Forbidden`] unless the caller owns the document or is an admin;
    /// [`Error::PreconditionFailed`].
    pub async fn finish_version(
        &self,
        upload: Upload,
        id: DocumentId,
        mime_type: Option<&MimeType>,
        precondition: Precondition<'_>,
    ) -> Result<Uploaded> {
        let Upload { tenant, content } = upload;
        let content = finish(content).await?;
        let content = Content::Spooled(content);
        let uploaded = match store(&self.core, &tenant, &content, &NewVersion { id, mime_type, precondition }).await? {
            IdempotentOutcome::Fresh(uploaded) => uploaded,
            IdempotentOutcome::Replayed(never) => match never {},
        };
        prune_versions(&self.core, &tenant, &uploaded.document).await;
        Ok(uploaded)
    }
}

/// Makes content a document's.
///
/// The steps, of which a crash may interrupt any: (a) record the upload intent, with the object's key, unless the content is already
/// there; (b) store the object under that key, which was never used before; (c) in one transaction: refer to the same content if
/// another upload stored it meanwhile, else add the file; add the document or version and its event; delete the upload intent. What
/// (b) left without (c), the collector finds by (a).
pub(crate) async fn store<T: UploadTarget>(
    core: &Core,
    tenant: &TenantCaller,
    content: &Content,
    target: &T,
) -> Result<IdempotentOutcome<Uploaded, T::Replay>> {
    for _ in 0..ATTEMPTS {
        let file = new_file(core, tenant, content);
        match refer_or_record(core, tenant, &file, target).await? {
            UploadOutcome::Done(uploaded) => {
                failpoint!("upload.referred");
                return Ok(IdempotentOutcome::Fresh(*uploaded));
            }
            UploadOutcome::Replayed(answer) => return Ok(IdempotentOutcome::Replayed(answer)),
            UploadOutcome::Overtaken => continue,
            UploadOutcome::Recorded | UploadOutcome::Expired => {}
        }
        failpoint!("upload.noted");
        put(core, &file.object_key, content).await?;
        failpoint!("upload.stored");
        match add(core, tenant, &file, target).await {
            Ok(UploadOutcome::Done(uploaded)) => {
                if uploaded.deduplicated {
                    discard_object(core, tenant, &file.object_key).await;
                }
                return Ok(IdempotentOutcome::Fresh(*uploaded));
            }
            // Its key is spent: the object may be gone, or may not have been there when it was deleted.
            Ok(_) => abort_upload(core, tenant, &file.object_key).await,
            // The database or the storage may work again when the client retries; the collector cleans up.
            Err(error @ (Error::Unavailable { .. } | Error::Internal(_))) => return Err(error),
            Err(refusal) => {
                abort_upload(core, tenant, &file.object_key).await;
                return Err(refusal);
            }
        }
    }
    Err(Error::Unavailable { dependency: Dependency::ObjectStorage, source: "the upload was disturbed too often".into() })
}

/// Step (b).
pub(crate) async fn put(core: &Core, key: &str, content: &Content) -> Result<()> {
    let storage = &core.parts.storage;
    let stored = async {
        match content {
            Content::Spooled(content) => storage.put(key, content).await,
            Content::Staged { key: staged, .. } => storage.copy(staged, key).await,
        }
    };
    let too_slow = || Error::Unavailable { dependency: Dependency::ObjectStorage, source: "storing took too long".into() };
    tokio::time::timeout(STORE_TIMEOUT, stored).await.map_err(|_| too_slow())?
}

fn new_file(core: &Core, tenant: &TenantCaller, content: &Content) -> File {
    let (id, now) = (FileId::generate(core.clock()), core.clock().now());
    File {
        id,
        hash: content.hash(),
        object_key: object_key(tenant.tenant_id(), &content.hash(), id),
        size: content.size(),
        created_at: now,
        updated_at: now,
        created_by: Some(tenant.user_id()),
        detected_mime_type: content.detected_mime_type(),
    }
}

/// Step (a). The order of locks, here and everywhere: multipart upload, document, quota, files.
async fn refer_or_record<T: UploadTarget>(core: &Core, tenant: &TenantCaller, file: &File, target: &T) -> Result<UploadOutcome<T::Replay>> {
    let quota = if target.reserves() { tenant.quota() } else { Quota::default() };
    // Most uploads are of new content and leave nothing else to decide: then only the intent needs the writer. Step (c) looks again.
    let is_plain = quota.is_unlimited() && target.as_plain().is_some();
    let is_new = is_plain && {
        // Receiving the content may have taken long, see `reauthorize_and_begin`.
        let tenant = authorize(core, tenant.caller(), tenant.tenant_id(), Role::User).await?;
        !files::is_there(&mut tenant.read().await?, &file.hash, file.size).await?
    };
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    if let Some(replay) = target.find_replay(core, &mut tx, tenant).await? {
        return Ok(UploadOutcome::Replayed(replay));
    }
    let locked = target.lock(&mut tx, tenant).await?;
    if !quota.is_unlimited() {
        quotas::lock(&mut tx).await?;
    }
    let there = if is_new { None } else { files::lock_by_content(&mut tx, &file.hash, file.size).await? };
    if !quota.is_unlimited() {
        let used = quotas::find_use(&mut tx, core.clock().now()).await?;
        refuse(used.shortage(quota, if there.is_some() { 0 } else { file.size }, target.new_documents()))?;
    }
    let Some(there) = there else {
        let expires_at = core.clock().now().plus(UPLOAD_LIFE);
        let (bytes, documents) = if target.reserves() { (file.size, target.new_documents()) } else { (0, 0) };
        uploads::insert(&mut tx, &file.object_key, bytes, documents, expires_at);
        tx.commit().await?;
        return Ok(UploadOutcome::Recorded);
    };
    let uploaded = Uploaded { document: target.apply(core, &mut tx, tenant, locked, there).await?, deduplicated: true };
    if !target.record(core, &mut tx, tenant, &uploaded).await? {
        return Ok(UploadOutcome::Overtaken);
    }
    tx.commit().await?;
    Ok(UploadOutcome::Done(Box::new(uploaded)))
}

/// Step (c).
async fn add<T: UploadTarget>(core: &Core, tenant: &TenantCaller, file: &File, target: &T) -> Result<UploadOutcome<T::Replay>> {
    if let Some((filename, mime_type)) = target.as_plain()
        && let Some(uploaded) = add_plain(core, tenant, file, filename, mime_type).await?
    {
        return Ok(UploadOutcome::Done(Box::new(uploaded)));
    }
    for _ in 0..ATTEMPTS {
        let mut tx = reauthorize_and_begin(core, tenant).await?;
        if let Some(replay) = target.find_replay(core, &mut tx, tenant).await? {
            return Ok(UploadOutcome::Replayed(replay));
        }
        let locked = target.lock(&mut tx, tenant).await?;
        match files::add(&mut tx, file).await? {
            InsertOutcome::Expired => return Ok(UploadOutcome::Expired),
            InsertOutcome::Added => {
                let uploaded = Uploaded { document: target.apply(core, &mut tx, tenant, locked, file.clone()).await?, deduplicated: false };
                if !target.record(core, &mut tx, tenant, &uploaded).await? {
                    return Ok(UploadOutcome::Overtaken);
                }
                failpoint!("upload.committing");
                tx.commit().await?;
                failpoint!("upload.committed");
                return Ok(UploadOutcome::Done(Box::new(uploaded)));
            }
            InsertOutcome::AlreadyThere => {}
        }
        // Absent when it was marked for deletion between the two statements: then the content may be added after all.
        if let Some(there) = files::lock_by_content(&mut tx, &file.hash, file.size).await? {
            let uploaded = Uploaded { document: target.apply(core, &mut tx, tenant, locked, there).await?, deduplicated: true };
            if !target.record(core, &mut tx, tenant, &uploaded).await? {
                return Ok(UploadOutcome::Overtaken);
            }
            uploads::condemn(&mut tx, &file.object_key, core.clock().now()).await?;
            failpoint!("upload.condemning");
            tx.commit().await?;
            failpoint!("upload.condemned");
            return Ok(UploadOutcome::Done(Box::new(uploaded)));
        }
    }
    Err(Error::Unavailable { dependency: Dependency::Database, source: "the same content comes and goes too fast".into() })
}

/// Step (c) of a new document for which there is nothing to decide. `None` when the content is there already, or the upload has
/// expired.
async fn add_plain(core: &Core, tenant: &TenantCaller, file: &File, filename: &Filename, mime_type: &MimeType) -> Result<Option<Uploaded>> {
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    files::add_or_fail(&mut tx, file);
    let document = insert_document(core, &mut tx, tenant, file.clone(), filename, mime_type);
    failpoint!("upload.committing");
    match tx.commit().await {
        Ok(()) => {
            failpoint!("upload.committed");
            Ok(Some(Uploaded { document, deduplicated: false }))
        }
        Err(error) if files::could_not_be_added(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn finish(content: spool::Upload) -> Result<SpooledContent> {
    let content = content.finish().await?;
    if content.size == 0 {
        return Err(Error::invalid("file", "must not be empty"));
    }
    failpoint!("upload.received");
    Ok(content)
}

/// Fails when something is short.
pub(crate) fn refuse(shortage: Option<domain::Shortage>) -> Result<()> {
    shortage.map_or(Ok(()), |shortage| Err(Error::Forbidden(domain::Denial::QuotaExceeded(shortage))))
}
