//! The content of documents: what a new document has, what replaces it, and how many former contents are kept.

use domain::{Document, DocumentId, Error, EventKind, File, FileId, Filename, MimeType, Result, Role, dyn_error, failpoint};
use models::{Tenant, TenantTx, documents, files, versions};

use crate::{
    Core,
    access::{TenantCaller, begin},
    documents::documents::event_payload,
    events::events::{EventTx, event},
};

/// A document that was uploaded, or got another content.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The document.
    pub document: Document,
    /// Whether its content was already there.
    pub deduplicated: bool,
}

/// Adds a document with this content.
pub(crate) fn insert_document(
    core: &Core,
    tx: &mut EventTx<Tenant>,
    tenant: &TenantCaller,
    file: File,
    filename: &Filename,
    mime_type: &MimeType,
) -> Document {
    let now = core.clock().now();
    let document = Document {
        id: DocumentId::generate(core.clock()),
        filename: filename.as_str().to_owned(),
        mime_type: mime_type.as_str().to_owned(),
        file,
        version: 1,
        content_at: now,
        content_by: Some(tenant.user_id()),
        user_id: tenant.user_id(),
        created_at: now,
        updated_at: now,
        created_by: Some(tenant.user_id()),
        deleted_at: None,
        deleted_by: None,
    };
    documents::insert(tx, &document);
    emit_uploaded(core, tx, tenant, &document);
    document
}

/// Gives a document, which is locked, another content, unless it is the one that it has.
pub(crate) async fn replace_content(
    core: &Core,
    tx: &mut EventTx<Tenant>,
    tenant: &TenantCaller,
    document: Document,
    file: File,
    mime_type: String,
) -> Result<Document> {
    if document.file.id == file.id && document.mime_type == mime_type {
        return Ok(document);
    }
    versions::keep(tx, &document).await?;
    let now = core.clock().now();
    let document = Document {
        version: document.version + 1,
        file,
        mime_type,
        content_at: now,
        content_by: Some(tenant.user_id()),
        updated_at: now,
        ..document
    };
    documents::set_content(tx, document.id, document.version, document.file.id, &document.mime_type, tenant.user_id(), now).await?;
    emit_uploaded(core, tx, tenant, &document);
    Ok(document)
}

fn emit_uploaded(core: &Core, tx: &mut EventTx<Tenant>, tenant: &TenantCaller, document: &Document) {
    tx.emit(&event(core, EventKind::DocumentUploaded, Some(tenant.tenant_id()), Some(tenant.user_id()), &event_payload(document)));
}

/// Forgets a document's oldest contents when it has more than are kept. What fails here, the next new version does. In a
/// transaction of its own, since it locks several files.
pub(crate) async fn prune_versions(core: &Core, tenant: &TenantCaller, document: &Document) {
    let Some(up_to) = document.version.checked_sub(core.settings().versions_kept).filter(|up_to| *up_to > 0) else { return };
    let prune = async {
        let (_, mut tx) = begin(core, tenant.caller(), tenant.tenant_id(), Role::Viewer).await?;
        if documents::lock(&mut tx, document.id).await?.is_none() {
            return Ok(());
        }
        let files = versions::list_files(&mut tx, document.id, up_to).await?;
        let now = core.clock().now();
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
        tracing::warn!(error = dyn_error(&error), "a document's oldest versions are left to the next one");
    }
}

/// Locks several files, in one order for all, so that two who do can't wait for each other.
pub(crate) async fn lock_files(tx: &mut TenantTx, mut files: Vec<FileId>) -> Result<()> {
    files.sort_unstable();
    for file in files {
        files::lock(tx, file).await?;
    }
    Ok(())
}
