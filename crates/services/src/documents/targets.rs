//! What an upload's content becomes: a document of its own, or the next version of one.

use std::convert::Infallible;

use domain::{Document, DocumentId, Error, File, Filename, MimeType, MultipartUpload, Noun, Result, Timestamp, UploadId, UploadState};
use models::{Tenant, TenantTx, multipart_uploads};

use crate::{
    Core, IdempotentRequest,
    access::TenantCaller,
    documents::{
        content::{Uploaded, insert_document, replace_content},
        documents::{Precondition, lock_own, require_precondition},
    },
    events::events::EventTx,
    idempotency::{find_past_request, record_request},
};

/// What an upload's content becomes, and what else its transaction does.
pub(crate) trait UploadTarget {
    /// The answer to an earlier upload of the same trigger.
    type Replay;
    /// What has to be locked before the content.
    type Locked;

    /// How many documents more there will be.
    fn new_documents(&self) -> u64;

    /// Whether the upload reserves its share of the quota itself.
    fn reserves(&self) -> bool;

    /// The name and type of a new document for which the transaction has nothing to decide.
    fn as_plain(&self) -> Option<(&Filename, &MimeType)>;

    /// The answer, if the same trigger was handled before.
    async fn find_replay(&self, core: &Core, tx: &mut TenantTx, tenant: &TenantCaller) -> Result<Option<Self::Replay>>;

    /// Locks what the content goes into, if the caller may change that.
    async fn lock(&self, tx: &mut TenantTx, tenant: &TenantCaller) -> Result<Self::Locked>;

    /// Makes a file, which is locked or new, the content.
    async fn apply(
        &self,
        core: &Core,
        tx: &mut EventTx<Tenant>,
        tenant: &TenantCaller,
        locked: Self::Locked,
        file: File,
    ) -> Result<Document>;

    /// Records that the trigger is handled. Returns whether this upload is the first to do so; else it must not commit.
    async fn record(&self, core: &Core, tx: &mut TenantTx, tenant: &TenantCaller, uploaded: &Uploaded) -> Result<bool>;
}

/// A document of its own.
pub(crate) struct NewDocument<'a> {
    pub(crate) filename: &'a Filename,
    pub(crate) mime_type: &'a MimeType,
    pub(crate) trigger: UploadTrigger<'a>,
}

/// What triggers the upload of a new document.
#[derive(Clone, Copy)]
pub(crate) enum UploadTrigger<'a> {
    /// A request; sent again, it makes another document.
    Request,
    /// A request with an idempotency key, and the fingerprint of what it asks for.
    Idempotent(&'a IdempotentRequest<'a, Uploaded>, [u8; 32]),
    /// A multipart upload that is complete. It has reserved its share of the quota.
    Multipart(UploadId),
}

impl UploadTarget for NewDocument<'_> {
    type Replay = String;
    type Locked = ();

    fn new_documents(&self) -> u64 {
        1
    }

    fn reserves(&self) -> bool {
        !matches!(self.trigger, UploadTrigger::Multipart(_))
    }

    fn as_plain(&self) -> Option<(&Filename, &MimeType)> {
        matches!(self.trigger, UploadTrigger::Request).then_some((self.filename, self.mime_type))
    }

    /// Locks the multipart upload, if there is one.
    async fn find_replay(&self, core: &Core, tx: &mut TenantTx, tenant: &TenantCaller) -> Result<Option<String>> {
        match self.trigger {
            UploadTrigger::Request => Ok(None),
            UploadTrigger::Idempotent(request, fingerprint) => {
                let past = find_past_request(core, tx, tenant.user_id(), &request.key, fingerprint).await?;
                Ok(past.and_then(|past| past.answer))
            }
            UploadTrigger::Multipart(id) => match multipart_uploads::lock(tx, id).await? {
                Some(MultipartUpload { state: UploadState::Completing, .. }) => Ok(None),
                Some(_) => Ok(Some(String::new())),
                None => Err(Error::NotFound(Noun::Upload)),
            },
        }
    }

    async fn lock(&self, _: &mut TenantTx, _: &TenantCaller) -> Result<()> {
        Ok(())
    }

    async fn apply(&self, core: &Core, tx: &mut EventTx<Tenant>, tenant: &TenantCaller, (): (), file: File) -> Result<Document> {
        Ok(insert_document(core, tx, tenant, file, self.filename, self.mime_type))
    }

    async fn record(&self, core: &Core, tx: &mut TenantTx, tenant: &TenantCaller, uploaded: &Uploaded) -> Result<bool> {
        match self.trigger {
            UploadTrigger::Request => Ok(true),
            UploadTrigger::Idempotent(request, fingerprint) => {
                let (id, answer) = (uploaded.document.id.uuid(), Some((request.answer)(uploaded)));
                record_request(core, tx, tenant.user_id(), &request.key, fingerprint, id, answer).await
            }
            UploadTrigger::Multipart(id) => record_completed(core, tx, id, uploaded).await.map(|()| true),
        }
    }
}

/// The next version of a document, which keeps its media type if none is given.
pub(crate) struct NewVersion<'a> {
    pub(crate) id: DocumentId,
    pub(crate) mime_type: Option<&'a MimeType>,
    pub(crate) precondition: Precondition<'a>,
}

impl UploadTarget for NewVersion<'_> {
    type Replay = Infallible;
    type Locked = Document;

    fn new_documents(&self) -> u64 {
        0
    }

    fn reserves(&self) -> bool {
        true
    }

    fn as_plain(&self) -> Option<(&Filename, &MimeType)> {
        None
    }

    async fn find_replay(&self, _: &Core, _: &mut TenantTx, _: &TenantCaller) -> Result<Option<Infallible>> {
        Ok(None)
    }

    async fn lock(&self, tx: &mut TenantTx, tenant: &TenantCaller) -> Result<Document> {
        let document = lock_own(tx, tenant, self.id).await?;
        require_precondition(&document, self.precondition)?;
        Ok(document)
    }

    async fn apply(
        &self,
        core: &Core,
        tx: &mut EventTx<Tenant>,
        tenant: &TenantCaller,
        document: Document,
        file: File,
    ) -> Result<Document> {
        let mime_type = self.mime_type.map_or_else(|| document.mime_type.clone(), ToString::to_string);
        replace_content(core, tx, tenant, document, file, mime_type).await
    }

    async fn record(&self, _: &Core, _: &mut TenantTx, _: &TenantCaller, _: &Uploaded) -> Result<bool> {
        Ok(true)
    }
}

/// Records that a multipart upload became a document, in the transaction of that.
async fn record_completed(core: &Core, tx: &mut TenantTx, id: UploadId, uploaded: &Uploaded) -> Result<()> {
    let (now, document) = (core.clock().now(), Some((uploaded.document.id, uploaded.deduplicated)));
    multipart_uploads::condemn_objects(tx, id, now).await?;
    Ok(multipart_uploads::set_state(tx, id, UploadState::Completed, document, None, now, upload_deadline(core)).await?)
}

/// When a multipart upload to which something happens now will expire, or its outcome be purged.
pub(crate) fn upload_deadline(core: &Core) -> Timestamp {
    core.clock().now().plus(core.settings().upload_life)
}
