//! The collector: removes what nothing refers to, and never anything else.
//!
//! A file is condemned in a transaction that has locked it and seen that no document refers to it; from then on none can.
//! Only after that commit is the object deleted, and only after the object the row. Abandoned uploads go the same way. Keys are never used twice, so an object
//! that was found to be nobody's stays nobody's.

use domain::{FileId, Result, TenantPlace, Timestamp, failpoint};
use models::{TenantDatabase, documents, files, uploads};

use crate::Services;

/// How much is looked at in one go.
const BATCH: u32 = 100;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files that no document referred to.
    pub files: u64,
    /// Objects of uploads that never became a document.
    pub uploads: u64,
}

impl Services {
    /// Collects a tenant's garbage: files that nobody has referred to for the grace, and abandoned uploads. While a former
    /// database of the tenant's is kept, nothing: whoever returns to that finds its documents whole.
    ///
    /// # Errors
    /// When the database or the storage is down. What was collected until then stays collected.
    pub async fn collect_garbage(&self, place: &TenantPlace) -> Result<Collected> {
        let database = self.0.parts.tenant_databases.open(place)?;
        let mut collected = Collected::default();
        if self.is_on_the_move(place.tenant_id).await? {
            return Ok(collected);
        }
        loop {
            let now = self.clock().now();
            let before = now.minus(self.settings().garbage_grace);
            let orphaned = files::list_orphaned(&mut database.read().await?, before, BATCH).await?;
            for id in &orphaned {
                self.condemn_if_orphaned(&database, *id, now).await?;
            }
            let condemned = files::list_condemned(&mut database.read().await?, before, BATCH).await?;
            for (id, key) in &condemned {
                self.delete_condemned(&database, *id, key).await?;
                collected.files += 1;
            }
            let mut tx = database.begin().await?;
            uploads::condemn_expired(&mut tx, now, now).await?;
            tx.commit().await?;
            failpoint!("garbage.uploads_condemned");
            let abandoned = uploads::list_condemned(&mut database.read().await?, BATCH).await?;
            for key in &abandoned {
                self.delete_condemned_upload(&database, key).await?;
                collected.uploads += 1;
            }
            if orphaned.is_empty() && condemned.is_empty() && abandoned.is_empty() {
                return Ok(collected);
            }
        }
    }

    /// Condemns a file as of the collection's beginning, so that the same collection goes on to delete it.
    async fn condemn_if_orphaned(&self, database: &TenantDatabase, id: FileId, now: Timestamp) -> Result<()> {
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

    /// Deletes a condemned file's object, and then its row.
    pub(crate) async fn delete_condemned(&self, database: &TenantDatabase, id: FileId, key: &str) -> Result<()> {
        self.0.parts.storage.delete(key).await?;
        failpoint!("garbage.object_deleted");
        let mut tx = database.begin().await?;
        files::delete_condemned(&mut tx, id).await?;
        tx.commit().await?;
        failpoint!("garbage.file_deleted");
        Ok(())
    }

    /// Deletes a condemned upload's object, and then its row.
    pub(crate) async fn delete_condemned_upload(&self, database: &TenantDatabase, key: &str) -> Result<()> {
        self.0.parts.storage.delete(key).await?;
        failpoint!("garbage.upload_object_deleted");
        let mut tx = database.begin().await?;
        uploads::delete_condemned(&mut tx, key).await?;
        tx.commit().await?;
        failpoint!("garbage.upload_deleted");
        Ok(())
    }
}
