//! Uploads: how content becomes a document, or the next version of one.

use std::time::Duration;

use bytes::Bytes;
use domain::{
    ContentHash, Dependency, Document, DocumentId, Error, EventKind, File, FileId, Filename, MimeType, Noun, Quota, Result, Role,
    StagedUpload, TenantId, UploadId, UploadState, failpoint, object_key,
};
use models::{TenantTx, documents, files, files::Addition, multipart_uploads, quotas, uploads, versions};

use crate::{
    Answered, Caller, Once, Services, SpooledContent,
    access::TenantCaller,
    documents::documents::{Precondition, facts, lock_own, require_own, require_precondition},
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

/// A document that was uploaded, or got another content.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The document.
    pub document: Document,
    /// Whether its content was already there.
    pub deduplicated: bool,
}

/// What content becomes.
#[derive(Clone, Copy)]
pub(crate) enum Becomes<'a> {
    /// A document of its own.
    Document { filename: &'a Filename, mime_type: &'a MimeType },
    /// The next version of a document, which keeps its media type if none is given.
    Version { id: DocumentId, mime_type: Option<&'a MimeType>, precondition: Precondition<'a> },
}

impl Becomes<'_> {
    /// How many documents more there will be.
    fn documents(self) -> u64 {
        u64::from(matches!(self, Self::Document { .. }))
    }
}

/// What an upload is asked for by.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// A request, done as often as it is sent.
    Request,
    /// A request that is done once, with what tells it from others.
    Keyed(&'a Once<'a, Uploaded>, [u8; 32]),
    /// An upload in parts, which has its reservation and is done once, too.
    Staged(UploadId),
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
enum Step {
    /// The content is a document's.
    Done(Box<Uploaded>),
    /// The same request was done before, and answered this.
    DoneBefore(String),
    /// The same request is being done at the same time by somebody else, who has just noted it.
    Overtaken,
    /// The object is to be stored next.
    Noted,
    /// The collector took the upload for abandoned.
    Expired,
}

impl Services {
    /// Begins an upload: checks that the caller may, before the first byte is taken. `announced` is how many bytes the client
    /// says there will be, if it does.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for viewers, and when the quota can't reach.
    pub async fn begin_upload(&self, caller: &Caller, tenant_id: TenantId, announced: Option<u64>) -> Result<Upload> {
        let tenant = self.enter(caller, tenant_id, Role::User).await?;
        let quota = tenant.quota();
        if !quota.is_unlimited() {
            // Only what can't fit even as a copy of what is there; the rest is decided when the content is known.
            let used = quotas::find_use(&mut tenant.read().await?, self.clock().now()).await?;
            let whole = quota.bytes.filter(|most| announced.is_some_and(|bytes| bytes > *most)).and(announced);
            refuse(used.shortage(quota, whole.unwrap_or(0), 0))?;
        }
        Ok(Upload { tenant, content: self.0.parts.spool.begin(self.settings().max_upload_bytes) })
    }

    /// Begins an upload of new content for a document: checks that the caller may give it one, before the first byte is taken.
    ///
    /// # Errors
    /// As [`Services::begin_upload`] and [`Services::finish_version`].
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
    /// when database or storage are down; as [`Services::begin_upload`] when the caller may no longer.
    pub async fn finish_upload(
        &self,
        upload: Upload,
        filename: &Filename,
        mime_type: &MimeType,
        once: Option<&Once<'_, Uploaded>>,
    ) -> Result<Answered<Uploaded>> {
        let Upload { tenant, content } = upload;
        let content = finish(content).await?;
        let origin = once.map_or(Origin::Request, |once| {
            let parts = [b"document", filename.as_str().as_bytes(), mime_type.as_str().as_bytes(), &content.hash.sha256];
            Origin::Keyed(once, fingerprint(&parts))
        });
        self.store(&tenant, &Content::Spooled(content), Becomes::Document { filename, mime_type }, origin).await
    }

