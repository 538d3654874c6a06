//! Multipart uploads, which span several requests: what the direct and the tus protocol have in common.
//!
//! Parts are held by the storage's own multipart upload, or are objects of their own whose keys were recorded before, like those
//! of all uploads. Once all parts are received, the upload is `completing`. From then on it becomes a document, however often
//! that is interrupted: its content is read, hashed and stored like that of any other upload.

use std::{collections::HashSet, time::Duration};

use domain::{
    Conflict, ContentHash, Document, Error, Filename, ForbiddenReason, MimeType, MultipartUpload, Quota, ResourceKind, Result, Role,
    StorageUpload, TenantId, Timestamp, UploadId, UploadPart, UploadState, dyn_error, failpoint, object_prefix,
};
use futures_util::TryStreamExt;
use models::{TenantDatabase, TenantTx, documents, multipart_uploads, quotas, uploads};
use parking_lot::Mutex;

use crate::{
    Caller, Core, SpooledContent, UserServices,
    access::{TenantCaller, authorize, begin, reauthorize_and_begin},
    documents::{
        disposal::discard_object,
        targets::{NewDocument, UploadTrigger, upload_deadline},
        uploads::{Content, UPLOAD_LIFE, put, refuse, store},
    },
    storage::{blocking::blocking, spool::Hasher},
};

/// How often a caller that waits for an upload's completion polls.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// An upload that has been completing for this long without a process working on it was left by a crash.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How many expired uploads are read per query.
const BATCH: u32 = 100;

/// The uploads that this process is completing.
#[derive(Default)]
pub(crate) struct Completions(Mutex<HashSet<UploadId>>);

impl Completions {
    /// Registers a completion. Returns false if it is already in progress.
    fn begin(&self, id: UploadId) -> bool {
        self.0.lock().insert(id)
    }

    fn contains(&self, id: UploadId) -> bool {
        self.0.lock().contains(&id)
    }

    fn end(&self, id: UploadId) {
        self.0.lock().remove(&id);
    }
}

/// Deregisters a completion when dropped, whatever its outcome.
struct Completing(Core, UploadId);

impl Drop for Completing {
    fn drop(&mut self) {
        self.0.completions.end(self.1);
    }
}

impl UserServices {
    /// A multipart upload of the caller. If all its parts are received and no task is completing it, its completion starts now.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the caller has no such upload, or it has expired.
    pub async fn get_multipart_upload(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: UploadId,
    ) -> Result<(MultipartUpload, Option<Document>)> {
        let upload = find_own(&self.core, caller, tenant_id, id).await?;
        if upload.state == UploadState::Completing && !self.core.completions.contains(id) {
            complete_in_background(&self.core, *caller, tenant_id, id);
        }
        with_document(&self.core, caller, tenant_id, upload).await
    }

    /// Aborts a multipart upload and discards its received parts.
    ///
    /// # Errors
    /// As [`UserServices::get_multipart_upload`]; [`Conflict::UploadClosed`] when it is completing or completed.
    pub async fn abort_multipart_upload(&self, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<()> {
        find_own(&self.core, caller, tenant_id, id).await?;
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::User).await?;
        let upload = multipart_uploads::lock(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::Upload))?;
        if matches!(upload.state, UploadState::Completing | UploadState::Completed) {
            return Err(Error::Conflict(Conflict::UploadClosed));
        }
        let keys = purge_upload(&self.core, &mut tx, &upload).await?;
        failpoint!("staged.aborting");
        tx.commit().await?;
        failpoint!("staged.aborted");
        discard_parts(&self.core, &tenant, upload.gathered.as_ref(), &keys).await;
        Ok(())
    }
}

