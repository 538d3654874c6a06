//! The deletion of tenants for good, and what stays of them.
//!
//! First the mark, from which on the tenant is nobody's to enter and nobody completes, collects or migrates it; then, once
//! every instance goes by the mark, its database, its objects, and at last its row, which leaves a tombstone. Every step can
//! be repeated, so whoever finds the mark can go on from wherever a crash left it.

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

/// Objects that are deleted at once.
const AT_ONCE: usize = 8;
/// How long after a deletion an upload that was under way then may still leave an object: much less.
const LATE: Duration = Duration::from_secs(24 * 3600);

/// A deletion, with what was found of the tenant after it.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// What is to stay.
    pub tombstone: Tombstone,
    /// Whether its server still holds the database.
    pub database_is_there: bool,
    /// How many objects there are under its prefix.
    pub objects: u64,
    /// Whether the tenant still has a row.
    pub row_is_there: bool,
}

impl Deletion {
    /// Whether nothing but the tombstone is left.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.database_is_there && self.objects == 0 && !self.row_is_there
    }
}

fn being_moved() -> Error {
    Error::Unavailable {
        dependency: Dependency::TenantDatabase,
        source: "it is being moved to another server, or was until just now; try again when that has ended".into(),
    }
}

impl OperatorServices {
    /// Deletes a tenant for good: its database, its objects, its row with the memberships. Goes on with a deletion that was
    /// begun before. When this fails, the tenant is still there as it was, or marked; then a repetition goes on, or
    /// [`OperatorServices::resume_deletions`].
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

    /// Looks for what is left of a tenant beside its tombstone.
    ///
    /// # Errors
    /// When a database or the storage is down.
    pub async fn check_deletion(&self, tombstone: Tombstone) -> Result<Deletion> {
        let tenant_id = tombstone.place.tenant_id;
        let prefix = object_prefix(tenant_id);
        Ok(Deletion {
            database_is_there: self.core.parts.tenant_databases.exists(&tombstone.place).await?,
            objects: self.core.parts.storage.list(&prefix).try_fold(0, async |count, _| Ok(count + 1)).await?,
            row_is_there: tenants::find(&mut self.core.main().read().await?, tenant_id).await?.is_some(),
            tombstone,
        })
    }

    /// Completes deletions that a crash interrupted. Answers how many; one that fails is logged and left for the next time.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn resume_deletions(&self) -> Result<usize> {
        let abandoned = tenants::list_deleting(&mut self.core.main().read().await?, self.core.abandoned_before()).await?;
        if !abandoned.is_empty() {
            // Whoever made the mark may have died right after it.
            tokio::time::sleep(NOTICED_AFTER).await;
        }
        let mut completed = 0;
        for tenant in abandoned {
            match complete_deletion(&self.core, &tenant).await {
                Ok(()) => completed += 1,
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant.id, error = dyn_error(&error), "a tenant's deletion could not be completed");
                }
            }
        }
        Ok(completed)
    }

    /// Deletes what uploads that were under way when their tenant was deleted have left since. Answers how many objects.
    ///
    /// # Errors
    /// When the main database or the storage is down.
    pub async fn collect_late_objects(&self) -> Result<u64> {
        let since = self.core.clock().now().minus(LATE);
        let recent = tombstones::list_since(&mut self.core.main().read().await?, since).await?;
        let mut collected = 0;
        for tombstone in recent {
            collected += delete_objects(&self.core, tombstone.place.tenant_id).await?;
        }
        Ok(collected)
    }
}

async fn mark_deleting(core: &Core, tenant_id: TenantId) -> Result<()> {
    let now = core.clock().now();
    let mut tx = begin_main(core).await?;
    let Some(tenant) = tenants::mark_deleting(&mut tx, tenant_id, now).await? else { return Ok(()) };
    // One that began just now.
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

/// What follows the mark, once every instance has noticed it.
async fn complete_deletion(core: &Core, tenant: &Tenant) -> Result<()> {
    // It may have moved or been migrated since it was found. Completed by somebody else, it has nothing left to tell.
    if let Some(now) = tenants::find(&mut core.main().read().await?, tenant.id).await? {
        match drain_events(core, &now).await {
            Err(error @ (Error::Closed(_) | Error::Internal(_))) => {
                let error = dyn_error(&error);
                tracing::error!(tenant_id = %tenant.id, error, "its database can't be read: events that nobody was told of go with it");
            }
            taken => taken?,
        }
    }
    drop_databases_of(core, tenant).await?;
    failpoint!("tenant.database_dropped");
    delete_objects(core, tenant.id).await?;
    failpoint!("tenant.objects_deleted");
    bury(core, tenant.id).await
}

/// Deletes all objects of a tenant, and answers how many there were.
pub(crate) async fn delete_objects(core: &Core, tenant_id: TenantId) -> Result<u64> {
    let (storage, prefix) = (&core.parts.storage, object_prefix(tenant_id));
    let mut deleted = 0;
    loop {
        let deleting = storage.list(&prefix).map_ok(|object| async move {
            storage.delete(&object.key).await?;
            failpoint!("tenant.object_deleted");
            Ok(1)
        });
        let found: u64 = deleting.try_buffer_unordered(AT_ONCE).try_fold(0, async |sum, one| Ok(sum + one)).await?;
        deleted += found;
        // Looked at again: what was put meanwhile may not have been in the list.
        if found == 0 {
            return Ok(deleted);
        }
    }
}

/// Exchanges a tenant's row for a tombstone. Events that nobody was told of yet stay.
async fn bury(core: &Core, tenant_id: TenantId) -> Result<()> {
    let mut tx = core.main().begin().await?;
    // Absent when somebody else completed the deletion at the same time.
    let Some(tenant) = tenants::delete_marked(&mut tx, tenant_id).await? else { return Ok(()) };
    outbox::delete_published_of(&mut tx, tenant_id).await?;
    dirty_tenants::remove(&mut tx, tenant_id);
    let tombstone = Tombstone {
        name: tenant.name,
        place: tenant.place,
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
