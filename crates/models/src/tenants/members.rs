//! Memberships: the associations of users with tenants.

use database::{Connection, Main, MainTx, Result, Row, Statement, params};
use domain::{Member, Membership, Page, PageRequest, Role, Tenant, TenantId, User, UserId};

use crate::{accounts::users::user, page, single, tenants::tenant, word};

/// Selects the columns that [`member_with_tenant`] reads.
macro_rules! select_with_tenant {
    ($rest:literal) => {
        concat!(
            "SELECT m.user_id, m.tenant_id, m.role, m.joined_at, t.id, t.name, t.server, \
             t.database_name, t.provisioning, t.schema_version, t.quarantined_at, t.writes_paused_at, t.max_bytes, t.max_documents, \
             t.is_active, t.created_at, t.updated_at, t.created_by \
             FROM user_tenant_associations m JOIN tenants t ON t.id = m.tenant_id ",
            $rest
        )
    };
}

/// The primary key constraint: a user is a member of a tenant at most once.
pub const PRIMARY_KEY: &str = "user_tenant_associations_pkey";

/// Adds a member. Violates [`PRIMARY_KEY`] if the user is a member already.
pub async fn insert(tx: &mut MainTx, membership: &Membership) -> Result<()> {
    tx.execute(
        "INSERT INTO user_tenant_associations (user_id, tenant_id, role, joined_at) VALUES ($1, $2, $3, $4)",
        params![membership.user_id, membership.tenant_id, membership.role.as_str(), membership.joined_at],
    )
    .await?;
    Ok(())
}

/// The membership of a user in a tenant.
pub async fn find(connection: &mut Connection<Main>, tenant_id: TenantId, user_id: UserId) -> Result<Option<Membership>> {
    let found = connection
        .query_opt(
            "SELECT user_id, tenant_id, role, joined_at FROM user_tenant_associations WHERE user_id = $1 AND tenant_id = $2",
            params![user_id, tenant_id],
        )
        .await?;
    found.map(|mut row| membership(&mut row)).transpose()
}

/// The membership of a user in a tenant, with the tenant. A deactivated user has none, since background work and signed URLs
/// check no session.
pub async fn find_with_tenant(connection: &mut Connection<Main>, tenant_id: TenantId, user_id: UserId) -> Result<Option<Member<Tenant>>> {
    let found = connection
        .query_opt(
            select_with_tenant!("JOIN users u ON u.id = m.user_id AND u.is_active WHERE m.user_id = $1 AND m.tenant_id = $2"),
            params![user_id, tenant_id],
        )
        .await?;
    found.map(member_with_tenant).transpose()
}

/// The user's tenants whose database is ready, newest membership first.
pub async fn list_tenants(connection: &mut Connection<Main>, user_id: UserId, request: PageRequest) -> Result<Page<Member<Tenant>>> {
    let count = Statement::new(
        "SELECT COUNT(*) FROM user_tenant_associations m JOIN tenants t ON t.id = m.tenant_id
         WHERE m.user_id = $1 AND t.provisioning = 'active'",
        params![user_id],
    );
    let items = Statement::new(
        select_with_tenant!(
            "WHERE m.user_id = $1 AND t.provisioning = 'active'
             ORDER BY m.joined_at DESC, m.tenant_id DESC LIMIT $2 OFFSET $3"
        ),
        params![user_id, request.per_page(), request.offset()],
    );
    page(connection, count, items, request, member_with_tenant).await
}

/// The user's active tenants whose database is ready, newest membership first.
pub async fn list_active_tenants(connection: &mut Connection<Main>, user_id: UserId, request: PageRequest) -> Result<Page<Member<Tenant>>> {
    let count = Statement::new(
        "SELECT COUNT(*) FROM user_tenant_associations m JOIN tenants t ON t.id = m.tenant_id
         WHERE m.user_id = $1 AND t.provisioning = 'active' AND t.is_active",
        params![user_id],
    );
    let items = Statement::new(
        select_with_tenant!(
            "WHERE m.user_id = $1 AND t.provisioning = 'active' AND t.is_active
             ORDER BY m.joined_at DESC, m.tenant_id DESC LIMIT $2 OFFSET $3"
        ),
        params![user_id, request.per_page(), request.offset()],
    );
    page(connection, count, items, request, member_with_tenant).await
}

/// The members of a tenant, in the order in which they joined.
pub async fn list_users(connection: &mut Connection<Main>, tenant_id: TenantId) -> Result<Vec<Member<User>>> {
    let rows = connection
        .query(
            "SELECT m.user_id, m.tenant_id, m.role, m.joined_at,
                    u.id, u.first_name, u.last_name, u.email, u.is_active, u.created_at, u.updated_at, u.created_by
             FROM user_tenant_associations m JOIN users u ON u.id = m.user_id
             WHERE m.tenant_id = $1 ORDER BY m.joined_at, m.user_id",
            params![tenant_id],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok(Member { membership: membership(&mut row)?, of: user(row)? })).collect()
}

/// The number of members of each tenant. Tenants without members are not listed.
pub async fn count_by_tenant(connection: &mut Connection<Main>) -> Result<Vec<(TenantId, u64)>> {
    let rows = connection.query("SELECT tenant_id, COUNT(*) FROM user_tenant_associations GROUP BY tenant_id", params![]).await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?))).collect()
}

/// The number of active admins of a tenant other than this member.
pub async fn count_other_admins(connection: &mut Connection<Main>, member: &Membership) -> Result<u64> {
    let row = connection
        .query_one(
            "SELECT COUNT(*) FROM user_tenant_associations m JOIN users u ON u.id = m.user_id
             WHERE m.tenant_id = $1 AND m.user_id <> $2 AND m.role = 'admin' AND u.is_active",
            params![member.tenant_id, member.user_id],
        )
        .await?;
    single(row)
}

/// Changes a member's role.
pub async fn set_role(tx: &mut MainTx, tenant_id: TenantId, user_id: UserId, role: Role) -> Result<()> {
    tx.execute(
        "UPDATE user_tenant_associations SET role = $3 WHERE user_id = $1 AND tenant_id = $2",
        params![user_id, tenant_id, role.as_str()],
    )
    .await?;
    Ok(())
}

/// Removes a member.
pub async fn delete(tx: &mut MainTx, tenant_id: TenantId, user_id: UserId) -> Result<()> {
    tx.execute("DELETE FROM user_tenant_associations WHERE user_id = $1 AND tenant_id = $2", params![user_id, tenant_id]).await?;
    Ok(())
}

fn membership(row: &mut Row) -> Result<Membership> {
    Ok(Membership { user_id: row.take()?, tenant_id: row.take()?, role: word(row, Role::parse)?, joined_at: row.take()? })
}

fn member_with_tenant(mut row: Row) -> Result<Member<Tenant>> {
    Ok(Member { membership: membership(&mut row)?, of: tenant(&mut row)? })
}
