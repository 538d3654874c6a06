//! The warm pool: databases provisioned in advance for future tenants.

use database::{Connection, Main, MainTx, Result, params};
use domain::{TenantId, Timestamp};

/// A warm database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmDatabase {
    /// The id of its future tenant.
    pub tenant_id: TenantId,
    /// The configured name of its server.
    pub server: String,
    /// The digest of its schema.
    pub schema_digest: String,
    /// Whether its provisioning is complete.
    pub is_ready: bool,
}

/// Records a warm database before it is provisioned.
pub async fn insert(tx: &mut MainTx, spare: &WarmDatabase, now: Timestamp) -> Result<()> {
    tx.execute(
        "INSERT INTO spare_databases (tenant_id, server, schema_digest, is_ready, created_at) VALUES ($1, $2, $3, $4, $5)",
        params![spare.tenant_id, spare.server.as_str(), spare.schema_digest.as_str(), spare.is_ready, now],
    )
    .await?;
    Ok(())
}

/// Records that a warm database is ready. Returns false if its row no longer exists.
pub async fn set_ready(tx: &mut MainTx, tenant_id: TenantId) -> Result<bool> {
    Ok(tx.execute("UPDATE spare_databases SET is_ready = $2 WHERE tenant_id = $1", params![tenant_id, true]).await? == 1)
}

/// Takes a ready warm database with this schema out of the pool for a tenant. Concurrent callers get different databases.
pub async fn take(tx: &mut MainTx, server: &str, schema_digest: &str) -> Result<Option<TenantId>> {
    let found = tx
        .query_opt(
            "SELECT tenant_id FROM spare_databases WHERE server = $1 AND schema_digest = $2 AND is_ready
             ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED",
            params![server, schema_digest],
        )
        .await?;
    let Some(mut row) = found else { return Ok(None) };
    let tenant_id = row.take()?;
    delete(tx, tenant_id).await?;
    Ok(Some(tenant_id))
}

/// Removes a warm database from the pool.
pub async fn delete(tx: &mut MainTx, tenant_id: TenantId) -> Result<()> {
    tx.execute("DELETE FROM spare_databases WHERE tenant_id = $1", params![tenant_id]).await?;
    Ok(())
}

/// All warm databases, oldest first.
pub async fn list(connection: &mut Connection<Main>) -> Result<Vec<WarmDatabase>> {
    let rows =
        connection.query("SELECT tenant_id, server, schema_digest, is_ready FROM spare_databases ORDER BY created_at", params![]).await?;
    rows.into_iter()
        .map(|mut row| Ok(WarmDatabase { tenant_id: row.take()?, server: row.take()?, schema_digest: row.take()?, is_ready: row.take()? }))
        .collect()
}