    /// Ends an upload: the content becomes the next version of a document; when it is what the document has already, nothing
    /// changes. When this returns, it is durable.
    ///
    /// # Errors
    /// As [`Services::finish_upload`]; [`Error::Forbidden`] unless the caller owns the document or is an admin;
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
        let uploaded = match self.store(&tenant, &content, Becomes::Version { id, mime_type, precondition }, Origin::Request).await? {
            Answered::Now(uploaded) => uploaded,
            Answered::Before(_) => return Err(Error::internal("a version was answered as if it had a key")),
        };
        self.prune_versions(&tenant, &uploaded.document).await;
        Ok(uploaded)
    }

    /// Makes content a document's.
    ///
    /// The steps, of which a crash may interrupt any: (a) note the object's key as an upload under way, unless the content is
    /// already there; (b) store the object under that key, which was never used before; (c) in one transaction: refer to
    /// the same content if somebody else stored it meanwhile, else add the file; add the document or version and its event;
    /// forget the upload. What (b) left without (c), the collector finds by (a).
    pub(crate) async fn store(
        &self,
        tenant: &TenantCaller,
        content: &Content,
        becomes: Becomes<'_>,
        origin: Origin<'_>,
    ) -> Result<Answered<Uploaded>> {
        for _ in 0..ATTEMPTS {
            let file = self.new_file(tenant, content);
            match self.refer_or_note(tenant, &file, becomes, origin).await? {
                Step::Done(uploaded) => {
                    failpoint!("upload.referred");
                    return Ok(Answered::Now(*uploaded));
                }
                Step::DoneBefore(answer) => return Ok(Answered::Before(answer)),
                Step::Overtaken => continue,
                Step::Noted | Step::Expired => {}
            }
            failpoint!("upload.noted");
            self.put(&file.object_key, content).await?;
            failpoint!("upload.stored");
            let step = self.add(tenant, &file, becomes, origin).await;
            match step {
                Ok(Step::Done(uploaded)) => {
                    if uploaded.deduplicated {
                        self.discard_object(tenant, &file.object_key).await;
                    }
                    return Ok(Answered::Now(*uploaded));
                }
                // Its key is spent: the object may be gone, or may not have been there when it was deleted.
                Ok(_) => self.give_up(tenant, &file.object_key).await,
                // Database or storage may be as before when they come back; the collector sees to the rest.
                Err(error @ (Error::Unavailable { .. } | Error::Internal(_))) => return Err(error),
                Err(refusal) => {
                    self.give_up(tenant, &file.object_key).await;
                    return Err(refusal);
                }
            }
        }
        Err(Error::Unavailable { dependency: Dependency::ObjectStorage, source: "the upload was disturbed too often".into() })
    }

    /// Step (b).
    pub(crate) async fn put(&self, key: &str, content: &Content) -> Result<()> {
        let storage = &self.0.parts.storage;
        let stored = async {
            match content {
                Content::Spooled(content) => storage.put(key, content).await,
                Content::Staged { key: staged, .. } => storage.copy(staged, key).await,
            }
        };
        let too_slow = || Error::Unavailable { dependency: Dependency::ObjectStorage, source: "storing took too long".into() };
        tokio::time::timeout(STORE_TIMEOUT, stored).await.map_err(|_| too_slow())?
    }

    /// Begins a transaction for an upload. It may have taken long: long enough for the tenant to be deleted or to move, or for
    /// the caller to be put out of it.
    pub(crate) async fn begin_again(&self, tenant: &TenantCaller) -> Result<TenantTx> {
        Ok(self.begin(tenant.caller(), tenant.tenant_id(), Role::User).await?.1)
    }

    fn new_file(&self, tenant: &TenantCaller, content: &Content) -> File {
        let (id, now) = (FileId::generate(self.clock()), self.clock().now());
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

    /// Whether what is asked for was done before. Locks an upload in parts.
    async fn find_done(&self, tx: &mut TenantTx, tenant: &TenantCaller, origin: Origin<'_>) -> Result<Option<Step>> {
        match origin {
            Origin::Request => Ok(None),
            Origin::Keyed(once, fingerprint) => {
                let past = self.find_past_request(tx, tenant.user_id(), &once.key, fingerprint).await?;
                Ok(past.and_then(|past| past.answer).map(Step::DoneBefore))
            }
            Origin::Staged(id) => match multipart_uploads::lock(tx, id).await? {
                Some(StagedUpload { state: UploadState::Completing, .. }) => Ok(None),
                Some(_) => Ok(Some(Step::DoneBefore(String::new()))),
                None => Err(Error::NotFound(Noun::Upload)),
            },
        }
    }

    /// Step (a). What is locked, here and everywhere: the upload in parts, the document, the quota, the files, in this order.
    async fn refer_or_note(&self, tenant: &TenantCaller, file: &File, becomes: Becomes<'_>, origin: Origin<'_>) -> Result<Step> {
        let reserves = !matches!(origin, Origin::Staged(_));
        let quota = if reserves { tenant.quota() } else { Quota::default() };
        // Most uploads are of new content and nothing else is to be decided: then only the note needs the writer. Step (c) looks again.
        let is_plain = quota.is_unlimited() && matches!((becomes, origin), (Becomes::Document { .. }, Origin::Request));
        let is_new = is_plain && {
            // Receiving the content may have taken long, as `begin_again` has it.
            let tenant = self.enter(tenant.caller(), tenant.tenant_id(), Role::User).await?;
            !files::is_there(&mut tenant.read().await?, &file.hash, file.size).await?
        };
        let mut tx = self.begin_again(tenant).await?;
        if let Some(done) = self.find_done(&mut tx, tenant, origin).await? {
            return Ok(done);
        }
        let replaced = self.lock_replaced(&mut tx, tenant, becomes).await?;
        if !quota.is_unlimited() {
            quotas::lock(&mut tx).await?;
        }
        let there = if is_new { None } else { files::lock_by_content(&mut tx, &file.hash, file.size).await? };
        if !quota.is_unlimited() {
            let used = quotas::find_use(&mut tx, self.clock().now()).await?;
            refuse(used.shortage(quota, if there.is_some() { 0 } else { file.size }, becomes.documents()))?;
        }
        match there {
            Some(there) => {
                let uploaded = self.apply(&mut tx, tenant, there, true, becomes, replaced).await?;
                if !self.note_done(&mut tx, tenant, &uploaded, origin).await? {
                    return Ok(Step::Overtaken);
                }
                tx.commit().await?;
                Ok(Step::Done(Box::new(uploaded)))
            }
            None => {
                let expires_at = self.clock().now().plus(UPLOAD_LIFE);
                let (bytes, documents) = if reserves { (file.size, becomes.documents()) } else { (0, 0) };
                uploads::insert(&mut tx, &file.object_key, bytes, documents, expires_at);
                tx.commit().await?;
                Ok(Step::Noted)
            }
        }
    }

    /// Step (c) where nothing is to be decided. Nothing when the content is there already, or the upload has expired.
    async fn add_plain(&self, tenant: &TenantCaller, file: &File, filename: &Filename, mime_type: &MimeType) -> Result<Option<Uploaded>> {
        let mut tx = self.begin_again(tenant).await?;
        files::add_or_fail(&mut tx, file);
        let document = self.insert_document(&mut tx, tenant, file.clone(), filename, mime_type);
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

    /// Step (c).
    async fn add(&self, tenant: &TenantCaller, file: &File, becomes: Becomes<'_>, origin: Origin<'_>) -> Result<Step> {
        if let (Becomes::Document { filename, mime_type }, Origin::Request) = (becomes, origin)
            && let Some(uploaded) = self.add_plain(tenant, file, filename, mime_type).await?
        {
            return Ok(Step::Done(Box::new(uploaded)));
        }
        for _ in 0..ATTEMPTS {
            let mut tx = self.begin_again(tenant).await?;
            if let Some(done) = self.find_done(&mut tx, tenant, origin).await? {
                return Ok(done);
            }
            let replaced = self.lock_replaced(&mut tx, tenant, becomes).await?;
            match files::add(&mut tx, file).await? {
                Addition::Expired => return Ok(Step::Expired),
                Addition::Added => {
                    let uploaded = self.apply(&mut tx, tenant, file.clone(), false, becomes, replaced).await?;
                    if !self.note_done(&mut tx, tenant, &uploaded, origin).await? {
                        return Ok(Step::Overtaken);
                    }
                    failpoint!("upload.committing");
                    tx.commit().await?;
                    failpoint!("upload.committed");
                    return Ok(Step::Done(Box::new(uploaded)));
                }
                Addition::AlreadyThere => {}
            }
            // Absent when it was condemned between the two statements: then the content may be added after all.
            if let Some(there) = files::lock_by_content(&mut tx, &file.hash, file.size).await? {
                let uploaded = self.apply(&mut tx, tenant, there, true, becomes, replaced).await?;
                if !self.note_done(&mut tx, tenant, &uploaded, origin).await? {
                    return Ok(Step::Overtaken);
                }
                uploads::condemn(&mut tx, &file.object_key, self.clock().now()).await?;
                failpoint!("upload.condemning");
                tx.commit().await?;
                failpoint!("upload.condemned");
                return Ok(Step::Done(Box::new(uploaded)));
            }
        }
        Err(Error::Unavailable { dependency: Dependency::Database, source: "the same content comes and goes too fast".into() })
    }

    /// The document that is to get another content, locked, if the caller may give it one.
    async fn lock_replaced(&self, tx: &mut TenantTx, tenant: &TenantCaller, becomes: Becomes<'_>) -> Result<Option<Document>> {
        let Becomes::Version { id, precondition, .. } = becomes else { return Ok(None) };
        let document = lock_own(tx, tenant, id).await?;
        require_precondition(&document, precondition)?;
        Ok(Some(document))
    }

    /// Makes a file, which is locked or new, a document's content.
    async fn apply(
        &self,
        tx: &mut TenantTx,
        tenant: &TenantCaller,
        file: File,
        deduplicated: bool,
        becomes: Becomes<'_>,
        replaced: Option<Document>,
    ) -> Result<Uploaded> {
        let document = match (becomes, replaced) {
            (Becomes::Version { mime_type, .. }, Some(document)) => {
                let mime_type = mime_type.map_or(document.mime_type.clone(), ToString::to_string);
                self.replace_content(tx, tenant, document, file, mime_type).await?
            }
            (Becomes::Document { filename, mime_type }, _) => self.insert_document(tx, tenant, file, filename, mime_type),
            (Becomes::Version { .. }, None) => return Err(Error::internal("a version of no document")),
        };
        Ok(Uploaded { document, deduplicated })
    }

    /// Notes in the upload's transaction that what it was asked for by is done. Answers whether nobody else was faster.
    async fn note_done(&self, tx: &mut TenantTx, tenant: &TenantCaller, uploaded: &Uploaded, origin: Origin<'_>) -> Result<bool> {
        match origin {
            Origin::Request => Ok(true),
            Origin::Keyed(once, fingerprint) => {
                let (id, answer) = (uploaded.document.id.uuid(), Some((once.answer)(uploaded)));
                self.note_request(tx, tenant.user_id(), &once.key, fingerprint, id, answer).await
            }
            Origin::Staged(id) => self.note_completed(tx, id, uploaded).await.map(|()| true),
        }
    }

    pub(crate) fn insert_document(
        &self,
        tx: &mut TenantTx,
        tenant: &TenantCaller,
        file: File,
        filename: &Filename,
        mime_type: &MimeType,
    ) -> Document {
        let now = self.clock().now();
        let document = Document {
            id: DocumentId::generate(self.clock()),
            filename: filename.as_str().to_owned(),
            mime_type: mime_type.as_str().to_owned(),
            file,
            version: 1,
            content_at: now,
            content_by: Some(tenant.user_id()),
            user_id: tenant.user_id(),
            created_at: now,
            updated_at: now,
            created_by: Some(tenant.user_id()),
            deleted_at: None,
            deleted_by: None,
        };
        documents::insert(tx, &document);
        self.push_uploaded(tx, tenant, &document);
        document
    }

    /// Gives a document, which is locked, another content, unless it is the one that it has.
    pub(crate) async fn replace_content(
        &self,
        tx: &mut TenantTx,
        tenant: &TenantCaller,
        document: Document,
        file: File,
        mime_type: String,
    ) -> Result<Document> {
        if document.file.id == file.id && document.mime_type == mime_type {
            return Ok(document);
        }
        versions::keep(tx, &document).await?;
        let now = self.clock().now();
        let document = Document {
            version: document.version + 1,
            file,
            mime_type,
            content_at: now,
            content_by: Some(tenant.user_id()),
            updated_at: now,
            ..document
        };
        documents::set_content(tx, document.id, document.version, document.file.id, &document.mime_type, tenant.user_id(), now).await?;
        self.push_uploaded(tx, tenant, &document);
        Ok(document)
    }

    fn push_uploaded(&self, tx: &mut TenantTx, tenant: &TenantCaller, document: &Document) {
        self.tell(tx, &self.event(EventKind::DocumentUploaded, Some(tenant.tenant_id()), Some(tenant.user_id()), &facts(document)));
    }

    /// Gives up an upload whose object may be there. What fails here, the collector does.
    pub(crate) async fn give_up(&self, tenant: &TenantCaller, key: &str) {
        let condemn = async {
            let mut tx = self.begin_again(tenant).await?;
            uploads::condemn(&mut tx, key, self.clock().now()).await?;
            Ok::<_, Error>(tx.commit().await?)
        };
        match condemn.await {
            Ok(()) => self.discard_object(tenant, key).await,
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "an upload that was given up is left to the collector"),
        }
    }

    /// Removes an object that no file refers to. What fails here, the collector does.
    pub(crate) async fn discard_object(&self, tenant: &TenantCaller, key: &str) {
        if let Err(error) = self.delete_condemned_upload(tenant.database(), key, self.settles_at_once()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "an object that nobody needs is left to the collector");
        }
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
