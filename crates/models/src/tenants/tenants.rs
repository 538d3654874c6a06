//! Tenants.

use database::{Connection, Main, MainTx, Result, Row, params};
use domain::{DatabaseName, Limit, Provisioning, QuotaLimits, Tenant, TenantId, TenantLocation, TenantName, Timestamp, UserId};

use crate::{single, word};

/// The columns that [`tenant`] reads.
macro_rules! columns {
    () => {
        "id, name, server, database_name, provisioning, schema_version, quarantined_at, writes_paused_at, max_bytes, max_documents, is_active, \
         created_at, updated_at, created_by"
    };
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT ", columns!(), " FROM tenants ", $rest)
    };
}

macro_rules! returning {
    ($statement:literal) => {
        concat!($statement, " RETURNING ", columns!())
    };
}

/// The unique constraint on the database name.
pub const DATABASE_NAME_KEY: &str = "tenants_database_name_key";

/// Adds a tenant. Violates [`DATABASE_NAME_KEY`] if its database name is taken.
pub async fn insert(tx: &mut MainTx, tenant: &Tenant) -> Result<()> {
    tx.execute(
        "INSERT INTO tenants (id, name, server, database_name, provisioning, schema_version, is_active, created_at, updated_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        params![
            tenant.id,
            tenant.name.as_str(),
            tenant.location.server.as_str(),
            tenant.location.database.as_str(),
            tenant.provisioning.as_str(),
            tenant.schema_version,
            tenant.is_active,
            tenant.created_at,
            tenant.updated_at,
            tenant.created_by
        ],
    )
    .await?;
    Ok(())
}

/// The tenant with this id.
pub async fn find(connection: &mut Connection<Main>, id: TenantId) -> Result<Option<Tenant>> {
    let found = connection.query_opt(select!("WHERE id = $1"), params![id]).await?;
    found.map(|mut row| tenant(&mut row)).transpose()
}

/// The number of active tenants that a user has created. Those that are being created count.
pub async fn count_created_by(connection: &mut Connection<Main>, user_id: UserId) -> Result<u64> {
    let counted = "SELECT COUNT(*) FROM tenants WHERE created_by = $1 AND is_active AND provisioning NOT IN ('failed', 'deleting')";
    single(connection.query_one(counted, params![user_id]).await?)
}

/// Finds the tenant with this id, unless it is being deleted, and locks its row until the transaction ends, so that concurrent
/// changes of its members wait.
pub async fn lock(tx: &mut MainTx, id: TenantId) -> Result<Option<Tenant>> {
    let found = tx.query_opt(select!("WHERE id = $1 AND provisioning <> 'deleting' FOR UPDATE"), params![id]).await?;
    found.map(|mut row| tenant(&mut row)).transpose()
}

/// The tenant whose database has this name.
pub async fn find_by_database(connection: &mut Connection<Main>, database: &str) -> Result<Option<Tenant>> {
    let found = connection.query_opt(select!("WHERE database_name = $1"), params![database]).await?;
    found.map(|mut row| tenant(&mut row)).transpose()
}

/// The tenants with this name, in the order of their creation.
pub async fn list_by_name(connection: &mut Connection<Main>, name: &str) -> Result<Vec<Tenant>> {
    let rows = connection.query(select!("WHERE name = $1 ORDER BY id"), params![name]).await?;
    rows.into_iter().map(|mut row| tenant(&mut row)).collect()
}

/// All tenants, in the order of their creation.
pub async fn list(connection: &mut Connection<Main>) -> Result<Vec<Tenant>> {
    let rows = connection.query(select!("ORDER BY id"), params![]).await?;
    rows.into_iter().map(|mut row| tenant(&mut row)).collect()
}

/// Tenants whose provisioning is incomplete and made no progress since `since`.
pub async fn list_unfinished(connection: &mut Connection<Main>, since: Timestamp) -> Result<Vec<Tenant>> {
    let rows = connection
        .query(
            select!("WHERE provisioning <> 'active' AND provisioning <> 'deleting' AND updated_at < $1 ORDER BY updated_at"),
            params![since],
        )
        .await?;
    rows.into_iter().map(|mut row| tenant(&mut row)).collect()
}

