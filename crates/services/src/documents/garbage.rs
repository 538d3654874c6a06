//! The collector: it removes unreferenced files and objects, and never anything else.
//!
//! A file is marked for deletion in a transaction that has locked it and seen that no document refers to it; from then on no
//! document can. The object is deleted only after that commit, and the row only after the object. Abandoned uploads are removed
//! in the same order. Keys are never reused, so an unreferenced object stays unreferenced. A store may still put an object
//! after its deletion, within its [`late_write_window`](crate::ObjectStorage::late_write_window). There the row stays until the
//! window has passed, and the object is deleted again (`tests/interleavings.rs` shows why).

use std::{ops::Add, time::Duration};

use domain::{FileId, Result, Tenant, TenantId, Timestamp, dyn_error, failpoint, object_prefix};
use futures_util::TryStreamExt;
use models::{TenantDatabase, documents, files, multipart_uploads, trash, uploads};

use crate::{
    Core, OperatorServices,
    documents::{
        disposal::{delete_marked_file, delete_marked_upload},
        multipart_uploads::collect_multipart_uploads,
        search_keys::compute_search_keys,
        trash::purge_expired,
        uploads::UPLOAD_LIFE,
    },
    events::outbox::purge_events,
    idempotency::purge_past_requests,
    leases::hold_lease,
    tenants::{fleet::open_for_operator, moves::has_move},
};

/// How many rows are read per query.
const BATCH: u32 = 100;
/// The lease on background collection, how long it is held at least, and the delay after each tenant.
const LEASE: &str = "collector";
const LEASE_TIME: Duration = Duration::from_secs(600);
const THROTTLE_DELAY: Duration = Duration::from_millis(20);

/// The result of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Documents whose retention in the trash was over.
    pub documents: u64,
    /// Files that no document referred to.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Objects of uploads that never became a document.
    pub uploads: u64,
}

impl Add for Collected {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            documents: self.documents + other.documents,
            files: self.files + other.files,
            bytes: self.bytes + other.bytes,
            uploads: self.uploads + other.uploads,
        }
    }
}

impl OperatorServices {
    /// Collects a tenant's garbage: documents whose retention in the trash is over, files unreferenced for the grace period, and
    /// abandoned uploads. It collects nothing while the tenant's source database is kept: a rollback must find its documents
    /// intact.
    ///
    /// # Errors
    /// When the database or the storage is down. What was collected before that stays collected.
    pub async fn collect_garbage(&self, tenant: &Tenant) -> Result<Collected> {
        let mut collected = Collected::default();
        let database = open_for_operator(&self.core, tenant)?;
        purge_events(&self.core, &database).await?;
        if has_move(&self.core, tenant.id).await? {
            return Ok(collected);
        }
        let now = self.core.clock().now();
        collected.documents = purge_expired(&self.core, &database, now.minus(self.core.settings().trash_retention)).await?;
        let mut tx = database.begin().await?;
        purge_past_requests(&self.core, &mut tx).await?;
        tx.commit().await?;
        compute_search_keys(&database).await?;
        collect_multipart_uploads(&self.core, &database).await?;
        collect_unfinished(&self.core, tenant.id).await?;
        let (grace, late_window) = (self.core.settings().garbage_grace, self.core.parts.storage.late_write_window());
        loop {
            let now = self.core.clock().now();
            let before = now.minus(grace);
            let orphaned = files::list_orphaned(&mut database.read().await?, before, BATCH).await?;
            for id in &orphaned {
                mark_if_orphaned(&database, *id, now).await?;
            }
            let marked = files::list_marked(&mut database.read().await?, now.minus(grace.max(late_window)), BATCH).await?;
            for (id, key, bytes) in &marked {
                delete_marked_file(&self.core, &database, *id, key, true).await?;
                if grace >= late_window {
                    collected.files += 1;
                    collected.bytes += bytes;
                }
            }
            let mut tx = database.begin().await?;
            let expired = uploads::mark_expired(&mut tx, now, now).await?;
            tx.commit().await?;
            failpoint!("garbage.uploads_condemned");
            collected.uploads += expired;
            let abandoned = uploads::list_marked(&mut database.read().await?, now.minus(late_window), BATCH).await?;
            for key in &abandoned {
                delete_marked_upload(&self.core, &database, key, true).await?;
            }
            if orphaned.is_empty() && marked.is_empty() && abandoned.is_empty() {
                break;
            }
        }
        let in_window = delete_again(&self.core, &database, now, grace, late_window).await?;
        Ok(collected + in_window)
    }

