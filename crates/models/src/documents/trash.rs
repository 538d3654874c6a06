//! The trash: documents that were deleted and can still be brought back.

use database::{Connection, Result, Statement, Tenant, TenantTx, params};
use domain::{Document, DocumentId, Page, PageRequest, Timestamp, UserId};

use crate::{
    documents::{document, select_documents},
    page, single,
};

/// Puts a document into the trash. Answers whether it was there and not in the trash yet.
pub async fn insert(tx: &mut TenantTx, id: DocumentId, by: UserId, now: Timestamp) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE documents SET deleted_at = $2, deleted_by = $3, updated_at = $2 WHERE id = $1 AND deleted_at IS NULL",
            params![id, now, by],
        )
        .await?;
    Ok(changed == 1)
}

/// Takes a document out of the trash again. Answers whether it was there.
pub async fn restore(tx: &mut TenantTx, id: DocumentId, now: Timestamp) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE documents SET deleted_at = NULL, deleted_by = NULL, updated_at = $2 WHERE id = $1 AND deleted_at IS NOT NULL",
            params![id, now],
        )
        .await?;
    Ok(changed == 1)
}

/// The document with this id in the trash, locked until the end of the transaction.
pub async fn lock(tx: &mut TenantTx, id: DocumentId) -> Result<Option<Document>> {
    tx.query_opt("SELECT id FROM documents WHERE id = $1 FOR UPDATE", params![id]).await?;
    let found = tx.query_opt(select_documents!("WHERE d.id = $1 AND d.deleted_at IS NOT NULL"), params![id]).await?;
    found.map(document).transpose()
}

/// Documents in the trash, of one owner or of all, those deleted last first.
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

/// Documents that were put into the trash before a time, the oldest first.
pub async fn list_before(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<DocumentId>> {
    let rows = connection
        .query(
            "SELECT id FROM documents WHERE deleted_at IS NOT NULL AND deleted_at <= $1 ORDER BY deleted_at, id LIMIT $2",
            params![before, limit],
        )
        .await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// How many documents were put into the trash before a time.
pub async fn count_before(connection: &mut Connection<Tenant>, before: Timestamp) -> Result<u64> {
    let counted =
        connection.query_one("SELECT COUNT(*) FROM documents WHERE deleted_at IS NOT NULL AND deleted_at <= $1", params![before]).await?;
    single(counted)
}
