//! Versions: the contents that a document has and had.

use domain::{Document, DocumentId, DocumentVersion, Error, Noun, Page, PageRequest, Result, Role, TenantId, failpoint};
use models::{documents, files, versions};

use crate::{
    Caller, Download, UserServices,
    access::{authorize, begin, record},
    documents::{
        content::{prune_versions, replace_content},
        documents::{Precondition, event_payload, lock_own, require_precondition, sign_download},
    },
};

impl UserServices {
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
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
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
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        let mut connection = tenant.read().await?;
        let document = documents::find(&mut connection, id).await?.ok_or(Error::NotFound(Noun::Document))?;
        let version = versions::find(&mut connection, id, number).await?.ok_or(Error::NotFound(Noun::Version))?;
        drop(connection);
        let download = sign_download(&self.core, &version.file, &document.filename, &version.mime_type).await?;
        let mut data = event_payload(&document);
        data["version"] = number.into();
        data["file_id"] = version.file.id.to_string().into();
        record(&self.core, &tenant, "document.downloaded", data).await?;
        Ok(download)
    }

    /// Gives a document a content that it had before: as its next version, so that nothing is lost.
    ///
    /// # Errors
    /// As [`UserServices::get_version_download`]; [`Error::Forbidden`] unless the caller owns the document or is an admin;
    /// [`Error::PreconditionFailed`].
    pub async fn restore_version(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        id: DocumentId,
        number: u64,
        precondition: Precondition<'_>,
    ) -> Result<Document> {
        let (tenant, mut tx) = begin(&self.core, caller, tenant_id, Role::Viewer).await?;
        let document = lock_own(&mut tx, &tenant, id).await?;
        require_precondition(&document, precondition)?;
        let version = versions::find(&mut tx, id, number).await?.ok_or(Error::NotFound(Noun::Version))?;
        // The document's lock keeps its former contents from being pruned, so the file lives.
        let file = files::lock(&mut tx, version.file.id).await?.ok_or_else(|| Error::internal("a version's file was condemned"))?;
        let document = replace_content(&self.core, &mut tx, &tenant, document, file, version.mime_type).await?;
        failpoint!("version.restoring");
        tx.commit().await?;
        failpoint!("version.restored");
        prune_versions(&self.core, &tenant, &document).await;
        Ok(document)
    }
}
