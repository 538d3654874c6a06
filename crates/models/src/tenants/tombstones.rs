//! Tombstones: what remains of permanently deleted tenants.

use database::{Connection, Main, MainTx, Result, Row, params};
use domain::{DatabaseName, TenantId, TenantLocation, Timestamp, Tombstone};

use crate::word;

/// Selects the columns that [`tombstone`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT tenant_id, server, database_name, name, created_at, deleted_at, deleted_by FROM tenant_tombstones ", $rest)
    };
}

/// Adds a tombstone.
pub async fn insert(tx: &mut MainTx, tombstone: &Tombstone) -> Result<()> {
    tx.execute(
        "INSERT INTO tenant_tombstones (tenant_id, server, database_name, name, created_at, deleted_at, deleted_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        params![
            tombstone.location.tenant_id,
            tombstone.location.server.as_str(),
            tombstone.location.database.as_str(),
            tombstone.name.as_str(),
            tombstone.created_at,
            tombstone.deleted_at,
            tombstone.deleted_by
        ],
    )
    .await?;
    Ok(())
}

/// The tombstone of the tenant with this id.
pub async fn find(connection: &mut Connection<Main>, tenant_id: TenantId) -> Result<Option<Tombstone>> {
    connection.query_opt(select!("WHERE tenant_id = $1"), params![tenant_id]).await?.map(tombstone).transpose()
}

/// The tombstones of the tenants deleted at `since` or later, in the order of their deletion.
pub async fn list_since(connection: &mut Connection<Main>, since: Timestamp) -> Result<Vec<Tombstone>> {
    let rows = connection.query(select!("WHERE deleted_at >= $1 ORDER BY deleted_at"), params![since]).await?;
    rows.into_iter().map(tombstone).collect()
}

fn tombstone(mut row: Row) -> Result<Tombstone> {
    let location = TenantLocation { tenant_id: row.take()?, server: row.take()?, database: word(&mut row, DatabaseName::parse)? };
    Ok(Tombstone { location, name: row.take()?, created_at: row.take()?, deleted_at: row.take()?, deleted_by: row.take()? })
}
