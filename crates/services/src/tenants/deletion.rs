//! The permanent deletion of tenants.
//!
//! First the tenant is marked for deletion: from then on no caller is authorized in it, and no process completes, collects or
//! migrates it. Once every instance applies the mark, its database and its objects are deleted, and at last its row, which leaves
//! a tombstone. Every step can be repeated, so any process can resume a marked deletion wherever a crash interrupted it.

use std::time::Duration;

use domain::{Dependency, Error, EventKind, MoveState, Result, Tenant, TenantId, Tombstone, dyn_error, failpoint, object_prefix};
use futures_util::TryStreamExt;
use models::{dirty_tenants, moves, outbox, tenants, tombstones};
use serde_json::json;

use crate::{
    Core, OperatorServices,
    access_cache::{NOTICED_AFTER, commit_access_change},
    events::{
        events::{audit_event, begin_main, event},
        outbox::drain_events,
    },
    tenants::moves::drop_databases_of,
};

/// How many objects are deleted concurrently.
const DELETE_CONCURRENCY: usize = 8;
/// How long after a deletion its late objects are collected. An upload that was in flight then leaves its object much earlier.
const LATE_UPLOAD_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A deletion, and what is left of the tenant.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// What stays of the tenant.
    pub tombstone: Tombstone,
    /// Whether its server still holds the database.
    pub database_is_there: bool,
    /// How many objects are left under its prefix.
    pub objects: u64,
    /// Whether the tenant still has a row.
    pub row_is_there: bool,
}

impl Deletion {
    /// Whether only the tombstone is left.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.database_is_there && self.objects == 0 && !self.row_is_there
    }
}

fn being_moved() -> Error {
    Error::Unavailable {
        dependency: Dependency::TenantDatabase,
        source: "it is being moved to another server, or was until just now; try again when the move has ended".into(),
    }
}

impl OperatorServices {
    /// Deletes a tenant permanently: its database, its objects, its row with the memberships. Resumes a deletion that was begun
    /// before. When this fails, the tenant is unchanged or marked for deletion; then a repetition or
    /// [`OperatorServices::resume_deletions`] resumes it.
    ///
    /// # Errors
    /// When a database or the storage is down.
    pub async fn delete_tenant(&self, tenant: &Tenant) -> Result<()> {
        if !self.settle_move(tenant.id).await? {
            return Err(being_moved());
        }
        mark_deleting(&self.core, tenant.id).await?;
        tokio::time::sleep(NOTICED_AFTER).await;
        complete_deletion(&self.core, tenant).await
    }

    /// The tombstone of a tenant, if there is one.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_tombstone(&self, tenant_id: TenantId) -> Result<Option<Tombstone>> {
        Ok(tombstones::find(&mut self.core.main().read().await?, tenant_id).await?)
    }

    /// Checks what is left of a tenant beside its tombstone.
    ///
    /// # Errors
    /// When a database or the storage is down.
    pub async fn check_deletion(&self, tombstone: Tombstone) -> Result<Deletion> {
        let tenant_id = tombstone.location.tenant_id;
        let prefix = object_prefix(tenant_id);
        Ok(Deletion {
            database_is_there: self.core.parts.tenant_databases.exists(&tombstone.location).await?,
            objects: self.core.parts.storage.list(&prefix).try_fold(0, async |count, _| Ok(count + 1)).await?,
            row_is_there: tenants::find(&mut self.core.main().read().await?, tenant_id).await?.is_some(),
            tombstone,
        })
    }

    /// Completes deletions that a crash interrupted. Returns how many; one that fails is logged and retried the next time.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn resume_deletions(&self) -> Result<usize> {
        let abandoned = tenants::list_deleting(&mut self.core.main().read().await?, self.core.abandoned_before()).await?;
        if !abandoned.is_empty() {
            // The process that set a mark may have died right after it.
            tokio::time::sleep(NOTICED_AFTER).await;
        }
        let mut completed = 0;
        for tenant in abandoned {
            match complete_deletion(&self.core, &tenant).await {
                Ok(()) => completed += 1,
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant.id, error = dyn_error(&error), "could not complete the deletion of a tenant");
                }
            }
        }
        Ok(completed)
    }

    /// Deletes the objects that uploads left which were in flight when their tenant was deleted. Returns how many.
    ///
    /// # Errors
    /// When the main database or the storage is down.
    pub async fn collect_late_objects(&self) -> Result<u64> {
        let since = self.core.clock().now().minus(LATE_UPLOAD_WINDOW);
        let recent = tombstones::list_since(&mut self.core.main().read().await?, since).await?;
        let mut collected = 0;
        for tombstone in recent {
            collected += delete_objects(&self.core, tombstone.location.tenant_id).await?;
        }
        Ok(collected)
    }
}

