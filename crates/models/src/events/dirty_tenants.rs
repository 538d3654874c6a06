//! Dirty flags: tenants whose outbox may contain unpublished events.

use database::{Connection, Main, MainTx, Result, params};
use domain::{TenantId, Timestamp};

/// The dirty flag of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyFlag {
    /// The tenant.
    pub tenant_id: TenantId,
    /// When the flag was last set.
    pub marked_at: Timestamp,
}

/// Sets or renews the dirty flag of a tenant.
pub fn mark(tx: &mut MainTx, tenant_id: TenantId, now: Timestamp) {
    tx.defer(
        "INSERT INTO dirty_tenants (tenant_id, marked_at) VALUES ($1, $2)
         ON CONFLICT (tenant_id) DO UPDATE SET marked_at = $2 WHERE dirty_tenants.marked_at < $2",
        params![tenant_id, now],
    );
}

/// The dirty flags set before a time, oldest first, starting after `after`.
pub async fn list_before(
    connection: &mut Connection<Main>,
    before: Timestamp,
    after: Option<DirtyFlag>,
    limit: u32,
) -> Result<Vec<DirtyFlag>> {
    let rows = connection
        .query(
            "SELECT tenant_id, marked_at FROM dirty_tenants
             WHERE marked_at < $1 AND (CAST($2 AS TIMESTAMPTZ) IS NULL OR (marked_at, tenant_id) > ($2, $3))
             ORDER BY marked_at, tenant_id LIMIT $4",
            params![before, after.map(|mark| mark.marked_at), after.map(|mark| mark.tenant_id), limit],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok(DirtyFlag { tenant_id: row.take()?, marked_at: row.take()? })).collect()
}

/// Clears a dirty flag, unless it was renewed since.
pub fn clear(tx: &mut MainTx, mark: DirtyFlag) {
    tx.defer("DELETE FROM dirty_tenants WHERE tenant_id = $1 AND marked_at = $2", params![mark.tenant_id, mark.marked_at]);
}

/// Clears the dirty flag of a deleted tenant, whenever it was set.
pub fn remove(tx: &mut MainTx, tenant_id: TenantId) {
    tx.defer("DELETE FROM dirty_tenants WHERE tenant_id = $1", params![tenant_id]);
}
