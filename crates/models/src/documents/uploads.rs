//! Upload intents: an object may exist under the key, and no file refers to it yet.

use database::{Connection, Result, Tenant, TenantTx, params};
use domain::Timestamp;

use crate::{
    documents::files::{MAX_EARLY_DELETIONS, after},
    single,
};

/// Records an upload intent, before its object is written, with its reservation from the tenant's quota.
pub fn insert(tx: &mut TenantTx, object_key: &str, reserved_bytes: u64, reserved_documents: u64, expires_at: Timestamp) {
    tx.defer(
        "INSERT INTO uploads (s3_path, expires_at, reserved_bytes, reserved_documents) VALUES ($1, $2, $3, $4)",
        params![object_key, expires_at, reserved_bytes, reserved_documents],
    );
}

/// Removes an upload intent because a file now refers to its object. Returns false if the intent was marked for deletion, so that
/// the object must not be used.
pub async fn complete(tx: &mut TenantTx, object_key: &str) -> Result<bool> {
    let deleted = tx.execute("DELETE FROM uploads WHERE s3_path = $1 AND condemned_at IS NULL", params![object_key]).await?;
    Ok(deleted == 1)
}

/// Marks an upload intent for deletion: its object will be deleted, and no file can use it any more.
pub async fn mark_for_deletion(tx: &mut TenantTx, object_key: &str, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE uploads SET condemned_at = $2 WHERE s3_path = $1", params![object_key, now]).await?;
    Ok(())
}

/// Marks the upload intents that expired at `before` or earlier for deletion.
pub async fn mark_expired(tx: &mut TenantTx, before: Timestamp, now: Timestamp) -> Result<u64> {
    tx.execute("UPDATE uploads SET condemned_at = $2 WHERE expires_at <= $1 AND condemned_at IS NULL", params![before, now]).await
}

/// The keys of upload intents marked for deletion at `before` or earlier.
pub async fn list_marked(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<String>> {
    let rows =
        connection.query("SELECT s3_path FROM uploads WHERE condemned_at <= $1 ORDER BY s3_path LIMIT $2", params![before, limit]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// The keys of upload intents marked for deletion after `since`, latest first.
pub async fn list_marked_since(connection: &mut Connection<Tenant>, since: Timestamp) -> Result<Vec<String>> {
    let rows = connection
        .query(
            "SELECT s3_path FROM uploads WHERE condemned_at > $1 ORDER BY condemned_at DESC LIMIT $2",
            params![since, MAX_EARLY_DELETIONS],
        )
        .await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// Removes an upload intent that is marked for deletion, after its object was deleted.
pub async fn delete_marked(tx: &mut TenantTx, object_key: &str) -> Result<()> {
    tx.execute("DELETE FROM uploads WHERE s3_path = $1 AND condemned_at IS NOT NULL", params![object_key]).await?;
    Ok(())
}

/// The number of upload intents that are marked for deletion or have expired.
pub async fn count_collectable(connection: &mut Connection<Tenant>, now: Timestamp) -> Result<u64> {
    let counted =
        connection.query_one("SELECT COUNT(*) FROM uploads WHERE condemned_at IS NOT NULL OR expires_at <= $1", params![now]).await?;
    single(counted)
}

/// The keys with this prefix of all upload intents, those marked for deletion included.
pub async fn list_by_prefix(connection: &mut Connection<Tenant>, prefix: &str) -> Result<Vec<String>> {
    let rows = connection.query("SELECT s3_path FROM uploads WHERE s3_path >= $1 AND s3_path < $2", params![prefix, after(prefix)]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// The keys of all upload intents, those marked for deletion included.
pub async fn list_object_keys(connection: &mut Connection<Tenant>) -> Result<Vec<String>> {
    let rows = connection.query("SELECT s3_path FROM uploads", params![]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}
