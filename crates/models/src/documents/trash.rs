//! The trash: deleted documents that can still be restored.

use database::{Connection, Result, Statement, Tenant, TenantTx, params};
use domain::{Document, DocumentId, Page, PageRequest, Timestamp, UserId};

use crate::{
    documents::{document, select_documents},
    page, single,
};

/// Moves a document to the trash. Returns false if it does not exist or is already there.
pub async fn add(tx: &mut TenantTx, id: DocumentId, by: UserId, now: Timestamp) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE documents SET deleted_at = $2, deleted_by = $3, updated_at = $2 WHERE id = $1 AND deleted_at IS NULL",
            params![id, now, by],
        )
        .await?;
    Ok(changed == 1)
}

/// Restores a document from the trash. Returns whether it was there.
pub async fn restore(tx: &mut TenantTx, id: DocumentId, now: Timestamp) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE documents SET deleted_at = NULL, deleted_by = NULL, updated_at = $2 WHERE id = $1 AND deleted_at IS NOT NULL",
            params![id, now],
        )
        .await?;
    Ok(changed == 1)
}

/// Finds the document with this id in the trash and locks its row until the transaction ends.
pub async fn lock(tx: &mut TenantTx, id: DocumentId) -> Result<Option<Document>> {
    tx.query_opt("SELECT id FROM documents WHERE id = $1 FOR UPDATE", params![id]).await?;
    let found = tx.query_opt(select_documents!("WHERE d.id = $1 AND d.deleted_at IS NOT NULL"), params![id]).await?;
    found.map(document).transpose()
}

/// Documents in the trash, of one owner or of all, most recently deleted first.
pub async fn list(connection: &mut Connection<Tenant>, owner: Option<UserId>, request: PageRequest) -> Result<Page<Document>> {
    let count = Statement::new(
        "SELECT COUNT(*) FROM documents d WHERE d.deleted_at IS NOT NULL AND (CAST($1 AS UUID) IS NULL OR d.user_id = $1)",
        params![owner],
    );
    let items = Statement::new(
        select_documents!(
            "WHERE d.deleted_at IS NOT NULL AND (CAST($1 AS UUID) IS NULL OR d.user_id = $1)
             ORDER BY d.deleted_at DESC, d.id DESC LIMIT $2 OFFSET $3"
        ),
        params![owner, request.per_page(), request.offset()],
    );
    page(connection, count, items, request, document).await
}

/// Documents moved to the trash at `before` or earlier, oldest first.
pub async fn list_before(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<DocumentId>> {
    let rows = connection
        .query(
            "SELECT id FROM documents WHERE deleted_at IS NOT NULL AND deleted_at <= $1 ORDER BY deleted_at, id LIMIT $2",
            params![before, limit],
        )
        .await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// The number of documents moved to the trash at `before` or earlier.
pub async fn count_before(connection: &mut Connection<Tenant>, before: Timestamp) -> Result<u64> {
    let counted =
        connection.query_one("SELECT COUNT(*) FROM documents WHERE deleted_at IS NOT NULL AND deleted_at <= $1", params![before]).await?;
    single(counted)
}