async fn mark_deleting(core: &Core, tenant_id: TenantId) -> Result<()> {
    let now = core.clock().now();
    let mut tx = begin_main(core).await?;
    let Some(tenant) = tenants::mark_deleting(&mut tx, tenant_id, now).await? else { return Ok(()) };
    // A move that began just now.
    if moves::find(&mut tx, tenant_id).await?.is_some_and(|the_move| the_move.state != MoveState::Kept) {
        return Err(being_moved());
    }
    let data = json!({ "name": tenant.name, "hard": true });
    tx.emit(&event(core, EventKind::TenantDeleted, Some(tenant_id), None, &data));
    tx.emit(&audit_event(core, "tenant.deleted", Some(tenant_id), None, data));
    failpoint!("tenant.deletion_marking");
    commit_access_change(core, tx, tenant_id).await?;
    failpoint!("tenant.deletion_marked");
    Ok(())
}

/// The steps after the mark, once every instance applies it.
async fn complete_deletion(core: &Core, tenant: &Tenant) -> Result<()> {
    // It may have been moved or migrated since it was read. If another process completed the deletion, no event is left to drain.
    if let Some(now) = tenants::find(&mut core.main().read().await?, tenant.id).await? {
        match drain_events(core, &now).await {
            Err(error @ (Error::TenantUnavailable(_) | Error::Internal(_))) => {
                let error = dyn_error(&error);
                tracing::error!(tenant_id = %tenant.id, error, "cannot read a deleted tenant's database: its unpublished events are lost");
            }
            taken => taken?,
        }
    }
    drop_databases_of(core, tenant).await?;
    failpoint!("tenant.database_dropped");
    delete_objects(core, tenant.id).await?;
    failpoint!("tenant.objects_deleted");
    delete_row(core, tenant.id).await
}

/// Deletes all objects of a tenant and returns their number.
pub(crate) async fn delete_objects(core: &Core, tenant_id: TenantId) -> Result<u64> {
    let (storage, prefix) = (&core.parts.storage, object_prefix(tenant_id));
    let mut deleted = 0;
    loop {
        let deleting = storage.list(&prefix).map_ok(|object| async move {
            storage.delete(&object.key).await?;
            failpoint!("tenant.object_deleted");
            Ok(1)
        });
        let found: u64 = deleting.try_buffer_unordered(DELETE_CONCURRENCY).try_fold(0, async |sum, one| Ok(sum + one)).await?;
        deleted += found;
        // Listed again: the list may lack an object that was stored meanwhile.
        if found == 0 {
            return Ok(deleted);
        }
    }
}

/// Replaces a tenant's row with a tombstone. Its unpublished events stay.
async fn delete_row(core: &Core, tenant_id: TenantId) -> Result<()> {
    let mut tx = core.main().begin().await?;
    // Absent when another process completed the deletion at the same time.
    let Some(tenant) = tenants::delete_marked(&mut tx, tenant_id).await? else { return Ok(()) };
    outbox::delete_published_of(&mut tx, tenant_id).await?;
    dirty_tenants::remove(&mut tx, tenant_id);
    let tombstone = Tombstone {
        name: tenant.name,
        location: tenant.location,
        created_at: tenant.created_at,
        deleted_at: core.clock().now(),
        deleted_by: None,
    };
    tombstones::insert(&mut tx, &tombstone).await?;
    failpoint!("tenant.forgetting");
    tx.commit().await?;
    failpoint!("tenant.forgotten");
    Ok(())
}
