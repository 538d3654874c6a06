//! The collector: removes what nothing refers to, and never anything else.
//!
//! A file is condemned in a transaction that has locked it and seen that no document refers to it; from then on none can.
//! Only after that commit is the object deleted, and only after the object the row. Abandoned uploads go the same way. Keys are
//! never used twice, so an object that was found to be nobody's stays nobody's. Where a store may still put an object after it was
//! deleted ([`late_write_window`](crate::ObjectStorage::late_write_window)), the row stays until it can't, and the object is deleted again
//! (`tests/interleavings.rs` shows why).

use std::{ops::Add, time::Duration};

use domain::{FileId, Result, Tenant, TenantId, Timestamp, failpoint, object_prefix};
use futures_util::TryStreamExt;
use models::{TenantDatabase, documents, files, multipart_uploads, trash, uploads};

use crate::{Services, documents::uploads::UPLOAD_LIFE};

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

impl Services {
    /// Collects a tenant's garbage: documents whose time in the trash is over, files that nobody has referred to for the grace,
    /// and abandoned uploads. While a former database of the tenant's is kept, nothing: whoever returns to that finds its
    /// documents whole.
    ///
    /// # Errors
    /// When the database or the storage is down. What was collected until then stays collected.
    pub async fn collect_garbage(&self, tenant: &Tenant) -> Result<Collected> {
        let mut collected = Collected::default();
        let database = self.open_for_operator(tenant)?;
        self.forget_events(&database).await?;
        if self.is_on_the_move(tenant.id).await? {
            return Ok(collected);
        }
        let now = self.clock().now();
        collected.documents = self.purge_expired(&database, now.minus(self.settings().trash_retention)).await?;
        #[expect(clippy::disallowed_methods, reason = "tells nothing")]
        let mut tx = database.begin().await?;
        self.forget_past_requests(&mut tx).await?;
        tx.commit().await?;
        self.collect_staged(&database).await?;
        self.collect_unfinished(tenant.id).await?;
        let (grace, settling) = (self.settings().garbage_grace, self.0.parts.storage.late_write_window());
        loop {
            let now = self.clock().now();
            let before = now.minus(grace);
            let orphaned = files::list_orphaned(&mut database.read().await?, before, BATCH).await?;
            for id in &orphaned {
                self.condemn_if_orphaned(&database, *id, now).await?;
            }
            let condemned = files::list_condemned(&mut database.read().await?, now.minus(grace.max(settling)), BATCH).await?;
            for (id, key, bytes) in &condemned {
                self.delete_condemned(&database, *id, key, true).await?;
                if grace >= settling {
                    collected.files += 1;
                    collected.bytes += bytes;
                }
            }
            #[expect(clippy::disallowed_methods, reason = "tells nothing")]
            let mut tx = database.begin().await?;
            let expired = uploads::condemn_expired(&mut tx, now, now).await?;
            tx.commit().await?;
            failpoint!("garbage.uploads_condemned");
            collected.uploads += expired;
            let abandoned = uploads::list_condemned(&mut database.read().await?, now.minus(settling), BATCH).await?;
            for key in &abandoned {
                self.delete_condemned_upload(&database, key, true).await?;
            }
            if orphaned.is_empty() && condemned.is_empty() && abandoned.is_empty() {
                break;
            }
        }
        let unsettled = self.delete_unsettled(&database, now, grace, settling).await?;
        Ok(collected + unsettled)
    }

    /// Deletes the objects of what is condemned and may still come to be stored: its rows stay for them to be deleted once more.
    /// Answers which files have been condemned since the collection began.
    async fn delete_unsettled(
        &self,
        database: &TenantDatabase,
        began: Timestamp,
        grace: Duration,
        settling: Duration,
    ) -> Result<Collected> {
        let (mut collected, now) = (Collected::default(), self.clock().now());
        if grace < settling {
            let unsettled = files::list_condemned_between(&mut database.read().await?, now.minus(settling), now.minus(grace)).await?;
            for (key, bytes, condemned_at) in unsettled {
                self.0.parts.storage.delete(&key).await?;
                if condemned_at >= began {
                    collected.files += 1;
                    collected.bytes += bytes;
                }
            }
        }
        if !settling.is_zero() {
            for key in uploads::list_condemned_since(&mut database.read().await?, now.minus(settling)).await? {
                self.0.parts.storage.delete(&key).await?;
            }
        }
        Ok(collected)
    }

