//! Uploads that come in parts, over more than one request: what both protocols have in common.
//!
//! Parts are gathered by the storage itself, or are objects of their own under keys that were noted before, as those of all uploads
//! are. When all are here, the upload is `completing`, and from then on it becomes a document, however often that is
//! interrupted: the content is read and hashed, and stored as that of any other upload is.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use domain::{
    Conflict, ContentHash, Denial, Document, Error, Filename, Gathered, MimeType, MultipartUpload, Noun, Quota, Result, Role, TenantId,
    Timestamp, UploadId, UploadPart, UploadState, dyn_error, failpoint, object_prefix,
};
use futures_util::TryStreamExt;
use models::{TenantDatabase, TenantTx, documents, multipart_uploads, quotas, uploads};

use crate::{
    Caller, Core, SpooledContent, UserServices,
    access::{TenantCaller, authorize, begin, reauthorize_and_begin},
    documents::{
        disposal::discard_object,
        targets::{NewDocument, UploadTrigger, upload_deadline},
        uploads::{Content, UPLOAD_LIFE, put, refuse, store},
    },
    storage::{blocking, spool::Hasher},
};

/// How often somebody who waits for the end of an upload looks.
const GLANCE: Duration = Duration::from_millis(100);
/// An upload that has been completing for so long without anybody at it was left by a crash.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How many expired uploads are looked for in one go.
const BATCH: u32 = 100;

/// The uploads that this process is completing.
#[derive(Default)]
pub(crate) struct Completions(Mutex<HashSet<UploadId>>);

