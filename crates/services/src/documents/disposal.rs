//! Deletion of objects that are marked for deletion: first the object, then the row that names it.

use domain::{Error, FileId, Result, dyn_error, failpoint};
use models::{TenantDatabase, files, uploads};

use crate::{
    Core,
    access::{TenantCaller, reauthorize_and_begin},
};

/// Whether the storage has no late-write window, so that the row of a deleted object may be deleted at once.
pub(crate) fn excludes_late_writes(core: &Core) -> bool {
    core.parts.storage.late_write_window().is_zero()
}

/// Deletes the object of a file that is marked for deletion, and then its row if the storage's late-write window has
/// passed: no late write can store the object.
pub(crate) async fn delete_marked_file(core: &Core, database: &TenantDatabase, id: FileId, key: &str, window_passed: bool) -> Result<()> {
    core.parts.storage.delete(key).await?;
    failpoint!("garbage.object_deleted");
    if !window_passed {
        return Ok(());
    }
    let mut tx = database.begin().await?;
    files::delete_marked(&mut tx, id).await?;
    tx.commit().await?;
    failpoint!("garbage.file_deleted");
    Ok(())
}

/// Like [`delete_marked_file`], for an upload that is marked for deletion.
pub(crate) async fn delete_marked_upload(core: &Core, database: &TenantDatabase, key: &str, window_passed: bool) -> Result<()> {
    core.parts.storage.delete(key).await?;
    failpoint!("garbage.upload_object_deleted");
    if !window_passed {
        return Ok(());
    }
    let mut tx = database.begin().await?;
    uploads::delete_marked(&mut tx, key).await?;
    tx.commit().await?;
    failpoint!("garbage.upload_deleted");
    Ok(())
}

/// Aborts an upload whose object may exist. The collector removes what fails here.
pub(crate) async fn abort_upload(core: &Core, tenant: &TenantCaller, key: &str) {
    let mark = async {
        let mut tx = reauthorize_and_begin(core, tenant).await?;
        uploads::mark_for_deletion(&mut tx, key, core.clock().now()).await?;
        Ok::<_, Error>(tx.commit().await?)
    };
    match mark.await {
        Ok(()) => discard_object(core, tenant, key).await,
        Err(error) => tracing::warn!(error = dyn_error(&error), "could not abort an upload; the collector will"),
    }
}

/// Removes an object that no file refers to. The collector removes it if this fails.
pub(crate) async fn discard_object(core: &Core, tenant: &TenantCaller, key: &str) {
    if let Err(error) = delete_marked_upload(core, tenant.database(), key, excludes_late_writes(core)).await {
        tracing::warn!(error = dyn_error(&error), "could not delete an unreferenced object; the collector will");
    }
}
