//! Former contents of documents. The current one is in the document's own row.

use database::{Connection, Result, Row, Statement, Tenant, TenantTx, params};
use domain::{Document, DocumentId, DocumentVersion, FileId, Page, PageRequest};

use crate::{documents::files::file, page};

/// All contents of a document, the current one included, as rows that [`version`] reads.
macro_rules! all_versions {
    () => {
        "SELECT v.version, v.mime_type, v.created_at, v.created_by, f.id, f.md5_hash, f.sha256, f.s3_path, f.file_size, \
                f.created_at, f.updated_at, f.created_by, f.detected_mime_type \
         FROM (SELECT d.version, d.mime_type, d.file_id, COALESCE(d.content_at, d.created_at) AS created_at, \
                      CASE WHEN d.content_at IS NULL THEN d.created_by ELSE d.content_by END AS created_by \
               FROM documents d WHERE d.id = $1 AND d.deleted_at IS NULL \
               UNION ALL \
               SELECT o.version, o.mime_type, o.file_id, o.created_at, o.created_by \
               FROM document_versions o WHERE o.document_id = $1) v \
         JOIN files f ON f.id = v.file_id "
    };
}

/// Keeps the content that a document, which must be locked, has now, before it gets another one.
pub async fn keep(tx: &mut TenantTx, document: &Document) -> Result<()> {
    tx.execute(
        "INSERT INTO document_versions (document_id, version, mime_type, file_id, created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6)",
        params![document.id, document.version, document.mime_type.as_str(), document.file.id, document.content_at, document.content_by],
    )
    .await?;
    Ok(())
}

/// The contents that a document has or had, newest first. The document itself must be there.
pub async fn list(connection: &mut Connection<Tenant>, id: DocumentId, request: PageRequest) -> Result<Page<DocumentVersion>> {
    let count = Statement::new(
        "SELECT (SELECT COUNT(*) FROM documents WHERE id = $1 AND deleted_at IS NULL)
              + (SELECT COUNT(*) FROM document_versions WHERE document_id = $1)",
        params![id],
    );
    let items = Statement::new(
        concat!(all_versions!(), "ORDER BY v.version DESC LIMIT $2 OFFSET $3"),
        params![id, request.per_page(), request.offset()],
    );
    page(connection, count, items, request, |mut row| version(&mut row)).await
}

/// One content that a document has or had.
pub async fn find(connection: &mut Connection<Tenant>, id: DocumentId, number: u64) -> Result<Option<DocumentVersion>> {
    let Ok(number) = i64::try_from(number) else { return Ok(None) };
    let found = connection.query_opt(concat!(all_versions!(), "WHERE v.version = $2"), params![id, number]).await?;
    found.map(|mut row| version(&mut row)).transpose()
}

/// The files of a document's former contents up to a version.
pub async fn list_files(tx: &mut TenantTx, id: DocumentId, up_to: u64) -> Result<Vec<FileId>> {
    let rows =
        tx.query("SELECT DISTINCT file_id FROM document_versions WHERE document_id = $1 AND version <= $2", params![id, up_to]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// Forgets a document's former contents up to a version. The rows of their files must be locked.
pub async fn delete_up_to(tx: &mut TenantTx, id: DocumentId, up_to: u64) -> Result<()> {
    tx.execute("DELETE FROM document_versions WHERE document_id = $1 AND version <= $2", params![id, up_to]).await?;
    Ok(())
}

fn version(row: &mut Row) -> Result<DocumentVersion> {
    Ok(DocumentVersion { version: row.take()?, mime_type: row.take()?, created_at: row.take()?, created_by: row.take()?, file: file(row)? })
}
