//! The trash: deleted documents can be restored for a time, and are then deleted permanently.

use domain::{
    Document, DocumentId, Error, EventKind, Page, PageRequest, ResourceKind, Result, Role, TenantId, Timestamp, UserId, failpoint,
};
use models::{TenantDatabase, TenantTx, documents, files, trash, versions};

use crate::{
    Caller, Core, UserServices,
    access::{authorize, begin},
    documents::{
        content::lock_files,
        documents::{Precondition, event_payload, lock_own, require_own, require_precondition},
    },
    events::events::{EventTx, audit_event, begin_in, event},
};

/// How many documents are read per query.
const BATCH: u32 = 100;

impl UserServices {
    /// Deletes a document: moves it to the trash or, where the trash is disabled, deletes it permanently. Files that are no
    /// longer referenced are collected after a grace period.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller owns it or is an admin; [`Error::PreconditionFailed`].
    pub async fn delete_document(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        precondition: Precondition<'_>,
    ) -> Result<()> {
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::Viewer).await?;
        let document = lock_own(&mut tx, &tenant, id).await?;
        require_precondition(&document, precondition)?;
        if self.core.settings().trash_retention.is_zero() {
            remove(&self.core, &mut tx, &document).await?;
        } else {
            trash::add(&mut tx, id, caller.user_id(), self.core.clock().now()).await?;
        }
        let (data, by) = (event_payload(&document), Some(caller.user_id()));
        tx.emit(&event(&self.core, EventKind::DocumentDeleted, Some(tenant_id), by, &data));
        tx.emit(&audit_event(&self.core, "document.deleted", Some(tenant_id), by, data));
        failpoint!("document.deleting");
        tx.commit().await?;
        failpoint!("document.deleted");
        Ok(())
    }

    /// The documents in the trash, the last deleted first: all for an admin, only own ones for a user.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for viewers.
    pub async fn list_trash(&self, caller: &Caller, tenant_id: TenantId, request: PageRequest) -> Result<Page<Document>> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::User).await?;
        let owner = if tenant.role() == Role::Admin { None } else { Some(tenant.user_id()) };
        Ok(trash::list(&mut tenant.read().await?, owner, request).await?)
    }

    /// Restores a document from the trash, with all its versions.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not in the trash; [`Error::Forbidden`] unless the caller owns it or is an admin.
    pub async fn restore_document(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<Document> {
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::User).await?;
        let document = trash::lock(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::Document))?;
        require_own(&tenant, &document)?;
        trash::restore(&mut tx, id, self.core.clock().now()).await?;
        let document = documents::find(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::Document))?;
        tx.emit(&audit_event(&self.core, "document.restored", Some(tenant_id), Some(caller.user_id()), event_payload(&document)));
        failpoint!("document.restoring");
        tx.commit().await?;
        failpoint!("document.restored");
        Ok(document)
    }

    /// Deletes a document in the trash permanently.
    ///
    /// # Errors
    /// As [`UserServices::restore_document`].
    pub async fn purge_document(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId) -> Result<()> {
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::User).await?;
        let document = trash::lock(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::Document))?;
        require_own(&tenant, &document)?;
        purge(&self.core, tx, &document, Some(caller.user_id()), tenant_id).await
    }

    /// Deletes everything in the trash permanently. Returns the number of documents.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller is an admin. Documents deleted before an error stay deleted.
    pub async fn empty_trash(&self, caller: &Caller, tenant_id: TenantId) -> Result<u64> {
        let now = self.core.clock().now();
        let mut removed = 0;
        loop {
            // Authorized again per batch: this may take long, and the caller may lose the permission meanwhile.
            let tenant = authorize(&self.core, caller, tenant_id, Role::Admin).await?;
            let found = trash::list_before(&mut tenant.read().await?, now, BATCH).await?;
            for id in &found {
                let (_, mut tx) = begin(&self.core, caller, tenant_id, Role::Admin).await?;
                if let Some(document) = trash::lock(&mut tx, *id).await? {
                    purge(&self.core, tx, &document, Some(caller.user_id()), tenant_id).await?;
                    removed += 1;
                }
            }
            if found.is_empty() {
                return Ok(removed);
            }
        }
    }
}

/// Permanently deletes the documents that have been in the trash since `before`. Returns their number.
pub(crate) async fn purge_expired(core: &Core, database: &TenantDatabase, before: Timestamp) -> Result<u64> {
    let mut removed = 0;
    loop {
        let found = trash::list_before(&mut database.read().await?, before, BATCH).await?;
        for id in &found {
            let mut tx = begin_in(core, database).await?;
            // Checked again under the lock: the document may have been restored, and deleted again just now.
            if let Some(document) = trash::lock(&mut tx, *id).await?.filter(|found| found.deleted_at <= Some(before)) {
                purge(core, tx, &document, None, database.tenant_id()).await?;
                removed += 1;
            }
        }
        if found.is_empty() {
            return Ok(removed);
        }
    }
}

async fn purge(core: &Core, mut tx: EventTx<models::Tenant>, document: &Document, by: Option<UserId>, tenant_id: TenantId) -> Result<()> {
    remove(core, &mut tx, document).await?;
    tx.emit(&audit_event(core, "document.purged", Some(tenant_id), by, event_payload(document)));
    failpoint!("document.purging");
    tx.commit().await?;
    failpoint!("document.purged");
    Ok(())
}

/// Deletes a locked document with all its versions.
async fn remove(core: &Core, tx: &mut TenantTx, document: &Document) -> Result<()> {
    let mut files = versions::list_files(tx, document.id, document.version).await?;
    files.push(document.file.id);
    files.dedup();
    // Before the document is deleted: an upload of the same content either sees it, or waits until it is gone.
    lock_files(tx, files.clone()).await?;
    documents::delete(tx, document.id).await?;
    let now = core.clock().now();
    for file in files {
        files::touch(tx, file, now).await?;
    }
    Ok(())
}
