//! Uploads under way: an object may stand under this key, and no file refers to it yet.

use database::{Connection, Result, Tenant, TenantTx, params};
use domain::Timestamp;

use crate::{
    documents::files::{UNSETTLED, after},
    single,
};

/// Notes an upload before its object is written, and what it may come to take of the tenant's quota.
pub fn insert(tx: &mut TenantTx, object_key: &str, reserved_bytes: u64, reserved_documents: u64, expires_at: Timestamp) {
    tx.defer(
        "INSERT INTO uploads (s3_path, expires_at, reserved_bytes, reserved_documents) VALUES ($1, $2, $3, $4)",
        params![object_key, expires_at, reserved_bytes, reserved_documents],
    );
}

/// Forgets an upload, because a file refers to its object now. Answers whether that may be: not when the upload was condemned.
pub async fn complete(tx: &mut TenantTx, object_key: &str) -> Result<bool> {
    let deleted = tx.execute("DELETE FROM uploads WHERE s3_path = $1 AND condemned_at IS NULL", params![object_key]).await?;
    Ok(deleted == 1)
}

/// Condemns an upload: its object will be deleted, and can't become a file's any more.
pub async fn condemn(tx: &mut TenantTx, object_key: &str, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE uploads SET condemned_at = $2 WHERE s3_path = $1", params![object_key, now]).await?;
    Ok(())
}

/// Condemns the uploads that expired before a time.
pub async fn condemn_expired(tx: &mut TenantTx, before: Timestamp, now: Timestamp) -> Result<u64> {
    tx.execute("UPDATE uploads SET condemned_at = $2 WHERE expires_at <= $1 AND condemned_at IS NULL", params![before, now]).await
}

/// The keys of uploads that were condemned before a time.
pub async fn list_condemned(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<String>> {
    let rows =
        connection.query("SELECT s3_path FROM uploads WHERE condemned_at <= $1 ORDER BY s3_path LIMIT $2", params![before, limit]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// The keys of uploads that were condemned after a time, the latest ones first.
pub async fn list_condemned_since(connection: &mut Connection<Tenant>, since: Timestamp) -> Result<Vec<String>> {
    let rows = connection
        .query("SELECT s3_path FROM uploads WHERE condemned_at > $1 ORDER BY condemned_at DESC LIMIT $2", params![since, UNSETTLED])
        .await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// Forgets a condemned upload, after its object is gone.
pub async fn delete_condemned(tx: &mut TenantTx, object_key: &str) -> Result<()> {
    tx.execute("DELETE FROM uploads WHERE s3_path = $1 AND condemned_at IS NOT NULL", params![object_key]).await?;
    Ok(())
}

/// How many uploads are condemned, or will be since they have expired.
pub async fn count_collectable(connection: &mut Connection<Tenant>, now: Timestamp) -> Result<u64> {
    let counted =
        connection.query_one("SELECT COUNT(*) FROM uploads WHERE condemned_at IS NOT NULL OR expires_at <= $1", params![now]).await?;
    single(counted)
}

/// The keys of uploads, under way or condemned, that begin so.
pub async fn list_by_prefix(connection: &mut Connection<Tenant>, prefix: &str) -> Result<Vec<String>> {
    let rows = connection.query("SELECT s3_path FROM uploads WHERE s3_path >= $1 AND s3_path < $2", params![prefix, after(prefix)]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// The keys of all uploads under way or condemned.
pub async fn list_object_keys(connection: &mut Connection<Tenant>) -> Result<Vec<String>> {
    let rows = connection.query("SELECT s3_path FROM uploads", params![]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}