    /// What [`OperatorServices::collect_garbage`] would remove now. It excludes the files of documents whose retention in the
    /// trash is over: their grace period begins when the documents are deleted.
    ///
    /// # Errors
    /// When the database is down.
    pub async fn find_garbage(&self, tenant: &Tenant) -> Result<Collected> {
        if has_move(&self.core, tenant.id).await? {
            return Ok(Collected::default());
        }
        let now = self.core.clock().now();
        let mut connection = open_for_operator(&self.core, tenant)?.read().await?;
        let (files, bytes) = files::count_collectable(&mut connection, now.minus(self.core.settings().garbage_grace)).await?;
        Ok(Collected {
            documents: trash::count_before(&mut connection, now.minus(self.core.settings().trash_retention)).await?,
            files,
            bytes,
            uploads: uploads::count_collectable(&mut connection, now).await?
                + multipart_uploads::count_expired(&mut connection, now).await?,
        })
    }

    /// Collects the garbage of all tenants, and of deleted tenants, unless another instance does. Returns what was removed. A
    /// tenant whose database is down is logged and retried the next time.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn collect_in_background(&self) -> Result<Collected> {
        let mut collected = Collected::default();
        for tenant in self.list_kept_tenants().await? {
            if !hold_lease(&self.core, LEASE, LEASE_TIME).await? {
                return Ok(collected);
            }
            match self.collect_garbage(&tenant).await {
                Ok(more) => collected = collected + more,
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant.id, error = dyn_error(&error), "could not collect the garbage of a tenant");
                }
            }
            tokio::time::sleep(THROTTLE_DELAY).await;
        }
        self.collect_late_objects().await?;
        Ok(collected)
    }
}

/// Deletes the objects of files and uploads that are marked for deletion but may still be stored late. Their rows stay, so that
/// the objects are deleted again. Counts the files that were marked since the collection began.
async fn delete_again(
    core: &Core,
    database: &TenantDatabase,
    began: Timestamp,
    grace: Duration,
    late_window: Duration,
) -> Result<Collected> {
    let (mut collected, now) = (Collected::default(), core.clock().now());
    if grace < late_window {
        let in_window = files::list_marked_between(&mut database.read().await?, now.minus(late_window), now.minus(grace)).await?;
        for (key, bytes, marked_at) in in_window {
            core.parts.storage.delete(&key).await?;
            if marked_at >= began {
                collected.files += 1;
                collected.bytes += bytes;
            }
        }
    }
    if !late_window.is_zero() {
        for key in uploads::list_marked_since(&mut database.read().await?, now.minus(late_window)).await? {
            core.parts.storage.delete(&key).await?;
        }
    }
    Ok(collected)
}

/// Has the storage discard its unfinished multipart uploads that are too old to be in flight.
async fn collect_unfinished(core: &Core, tenant_id: TenantId) -> Result<()> {
    let storage = &core.parts.storage;
    let before = core.clock().now().minus(UPLOAD_LIFE.max(core.settings().upload_life));
    let prefix = object_prefix(tenant_id);
    let mut found = storage.list_unfinished(&prefix);
    while let Some(upload) = found.try_next().await? {
        if upload.began_at < before {
            storage.abort_unfinished(&upload).await?;
        }
    }
    Ok(())
}

/// Marks an unreferenced file for deletion as of the collection's beginning, so that the same collection deletes it.
async fn mark_if_orphaned(database: &TenantDatabase, id: FileId, now: Timestamp) -> Result<()> {
    let mut tx = database.begin().await?;
    // Checked again under the lock: an upload may have referred to the file since the list was read.
    if files::lock(&mut tx, id).await?.is_some() && documents::count_by_file(&mut tx, id).await? == 0 {
        files::mark_for_deletion(&mut tx, id, now).await?;
        failpoint!("garbage.condemning");
        tx.commit().await?;
        failpoint!("garbage.condemned");
    }
    Ok(())
}

/// Collects a file, if no document refers to it.
pub(crate) async fn collect_file(core: &Core, database: &TenantDatabase, id: FileId) -> Result<()> {
    let now = core.clock().now();
    mark_if_orphaned(database, id, now).await?;
    if let Some(key) = files::find_marked(&mut database.read().await?, id).await? {
        delete_marked_file(core, database, id, &key, true).await?;
    }
    Ok(())
}