/// Tenants whose deletion is incomplete and made no progress since `since`. The redundant `<> 'active'` makes SQLite use the
/// index.
pub async fn list_deleting(connection: &mut Connection<Main>, since: Timestamp) -> Result<Vec<Tenant>> {
    let rows = connection
        .query(
            select!("WHERE provisioning <> 'active' AND provisioning = 'deleting' AND updated_at < $1 ORDER BY updated_at"),
            params![since],
        )
        .await?;
    rows.into_iter().map(|mut row| tenant(&mut row)).collect()
}

/// The number of tenants on each server. Servers without tenants are not listed.
pub async fn count_by_server(connection: &mut Connection<Main>) -> Result<Vec<(String, u64)>> {
    let rows = connection.query("SELECT server, COUNT(*) FROM tenants GROUP BY server", params![]).await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?))).collect()
}

/// Changes the fields that are given. Returns the updated tenant.
pub async fn update(
    tx: &mut MainTx,
    id: TenantId,
    name: Option<&TenantName>,
    is_active: Option<bool>,
    now: Timestamp,
) -> Result<Option<Tenant>> {
    let changed = tx
        .query_opt(
            returning!("UPDATE tenants SET name = COALESCE($2, name), is_active = COALESCE($3, is_active), updated_at = $4 WHERE id = $1"),
            params![id, name.map(TenantName::as_str), is_active, now],
        )
        .await?;
    changed.map(|mut row| tenant(&mut row)).transpose()
}

/// Sets a tenant's limits. Returns the updated tenant.
pub async fn set_limits(tx: &mut MainTx, id: TenantId, limits: QuotaLimits, now: Timestamp) -> Result<Option<Tenant>> {
    let changed = tx
        .query_opt(
            returning!(
                "UPDATE tenants SET max_bytes = $2, max_documents = $3, updated_at = $4 WHERE id = $1 AND provisioning <> 'deleting'"
            ),
            params![id, limits.bytes.stored(), limits.documents.stored(), now],
        )
        .await?;
    changed.map(|mut row| tenant(&mut row)).transpose()
}

/// Sets the provisioning state. Returns whether this call changed it: an active, failed or deleting tenant keeps its state (but a
/// failed one may fail again), so of concurrent calls that finish the provisioning one gets true.
pub async fn set_provisioning(tx: &mut MainTx, id: TenantId, state: Provisioning, schema_version: i64, now: Timestamp) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE tenants SET provisioning = $2, schema_version = $3, updated_at = $4
             WHERE id = $1 AND provisioning <> 'active' AND provisioning <> 'deleting' AND (provisioning <> 'failed' OR $2 = 'failed')",
            params![id, state.as_str(), schema_version, now],
        )
        .await?;
    Ok(changed == 1)
}

/// Removes a tenant whose provisioning failed, with its memberships.
pub async fn delete_failed(tx: &mut MainTx, id: TenantId) -> Result<()> {
    tx.execute("DELETE FROM tenants WHERE id = $1 AND provisioning = 'failed'", params![id]).await?;
    Ok(())
}

/// Marks a tenant for deletion. Returns the updated tenant, or nothing if it was marked before or does not exist.
pub async fn mark_deleting(tx: &mut MainTx, id: TenantId, now: Timestamp) -> Result<Option<Tenant>> {
    let marked = tx
        .query_opt(
            returning!(
                "UPDATE tenants SET provisioning = 'deleting', is_active = $2, updated_at = $3 WHERE id = $1 AND provisioning <> 'deleting'"
            ),
            params![id, false, now],
        )
        .await?;
    marked.map(|mut row| tenant(&mut row)).transpose()
}

/// Removes a tenant that is marked for deletion, with its memberships. Returns the removed tenant.
pub async fn delete_marked(tx: &mut MainTx, id: TenantId) -> Result<Option<Tenant>> {
    let deleted = tx.query_opt(returning!("DELETE FROM tenants WHERE id = $1 AND provisioning = 'deleting'"), params![id]).await?;
    deleted.map(|mut row| tenant(&mut row)).transpose()
}