pub(crate) async fn find_own(core: &Core, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<MultipartUpload> {
    let tenant = authorize(core, caller, tenant_id, Role::User).await?;
    let found = multipart_uploads::find(&mut tenant.read().await?, id).await?;
    // To other callers the upload does not exist.
    let own = found.filter(|upload| upload.user_id == caller.user_id() && upload.expires_at > core.clock().now());
    own.ok_or(Error::NotFound(ResourceKind::Upload))
}

/// Adds the document that an upload became, if that still exists.
async fn with_document(
    core: &Core,
    caller: &Caller,
    tenant_id: TenantId,
    upload: MultipartUpload,
) -> Result<(MultipartUpload, Option<Document>)> {
    let Some((id, _)) = upload.document else { return Ok((upload, None)) };
    let tenant = authorize(core, caller, tenant_id, Role::User).await?;
    let document = documents::find(&mut tenant.read().await?, id).await?;
    Ok((upload, document))
}

/// Checks that the quota allows an upload's declared size, in the transaction that records the upload.
pub(crate) async fn reserve(core: &Core, tx: &mut TenantTx, quota: Quota, bytes: u64) -> Result<()> {
    if quota.is_unlimited() {
        return Ok(());
    }
    quotas::lock(tx).await?;
    refuse(quotas::find_use(tx, core.clock().now()).await?.shortage(quota, bytes, 1))
}

/// Stores a part as an object under a new key, and returns the key. It is recorded as an upload intent until a transaction makes
/// it a part.
pub(crate) async fn store_part(core: &Core, tenant: &TenantCaller, id: UploadId, content: SpooledContent) -> Result<String> {
    let key = format!("{}/{}", staged_key(tenant.tenant_id(), id), core.clock().new_uuid().simple());
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    uploads::insert(&mut tx, &key, 0, 0, core.clock().now().plus(UPLOAD_LIFE));
    tx.commit().await?;
    failpoint!("staged.part_noted");
    put(core, &key, &Content::Spooled(content)).await?;
    failpoint!("staged.part_stored");
    Ok(key)
}

/// Waits until a completing upload becomes a document, up to a timeout, after which it is still completing.
///
/// # Errors
/// [`Conflict::UploadFailed`] when it could not become one; [`Error::Unavailable`] when a dependency is down, and it is retried.
pub(crate) async fn complete_and_wait(
    core: &Core,
    caller: &Caller,
    tenant_id: TenantId,
    id: UploadId,
    wait_timeout: Duration,
) -> Result<(MultipartUpload, Option<Document>)> {
    let waited = tokio::time::timeout(wait_timeout, async {
        loop {
            if let Some(task) = complete_in_background(core, *caller, tenant_id, id) {
                return task.await.map_err(Error::internal)?;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    });
    if let Ok(result) = waited.await {
        result?;
    }
    let upload = find_own(core, caller, tenant_id, id).await?;
    match upload.failure.clone() {
        Some(reason) => Err(Error::Conflict(Conflict::UploadFailed { reason })),
        None => with_document(core, caller, tenant_id, upload).await,
    }
}

/// Starts to complete an upload, unless this process already does. The task continues when no caller waits for it any more.
fn complete_in_background(core: &Core, caller: Caller, tenant_id: TenantId, id: UploadId) -> Option<tokio::task::JoinHandle<Result<()>>> {
    if !core.completions.begin(id) {
        return None;
    }
    let completing = Completing(core.clone(), id);
    Some(tokio::spawn(async move {
        let result = Box::pin(complete(&completing.0, &caller, tenant_id, id)).await;
        if let Err(error) = &result {
            tracing::warn!(upload_id = %id, error = dyn_error(error), "could not complete an upload yet");
        }
        result
    }))
}

async fn complete(core: &Core, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<()> {
    let tenant = authorize(core, caller, tenant_id, Role::User).await?;
    let mut connection = tenant.read().await?;
    let upload = multipart_uploads::find(&mut connection, id).await?.ok_or(Error::NotFound(ResourceKind::Upload))?;
    if upload.state != UploadState::Completing {
        return Ok(());
    }
    let parts = multipart_uploads::list_parts(&mut connection, id).await?;
    drop(connection);
    let outcome = match assemble_content(core, &upload, &parts).await {
        Ok(content) => match mismatch(&upload, content.hash(), content.size()) {
            Some(reason) => Err(Error::Conflict(Conflict::UploadFailed { reason })),
            None => {
                failpoint!("staged.verified");
                store_staged(core, &tenant, &upload, &content).await
            }
        },
        Err(error) => Err(error),
    };
    match outcome {
        // All bytes were received and acknowledged: a temporary problem must not end the upload.
        Err(error @ (Error::Unavailable { .. } | Error::TenantUnavailable(_) | Error::Overloaded { .. } | Error::Internal(_))) => {
            return Err(error);
        }
        // A permanent problem: it can never become a document.
        Err(error) => {
            let reason = match &error {
                Error::Conflict(Conflict::UploadFailed { reason }) => reason.clone(),
                other => other.with_causes(),
            };
            record_failed(core, &tenant, id, &reason).await?;
        }
        Ok(()) => {}
    }
    let keys: Vec<_> = parts.into_iter().map(|part| part.key).collect();
    discard_parts(core, &tenant, upload.gathered.as_ref(), &keys).await;
    Ok(())
}

async fn store_staged(core: &Core, tenant: &TenantCaller, upload: &MultipartUpload, content: &Content) -> Result<()> {
    let damaged = |problem| Error::internal(format!("a stored upload {problem}"));
    let filename = Filename::from_stored(upload.filename.clone());
    let mime_type = MimeType::parse(&upload.mime_type).map_err(damaged)?;
    let target = NewDocument { filename: &filename, mime_type: &mime_type, trigger: UploadTrigger::Multipart(upload.id) };
    store(core, tenant, content, &target).await.map(drop)
}

/// Reads an upload's content and computes its hash.
async fn assemble_content(core: &Core, upload: &MultipartUpload, parts: &[UploadPart]) -> Result<Content> {
    if let Some(StorageUpload { key, .. }) = &upload.gathered {
        let object = core.parts.storage.get(key, None).await?;
        let size = object.size;
        let hashing = object.bytes.try_fold(Hasher::default(), async |mut hasher, bytes| {
            blocking(move || {
                hasher.update(&bytes);
                Ok(hasher)
            })
            .await
        });
        return Ok(Content::Staged { key: key.clone(), size, hash: hashing.await?.finish() });
    }
    let mut content = core.parts.spool.begin(upload.size);
    let mut end = 0;
    for part in parts {
        if part.offset != end {
            return Err(missing(end));
        }
        end += part.size;
        let mut bytes = core.parts.storage.get(&part.key, None).await?.bytes;
        while let Some(bytes) = bytes.try_next().await? {
            content.write(bytes).await?;
        }
    }
    if end != upload.size {
        return Err(missing(end));
    }
    Ok(Content::Spooled(content.finish().await?))
}

async fn record_failed(core: &Core, tenant: &TenantCaller, id: UploadId, reason: &str) -> Result<()> {
    let now = core.clock().now();
    let mut tx = reauthorize_and_begin(core, tenant).await?;
    if multipart_uploads::lock(&mut tx, id).await?.is_some_and(|upload| upload.state == UploadState::Completing) {
        multipart_uploads::mark_objects_for_deletion(&mut tx, id, now).await?;
        multipart_uploads::set_state(&mut tx, id, UploadState::Failed, None, Some(reason), now, upload_deadline(core)).await?;
    }
    Ok(tx.commit().await?)
}

/// Deletes the record of a locked upload. Returns the keys of its parts, which are marked for deletion.
async fn purge_upload(core: &Core, tx: &mut TenantTx, upload: &MultipartUpload) -> Result<Vec<String>> {
    let parts = multipart_uploads::list_parts(tx, upload.id).await?;
    multipart_uploads::mark_objects_for_deletion(tx, upload.id, core.clock().now()).await?;
    multipart_uploads::delete(tx, upload.id).await?;
    Ok(parts.into_iter().map(|part| part.key).collect())
}

/// Removes the objects of an ended upload. The collector removes what fails here.
async fn discard_parts(core: &Core, tenant: &TenantCaller, gathered: Option<&StorageUpload>, keys: &[String]) {
    if let Some(gathered) = gathered {
        abort_storage_upload(core, gathered).await;
        discard_object(core, tenant, &gathered.key).await;
    }
    for key in keys {
        discard_object(core, tenant, key).await;
    }
}

/// Has the storage discard the parts of its multipart upload, if it still has them.
pub(crate) async fn abort_storage_upload(core: &Core, StorageUpload { key, storage_upload_id }: &StorageUpload) {
    let Some(storage) = core.parts.storage.direct_uploads() else { return };
    if let Err(error) = storage.abort(key, storage_upload_id).await {
        tracing::warn!(error = dyn_error(&error), "could not discard the parts of an upload; the collector will");
    }
}

/// Completes uploads that a crash interrupted, and aborts expired ones. Returns how many it aborted.
pub(crate) async fn collect_multipart_uploads(core: &Core, database: &TenantDatabase) -> Result<u64> {
    let now = core.clock().now();
    let stuck = multipart_uploads::list_stuck(&mut database.read().await?, now.minus(STUCK_AFTER)).await?;
    for upload in stuck {
        let Some(task) = complete_in_background(core, Caller::of(upload.user_id), database.tenant_id(), upload.id) else { continue };
        let outcome = task.await.map_err(Error::internal).flatten();
        let is_over = match outcome {
            Ok(()) | Err(Error::Unavailable { .. } | Error::TenantUnavailable(_) | Error::Overloaded { .. }) => false,
            // The tenant may become active again, or an internal fault be fixed, until the upload expires.
            Err(Error::Forbidden(ForbiddenReason::TenantInactive) | Error::Internal(_)) => upload.expires_at <= now,
            // The user may no longer upload, and no other user can complete this upload.
            Err(_) => true,
        };
        if is_over {
            expire(core, database, &upload, now).await?;
        }
    }
    let mut expired = 0;
    loop {
        let found = multipart_uploads::list_expired(&mut database.read().await?, now, BATCH).await?;
        for upload in &found {
            expire(core, database, upload, now).await?;
            expired += 1;
        }
        if found.is_empty() {
            return Ok(expired);
        }
    }
}

/// Aborts an upload, unless it changed since it was read.
async fn expire(core: &Core, database: &TenantDatabase, seen: &MultipartUpload, now: Timestamp) -> Result<()> {
    // Before the row goes: only the row names the storage's upload.
    if let (Some(storage), Some(gathered)) = (core.parts.storage.direct_uploads(), &seen.gathered) {
        storage.abort(&gathered.key, &gathered.storage_upload_id).await?;
    }
    let mut tx = database.begin().await?;
    if multipart_uploads::lock(&mut tx, seen.id).await?.as_ref() == Some(seen) {
        multipart_uploads::mark_objects_for_deletion(&mut tx, seen.id, now).await?;
        multipart_uploads::delete(&mut tx, seen.id).await?;
    }
    failpoint!("staged.expiring");
    tx.commit().await?;
    failpoint!("staged.expired");
    Ok(())
}

/// The key prefix of an upload's objects.
pub(crate) fn staged_key(tenant_id: TenantId, id: UploadId) -> String {
    format!("{}/uploads/{id}", object_prefix(tenant_id))
}

fn missing(offset: u64) -> Error {
    Error::invalid("parts", format!("the part at byte {offset} is missing"))
}

/// How a content differs from its declaration.
fn mismatch(upload: &MultipartUpload, hash: ContentHash, size: u64) -> Option<String> {
    if size != upload.size {
        return Some(format!("it has {size} bytes instead of {}", upload.size));
    }
    if upload.sha256.is_some_and(|declared| declared != hash.sha256) {
        return Some(format!("its SHA-256 is {}", hash.sha256_hex()));
    }
    upload.md5.is_some_and(|declared| declared != hash.md5).then(|| format!("its MD5 is {}", hash.md5_hex()))
}
