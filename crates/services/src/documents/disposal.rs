//! Deleting objects that were marked for deletion: the object first, then the row that names it.

use domain::{Error, FileId, Result, dyn_error, failpoint};
use models::{TenantDatabase, files, uploads};

use crate::{
    Core,
    access::{TenantCaller, reauthorize_and_begin},
};

/// Whether what is condemned may be forgotten at once, since it can't come to be stored any more.
pub(crate) fn settles_at_once(core: &Core) -> bool {
    core.parts.storage.late_write_window().is_zero()
}

/// Deletes a condemned file's object, and then its row, if it is settled: nothing can be stored under its key any more.
pub(crate) async fn delete_marked_file(core: &Core, database: &TenantDatabase, id: FileId, key: &str, is_settled: bool) -> Result<()> {
    core.parts.storage.delete(key).await?;
    failpoint!("garbage.object_deleted");
    if !is_settled {
        return Ok(());
    }
    let mut tx = database.begin().await?;
    files::delete_condemned(&mut tx, id).await?;
    tx.commit().await?;
    failpoint!("garbage.file_deleted");
    Ok(())
}

/// The same for a condemned upload.
pub(crate) async fn delete_marked_upload(core: &Core, database: &TenantDatabase, key: &str, is_settled: bool) -> Result<()> {
    core.parts.storage.delete(key).await?;
    failpoint!("garbage.upload_object_deleted");
    if !is_settled {
        return Ok(());
    }
    let mut tx = database.begin().await?;
    uploads::delete_condemned(&mut tx, key).await?;
    tx.commit().await?;
    failpoint!("garbage.upload_deleted");
    Ok(())
}

/// Gives up an upload whose object may be there. What fails here, the collector does.
pub(crate) async fn abort_upload(core: &Core, tenant: &TenantCaller, key: &str) {
    let condemn = async {
        let mut tx = reauthorize_and_begin(core, tenant).await?;
        uploads::condemn(&mut tx, key, core.clock().now()).await?;
        Ok::<_, Error>(tx.commit().await?)
    };
    match condemn.await {
        Ok(()) => discard_object(core, tenant, key).await,
        Err(error) => tracing::warn!(error = dyn_error(&error), "an upload that was given up is left to the collector"),
    }
}

/// Removes an object that no file refers to. What fails here, the collector does.
pub(crate) async fn discard_object(core: &Core, tenant: &TenantCaller, key: &str) {
    if let Err(error) = delete_marked_upload(core, tenant.database(), key, settles_at_once(core)).await {
        tracing::warn!(error = dyn_error(&error), "an object that nobody needs is left to the collector");
    }
}
