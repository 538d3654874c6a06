//! Versions: the contents that a document has and had.

use domain::{Document, DocumentId, DocumentVersion, Error, Noun, Page, PageRequest, Result, Role, TenantId, failpoint};
use models::{documents, files, versions};

use crate::{
    Caller, Download, Services,
    access::TenantCaller,
    documents::documents::{Precondition, facts, lock_own, require_precondition},
};

impl Services {
    /// The contents that a document has and had, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document.
    pub async fn list_versions(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        request: PageRequest,
    ) -> Result<Page<DocumentVersion>> {
        let tenant = self.enter(caller, tenant_id, Role::Viewer).await?;
        let mut connection = tenant.read().await?;
        documents::find(&mut connection, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        Ok(versions::list(&mut connection, id, request).await?)
    }

    /// A URL at which whoever has it can download a content that a document has or had, for a time. It bears the document's
    /// name of today.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the tenant has no such document, or the document no such version (any more).
    pub async fn get_version_download(&self, caller: &Caller, tenant_id: TenantId, id: DocumentId, number: u64) -> Result<Download> {
        let tenant = self.enter(caller, tenant_id, Role::Viewer).await?;
        let mut connection = tenant.read().await?;
        let document = documents::find(&mut connection, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        let version = versions::find(&mut connection, id, number).await?.ok_or(Error::NotFound(Noun::Version))?;
        drop(connection);
        let download = self.download(&version.file, &document.filename, &version.mime_type).await?;
        let mut data = facts(&document);
        data["version"] = number.into();
        data["file_id"] = version.file.id.to_string().into();
        self.note(&tenant, "document.downloaded", data).await?;
        Ok(download)
    }

    /// Gives a document a content that it had before: as its next version, so that nothing is lost.
    ///
    /// # Errors
    /// As [`Services::get_version_download`]; [`Error::Forbidden`] unless the caller owns the document or is an admin;
    /// [`Error::PreconditionFailed`].
    pub async fn restore_version(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        number: u64,
        precondition: Precondition<'_>,
    ) -> Result<Document> {
        let (tenant, mut tx) = self.begin(caller, tenant_id, Role::Viewer).await?;
        let document = lock_own(&mut tx, &tenant, id).await?;
        require_precondition(&document, precondition)?;
        let version = versions::find(&mut tx, id, number).await?.ok_or(Error::NotFound(Noun::Version))?;
        // The document's lock keeps its former contents from being pruned, so the file lives.
        let file = files::lock(&mut tx, version.file.id).await?.ok_or_else(|| Error::internal("a version's file was condemned"))?;
        let document = self.replace_content(&mut tx, &tenant, document, file, version.mime_type).await?;
        failpoint!("version.restoring");
        tx.commit().await?;
        failpoint!("version.restored");
        self.prune_versions(&tenant, &document).await;
        Ok(document)
    }

    /// Forgets a document's oldest contents when it has more than are kept. What fails here, the next new version does. In a
    /// transaction of its own, since it locks several files.
    pub(crate) async fn prune_versions(&self, tenant: &TenantCaller, document: &Document) {
        let Some(up_to) = document.version.checked_sub(self.settings().versions_kept).filter(|up_to| *up_to > 0) else { return };
        let prune = async {
            let (_, mut tx) = self.begin(tenant.caller(), tenant.tenant_id(), Role::Viewer).await?;
            if documents::lock(&mut tx, document.id).await?.is_none() {
                return Ok(());
            }
            let files = versions::list_files(&mut tx, document.id, up_to).await?;
            let now = self.clock().now();
            lock_files(&mut tx, files.clone()).await?;
            versions::delete_up_to(&mut tx, document.id, up_to).await?;
            for file in files {
                files::touch(&mut tx, file, now).await?;
            }
            failpoint!("version.pruning");
            tx.commit().await?;
            failpoint!("version.pruned");
            Ok::<_, Error>(())
        };
        if let Err(error) = prune.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a document's oldest versions are left to the next one");
        }
    }
}

/// Locks several files, in one order for all, so that two who do can't wait for each other.
pub(crate) async fn lock_files(tx: &mut models::TenantTx, mut files: Vec<domain::FileId>) -> Result<()> {
    files.sort_unstable();
    for file in files {
        files::lock(tx, file).await?;
    }
    Ok(())
}