impl Completions {
    /// Begins one, unless it is under way.
    fn begin(&self, id: UploadId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id)
    }

    fn contains(&self, id: UploadId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    fn end(&self, id: UploadId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Ends a completion in whatever way it ends.
struct Completing(Core, UploadId);

impl Drop for Completing {
    fn drop(&mut self) {
        self.0.completions.end(self.1);
    }
}

impl UserServices {
    /// An upload in parts, of the caller's own. One whose parts are all here and that nobody is completing is completed now.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the caller has none with this id, or its time is over.
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

    /// Gives up an upload in parts. What is here of it goes.
    ///
    /// # Errors
    /// As [`UserServices::get_multipart_upload`]; [`Conflict::UploadClosed`] when it is becoming a document, or has become one.
    pub async fn abort_multipart_upload(&self, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<()> {
        find_own(&self.core, caller, tenant_id, id).await?;
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::User).await?;
        let upload = multipart_uploads::lock(&mut tx, id).await?.ok_or(Error::NotFound(Noun::Upload))?;
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
    // Others don't learn that it is there.
    let own = found.filter(|upload| upload.user_id == caller.user_id() && upload.expires_at > core.clock().now());
    own.ok_or(Error::NotFound(Noun::Upload))
}

/// With the document that an upload became, if that is still there.
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

/// Reserves what an upload may come to store, in the transaction that notes it.
pub(crate) async fn reserve(core: &Core, tx: &mut TenantTx, quota: Quota, bytes: u64) -> Result<()> {
    if quota.is_unlimited() {
        return Ok(());
    }
    quotas::lock(tx).await?;
    refuse(quotas::find_use(tx, core.clock().now()).await?.shortage(quota, bytes, 1))
}

/// Stores a part as an object of its own under a new key, and answers that. It is noted as an upload under way until a
/// transaction makes it a part.
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

/// Waits for an upload whose parts are all here to become a document, at most for a time: then it is still completing.
///
/// # Errors
/// [`Conflict::UploadFailed`] when it became none; [`Error::Unavailable`] when something is down, and it is tried again.
pub(crate) async fn complete_and_wait(
    core: &Core,
    caller: &Caller,
    tenant_id: TenantId,
    id: UploadId,
    patience: Duration,
) -> Result<(MultipartUpload, Option<Document>)> {
    let waited = tokio::time::timeout(patience, async {
        loop {
            if let Some(task) = complete_in_background(core, *caller, tenant_id, id) {
                return task.await.map_err(Error::internal)?;
            }
            tokio::time::sleep(GLANCE).await;
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

/// Begins to complete an upload, unless this process is doing that. Goes on when nobody waits for it any more.
fn complete_in_background(core: &Core, caller: Caller, tenant_id: TenantId, id: UploadId) -> Option<tokio::task::JoinHandle<Result<()>>> {
    if !core.completions.begin(id) {
        return None;
    }
    let completing = Completing(core.clone(), id);
    Some(tokio::spawn(async move {
        let result = Box::pin(complete(&completing.0, &caller, tenant_id, id)).await;
        if let Err(error) = &result {
            tracing::warn!(upload_id = %id, error = dyn_error(error), "an upload could not be completed yet");
        }
        result
    }))
}

async fn complete(core: &Core, caller: &Caller, tenant_id: TenantId, id: UploadId) -> Result<()> {
    let tenant = authorize(core, caller, tenant_id, Role::User).await?;
    let mut connection = tenant.read().await?;
    let upload = multipart_uploads::find(&mut connection, id).await?.ok_or(Error::NotFound(Noun::Upload))?;
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
        // All bytes are here, and were acknowledged: what may be over the next time ends nothing.
        Err(error @ (Error::Unavailable { .. } | Error::Closed(_) | Error::Overloaded { .. } | Error::Internal(_))) => {
            return Err(error);
        }
        // It will never become a document.
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
    let filename = Filename::parse(&upload.filename).map_err(damaged)?;
    let mime_type = MimeType::parse(&upload.mime_type).map_err(damaged)?;
    let target = NewDocument { filename: &filename, mime_type: &mime_type, trigger: UploadTrigger::Multipart(upload.id) };
    store(core, tenant, content, &target).await.map(drop)
}

/// Reads an upload's content and computes what it is.
async fn assemble_content(core: &Core, upload: &MultipartUpload, parts: &[UploadPart]) -> Result<Content> {
    if let Some(Gathered { key, .. }) = &upload.gathered {
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
        multipart_uploads::condemn_objects(&mut tx, id, now).await?;
        multipart_uploads::set_state(&mut tx, id, UploadState::Failed, None, Some(reason), now, upload_deadline(core)).await?;
    }
    Ok(tx.commit().await?)
}

/// Forgets an upload, which is locked, and answers the keys of its parts, which are condemned.
async fn purge_upload(core: &Core, tx: &mut TenantTx, upload: &MultipartUpload) -> Result<Vec<String>> {
    let parts = multipart_uploads::list_parts(tx, upload.id).await?;
    multipart_uploads::condemn_objects(tx, upload.id, core.clock().now()).await?;
    multipart_uploads::delete(tx, upload.id).await?;
    Ok(parts.into_iter().map(|part| part.key).collect())
}

/// Removes what an upload that has ended leaves. What fails here, the collector does.
async fn discard_parts(core: &Core, tenant: &TenantCaller, gathered: Option<&Gathered>, keys: &[String]) {
    if let Some(gathered) = gathered {
        abort_storage_upload(core, gathered).await;
        discard_object(core, tenant, &gathered.key).await;
    }
    for key in keys {
        discard_object(core, tenant, key).await;
    }
}

/// Has the storage throw away the parts that it gathers, if it still does.
pub(crate) async fn abort_storage_upload(core: &Core, Gathered { key, storage_upload_id }: &Gathered) {
    let Some(storage) = core.parts.storage.direct_uploads() else { return };
    if let Err(error) = storage.abort(key, storage_upload_id).await {
        tracing::warn!(error = dyn_error(&error), "the parts of an upload are left to the collector");
    }
}

/// Completes uploads that a crash left, and gives up those whose time is over. Answers how many it gave up.
pub(crate) async fn collect_multipart_uploads(core: &Core, database: &TenantDatabase) -> Result<u64> {
    let now = core.clock().now();
    let stuck = multipart_uploads::list_stuck(&mut database.read().await?, now.minus(STUCK_AFTER)).await?;
    for upload in stuck {
        let Some(task) = complete_in_background(core, Caller::of(upload.user_id), database.tenant_id(), upload.id) else { continue };
        let outcome = task.await.map_err(Error::internal).flatten();
        let is_over = match outcome {
            Ok(()) | Err(Error::Unavailable { .. } | Error::Closed(_) | Error::Overloaded { .. }) => false,
            // A tenant may become active again, a fault of ours be repaired: as long as the upload lives.
            Err(Error::Forbidden(Denial::TenantInactive) | Error::Internal(_)) => upload.expires_at <= now,
            // Who uploaded may not any more: nobody else will.
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

/// Gives up an upload, unless something happened to it since it was looked at.
async fn expire(core: &Core, database: &TenantDatabase, seen: &MultipartUpload, now: Timestamp) -> Result<()> {
    // Before the row that knows of it goes.
    if let (Some(storage), Some(gathered)) = (core.parts.storage.direct_uploads(), &seen.gathered) {
        storage.abort(&gathered.key, &gathered.storage_upload_id).await?;
    }
    let mut tx = database.begin().await?;
    if multipart_uploads::lock(&mut tx, seen.id).await?.as_ref() == Some(seen) {
        multipart_uploads::condemn_objects(&mut tx, seen.id, now).await?;
        multipart_uploads::delete(&mut tx, seen.id).await?;
    }
    failpoint!("staged.expiring");
    tx.commit().await?;
    failpoint!("staged.expired");
    Ok(())
}

/// What the keys of an upload's objects begin with.
pub(crate) fn staged_key(tenant_id: TenantId, id: UploadId) -> String {
    format!("{}/uploads/{id}", object_prefix(tenant_id))
}

fn missing(offset: u64) -> Error {
    Error::invalid("parts", format!("the part at byte {offset} is missing"))
}

/// In what a content differs from what it was said to be.
fn mismatch(upload: &MultipartUpload, hash: ContentHash, size: u64) -> Option<String> {
    if size != upload.size {
        return Some(format!("it has {size} bytes instead of {}", upload.size));
    }
    if upload.sha256.is_some_and(|said| said != hash.sha256) {
        return Some(format!("its SHA-256 is {}", hash.sha256_hex()));
    }
    upload.md5.is_some_and(|said| said != hash.md5).then(|| format!("its MD5 is {}", hash.md5_hex()))
}