/// Pauses writes to a tenant's database from a time on, or resumes them.
pub async fn set_writes_paused(tx: &mut MainTx, id: TenantId, since: Option<Timestamp>) -> Result<()> {
    tx.execute("UPDATE tenants SET writes_paused_at = $2 WHERE id = $1", params![id, since]).await?;
    Ok(())
}

/// Records that a tenant's database, with this schema version, is now on another server. Returns whether the tenant was active on
/// server `from`.
pub async fn relocate(tx: &mut MainTx, id: TenantId, from: &str, to: &str, schema_version: i64) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE tenants SET server = $3, schema_version = $4 WHERE id = $1 AND server = $2 AND provisioning = 'active'",
            params![id, from, to, schema_version],
        )
        .await?;
    Ok(changed == 1)
}

/// Records the schema version of a tenant's database and lifts the quarantine. An older version never replaces a newer one, and a
/// location that the tenant has left is ignored.
pub async fn set_schema_version(tx: &mut MainTx, location: &TenantLocation, schema_version: i64) -> Result<()> {
    tx.execute(
        "UPDATE tenants SET schema_version = $3, quarantined_at = NULL WHERE id = $1 AND server = $2 AND schema_version <= $3",
        params![location.tenant_id, location.server.as_str(), schema_version],
    )
    .await?;
    Ok(())
}

/// Quarantines a tenant, if its database is still at this location and has the schema version that could not be migrated.
pub async fn quarantine(tx: &mut MainTx, location: &TenantLocation, schema_version: i64, now: Timestamp) -> Result<()> {
    tx.execute(
        "UPDATE tenants SET quarantined_at = $4 WHERE id = $1 AND server = $2 AND schema_version = $3 AND quarantined_at IS NULL",
        params![location.tenant_id, location.server.as_str(), schema_version, now],
    )
    .await?;
    Ok(())
}

/// Lifts the quarantine of a tenant. Returns whether the tenant was quarantined.
pub async fn release(tx: &mut MainTx, id: TenantId) -> Result<bool> {
    Ok(tx.execute("UPDATE tenants SET quarantined_at = NULL WHERE id = $1 AND quarantined_at IS NOT NULL", params![id]).await? == 1)
}

/// The active tenants that have an older schema version or are quarantined, in the order of their creation.
pub async fn list_before_version(connection: &mut Connection<Main>, schema_version: i64) -> Result<Vec<Tenant>> {
    let rows = connection
        .query(
            select!("WHERE (schema_version < $1 OR quarantined_at IS NOT NULL) AND provisioning = 'active' ORDER BY id"),
            params![schema_version],
        )
        .await?;
    rows.into_iter().map(|mut row| tenant(&mut row)).collect()
}

/// The number of active tenants by schema version, in ascending order.
pub async fn count_by_schema_version(connection: &mut Connection<Main>) -> Result<Vec<(i64, u64)>> {
    let rows = connection
        .query("SELECT schema_version, COUNT(*) FROM tenants WHERE provisioning = 'active' GROUP BY schema_version ORDER BY 1", params![])
        .await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?))).collect()
}

pub(crate) fn tenant(row: &mut Row) -> Result<Tenant> {
    let id = row.take()?;
    let name = row.take()?;
    let location = TenantLocation { tenant_id: id, server: row.take()?, database: word(row, DatabaseName::parse)? };
    Ok(Tenant {
        id,
        name,
        location,
        provisioning: word(row, Provisioning::parse)?,
        schema_version: row.take()?,
        quarantined_at: row.take()?,
        writes_paused_at: row.take()?,
        limits: QuotaLimits { bytes: Limit::from_stored(row.take()?), documents: Limit::from_stored(row.take()?) },
        is_active: row.take()?,
        created_at: row.take()?,
        updated_at: row.take()?,
        created_by: row.take()?,
    })
}
