//! Files: what a tenant stores, and getting rid of what nobody refers to.

use domain::{
    Conflict, Document, Error, File, FileId, FileUsage, Noun, Page, PageRequest, Quota, Result, Role, StorageUse, TenantId, dyn_error,
    failpoint,
};
use models::{documents, files, quotas};
use serde_json::json;

use crate::{
    Caller, UserServices,
    access::{authorize, begin},
    documents::disposal::{delete_marked_file, settles_at_once},
    events::events::audit_event,
    tenants::moves::has_move,
};

impl UserServices {
    /// The files of a tenant, newest first, each with the number of documents' contents that it is.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the caller is a member.
    pub async fn list_files(&self, caller: &Caller, tenant_id: TenantId, request: PageRequest) -> Result<Page<FileUsage>> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        Ok(files::list(&mut tenant.read().await?, request).await?)
    }

    /// What a tenant stores, and how much it may.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the caller is a member.
    pub async fn get_storage_use(&self, caller: &Caller, tenant_id: TenantId) -> Result<(StorageUse, Quota)> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        Ok((quotas::find_use(&mut tenant.read().await?, self.core.clock().now()).await?, tenant.quota()))
    }

    /// A file with the documents that refer to it, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such file.
    pub async fn get_file(&self, caller: &Caller, tenant_id: TenantId, id: FileId) -> Result<(File, Vec<Document>)> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        let mut connection = tenant.read().await?;
        let file = files::find(&mut connection, id).await?.ok_or(Error::NotFound(Noun::File))?;
        Ok((file, documents::list_by_file(&mut connection, id).await?))
    }

    /// Deletes a file that no document refers to.
    ///
    /// # Errors
    /// [`Conflict::FileInUse`] when one does; [`Error::Forbidden`] unless the caller is an admin.
    pub async fn delete_file(&self, caller: &Caller, tenant_id: TenantId, id: FileId) -> Result<()> {
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::Admin).await?;
        let file = files::lock(&mut tx, id).await?.ok_or(Error::NotFound(Noun::File))?;
        let documents = documents::count_by_file(&mut tx, id).await?;
        if documents > 0 {
            return Err(Error::Conflict(Conflict::FileInUse { documents }));
        }
        files::condemn(&mut tx, id, self.core.clock().now()).await?;
        let data = json!({ "file_id": id.to_string(), "file_size": file.size });
        tx.emit(&audit_event(&self.core, "file.deleted", Some(tenant_id), Some(caller.user_id()), data));
        failpoint!("file.deleting");
        tx.commit().await?;
        failpoint!("file.deleted");
        // It is gone for everybody. What of the object's removal fails now, or may not be yet, the collector does.
        if has_move(&self.core, tenant_id).await? {
            return Ok(());
        }
        if let Err(error) = delete_marked_file(&self.core, tenant.database(), id, &file.object_key, settles_at_once(&self.core)).await {
            tracing::warn!(error = dyn_error(&error), "a deleted file's object is left to the collector");
        }
        Ok(())
    }
}
