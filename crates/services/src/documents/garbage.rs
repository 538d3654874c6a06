//! The collector: removes what nothing refers to, and never anything else.
//!
//! A file is condemned in a transaction that has locked it and seen that no document refers to it; from then on none can.
//! Only after that commit is the object deleted, and only after the object the row. Abandoned uploads go the same way. Keys are
//! never used twice, so an object that was found to be nobody's stays nobody's. Where a store may still put an object after it was
//! deleted ([`late_write_window`](crate::ObjectStorage::late_write_window)), the row stays until it can't, and the object is deleted again
//! (`tests/interleavings.rs` shows why).

use std::{ops::Add, time::Duration};

use domain::{FileId, Result, Tenant, TenantId, Timestamp, dyn_error, failpoint, object_prefix};
use futures_util::TryStreamExt;
use models::{TenantDatabase, documents, files, multipart_uploads, trash, uploads};

use crate::{
    Core, OperatorServices,
    documents::{
        disposal::{delete_marked_file, delete_marked_upload},
        multipart_uploads::collect_multipart_uploads,
        trash::purge_expired,
        uploads::UPLOAD_LIFE,
    },
    events::outbox::purge_events,
    idempotency::purge_past_requests,
    leases::hold_lease,
    tenants::{fleet::open_for_operator, moves::has_move},
};

/// How much is looked at in one go.
const BATCH: u32 = 100;
/// Which instance collects in the background, for how long at least, and what rest it takes after each tenant.
const LEASE: &str = "collector";
const LEASE_TIME: Duration = Duration::from_secs(600);
const REST: Duration = Duration::from_millis(20);

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Documents whose time in the trash was over.
    pub documents: u64,
    /// Files that no document referred to.
    pub files: u64,
    /// Their bytes.
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
    /// Collects a tenant's garbage: documents whose time in the trash is over, files that nobody has referred to for the grace,
    /// and abandoned uploads. While a former database of the tenant's is kept, nothing: whoever returns to that finds its
    /// documents whole.
    ///
    /// # Errors
    /// When the database or the storage is down. What was collected until then stays collected.
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
        collect_multipart_uploads(&self.core, &database).await?;
        collect_unfinished(&self.core, tenant.id).await?;
        let (grace, settling) = (self.core.settings().garbage_grace, self.core.parts.storage.late_write_window());
        loop {
            let now = self.core.clock().now();
            let before = now.minus(grace);
            let orphaned = files::list_orphaned(&mut database.read().await?, before, BATCH).await?;
            for id in &orphaned {
                mark_if_orphaned(&database, *id, now).await?;
            }
            let condemned = files::list_condemned(&mut database.read().await?, now.minus(grace.max(settling)), BATCH).await?;
            for (id, key, bytes) in &condemned {
                delete_marked_file(&self.core, &database, *id, key, true).await?;
                if grace >= settling {
                    collected.files += 1;
                    collected.bytes += bytes;
                }
            }
            let mut tx = database.begin().await?;
            let expired = uploads::condemn_expired(&mut tx, now, now).await?;
            tx.commit().await?;
            failpoint!("garbage.uploads_condemned");
            collected.uploads += expired;
            let abandoned = uploads::list_condemned(&mut database.read().await?, now.minus(settling), BATCH).await?;
            for key in &abandoned {
                delete_marked_upload(&self.core, &database, key, true).await?;
            }
            if orphaned.is_empty() && condemned.is_empty() && abandoned.is_empty() {
                break;
            }
        }
        let unsettled = delete_again(&self.core, &database, now, grace, settling).await?;
        Ok(collected + unsettled)
    }

    /// What [`OperatorServices::collect_garbage`] would remove now. Files of documents whose time in the trash is over are not among
    /// them: their grace begins when the documents go.
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

    /// Collects the garbage of all tenants, and of those that were deleted, if no other instance does. Answers what was
    /// removed. A tenant whose database is down is logged and left for the next time.
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
                    tracing::warn!(tenant_id = %tenant.id, error = dyn_error(&error), "a tenant's garbage could not be collected");
                }
            }
            tokio::time::sleep(REST).await;
        }
        self.collect_late_objects().await?;
        Ok(collected)
    }
}

/// Deletes the objects of what is condemned and may still come to be stored: its rows stay for them to be deleted once more.
/// Answers which files have been condemned since the collection began.
async fn delete_again(core: &Core, database: &TenantDatabase, began: Timestamp, grace: Duration, settling: Duration) -> Result<Collected> {
    let (mut collected, now) = (Collected::default(), core.clock().now());
    if grace < settling {
        let unsettled = files::list_condemned_between(&mut database.read().await?, now.minus(settling), now.minus(grace)).await?;
        for (key, bytes, condemned_at) in unsettled {
            core.parts.storage.delete(&key).await?;
            if condemned_at >= began {
                collected.files += 1;
                collected.bytes += bytes;
            }
        }
    }
    if !settling.is_zero() {
        for key in uploads::list_condemned_since(&mut database.read().await?, now.minus(settling)).await? {
            core.parts.storage.delete(&key).await?;
        }
    }
    Ok(collected)
}

/// Has the storage throw away what uploads left of which it got some parts and never the end: those that are too old to be
/// under way still.
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

/// Condemns a file as of the collection's beginning, so that the same collection goes on to delete it.
async fn mark_if_orphaned(database: &TenantDatabase, id: FileId, now: Timestamp) -> Result<()> {
    let mut tx = database.begin().await?;
    // Looked at again under the lock: since the list was read, an upload may have found the file useful.
    if files::lock(&mut tx, id).await?.is_some() && documents::count_by_file(&mut tx, id).await? == 0 {
        files::condemn(&mut tx, id, now).await?;
        failpoint!("garbage.condemning");
        tx.commit().await?;
        failpoint!("garbage.condemned");
    }
    Ok(())
}

/// Collects a file, if nobody refers to it.
pub(crate) async fn collect_file(core: &Core, database: &TenantDatabase, id: FileId) -> Result<()> {
    let now = core.clock().now();
    mark_if_orphaned(database, id, now).await?;
    if let Some(key) = files::find_condemned(&mut database.read().await?, id).await? {
        delete_marked_file(core, database, id, &key, true).await?;
    }
    Ok(())
}
