//! A tenant's storage usage and reservations. Each query counts the rows, since a stored counter could drift.

use database::{Connection, Result, Tenant, TenantTx, params};
use domain::{StorageUse, Timestamp};

/// Serialises quota decisions: only one transaction at a time holds this lock.
pub async fn lock(tx: &mut TenantTx) -> Result<()> {
    tx.query_opt("SELECT tenant_id FROM tenant_identity FOR UPDATE", params![]).await?;
    Ok(())
}

/// The tenant's usage. Rows that are marked for deletion don't count. An expired upload reserves nothing, unless it is already
/// being completed.
pub async fn find_use(connection: &mut Connection<Tenant>, now: Timestamp) -> Result<StorageUse> {
    let mut row = connection
        .query_one(
            "SELECT f.files, f.bytes, d.documents, d.trashed, u.bytes + s.bytes, u.documents + s.documents
             FROM (SELECT COUNT(*) AS files, CAST(COALESCE(SUM(file_size), 0) AS BIGINT) AS bytes
                   FROM files WHERE condemned_at IS NULL) f,
                  (SELECT COUNT(*) AS documents, COUNT(deleted_at) AS trashed FROM documents) d,
                  (SELECT CAST(COALESCE(SUM(reserved_bytes), 0) AS BIGINT) AS bytes,
                          CAST(COALESCE(SUM(reserved_documents), 0) AS BIGINT) AS documents
                   FROM uploads WHERE condemned_at IS NULL AND expires_at > $1) u,
                  (SELECT CAST(COALESCE(SUM(file_size), 0) AS BIGINT) AS bytes, COUNT(*) AS documents
                   FROM staged_uploads WHERE state = 'completing' OR state = 'open' AND expires_at > $1) s",
            params![now],
        )
        .await?;
    Ok(StorageUse {
        files: row.take()?,
        bytes: row.take()?,
        documents: row.take()?,
        trashed_documents: row.take()?,
        reserved_bytes: row.take()?,
        reserved_documents: row.take()?,
    })
}