    /// Has the storage throw away what uploads left of which it got some parts and never the end: those that are too old to be
    /// under way still.
    async fn collect_unfinished(&self, tenant_id: TenantId) -> Result<()> {
        let storage = &self.0.parts.storage;
        let before = self.clock().now().minus(UPLOAD_LIFE.max(self.settings().upload_life));
        let prefix = object_prefix(tenant_id);
        let mut found = storage.list_unfinished(&prefix);
        while let Some(upload) = found.try_next().await? {
            if upload.began_at < before {
                storage.abort_unfinished(&upload).await?;
            }
        }
        Ok(())
    }

    /// What [`Services::collect_garbage`] would remove now. Files of documents whose time in the trash is over are not among
    /// them: their grace begins when the documents go.
    ///
    /// # Errors
    /// When the database is down.
    pub async fn find_garbage(&self, tenant: &Tenant) -> Result<Collected> {
        if self.is_on_the_move(tenant.id).await? {
            return Ok(Collected::default());
        }
        let now = self.clock().now();
        let mut connection = self.open_for_operator(tenant)?.read().await?;
        let (files, bytes) = files::count_collectable(&mut connection, now.minus(self.settings().garbage_grace)).await?;
        Ok(Collected {
            documents: trash::count_before(&mut connection, now.minus(self.settings().trash_retention)).await?,
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
            if !self.hold_lease(LEASE, LEASE_TIME).await? {
                return Ok(collected);
            }
            match self.collect_garbage(&tenant).await {
                Ok(more) => collected = collected + more,
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant.id, error = &error as &dyn std::error::Error, "a tenant's garbage could not be collected");
                }
            }
            tokio::time::sleep(REST).await;
        }
        self.collect_late_objects().await?;
        Ok(collected)
    }

    /// Condemns a file as of the collection's beginning, so that the same collection goes on to delete it.
    async fn condemn_if_orphaned(&self, database: &TenantDatabase, id: FileId, now: Timestamp) -> Result<()> {
        #[expect(clippy::disallowed_methods, reason = "tells nothing")]
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
    pub(crate) async fn collect_file(&self, database: &TenantDatabase, id: FileId) -> Result<()> {
        let now = self.clock().now();
        self.condemn_if_orphaned(database, id, now).await?;
        if let Some(key) = files::find_condemned(&mut database.read().await?, id).await? {
            self.delete_condemned(database, id, &key, true).await?;
        }
        Ok(())
    }

    /// Whether what is condemned may be forgotten at once, since it can't come to be stored any more.
    pub(crate) fn settles_at_once(&self) -> bool {
        self.0.parts.storage.late_write_window().is_zero()
    }

    /// Deletes a condemned file's object, and then its row, if it is settled: nothing can be stored under its key any more.
    pub(crate) async fn delete_condemned(&self, database: &TenantDatabase, id: FileId, key: &str, is_settled: bool) -> Result<()> {
        self.0.parts.storage.delete(key).await?;
        failpoint!("garbage.object_deleted");
        if !is_settled {
            return Ok(());
        }
        #[expect(clippy::disallowed_methods, reason = "tells nothing")]
        let mut tx = database.begin().await?;
        files::delete_condemned(&mut tx, id).await?;
        tx.commit().await?;
        failpoint!("garbage.file_deleted");
        Ok(())
    }

    /// The same for a condemned upload.
    pub(crate) async fn delete_condemned_upload(&self, database: &TenantDatabase, key: &str, is_settled: bool) -> Result<()> {
        self.0.parts.storage.delete(key).await?;
        failpoint!("garbage.upload_object_deleted");
        if !is_settled {
            return Ok(());
        }
        #[expect(clippy::disallowed_methods, reason = "tells nothing")]
        let mut tx = database.begin().await?;
        uploads::delete_condemned(&mut tx, key).await?;
        tx.commit().await?;
        failpoint!("garbage.upload_deleted");
        Ok(())
    }
}
