//! Members of tenants and their roles.

use domain::{Conflict, Email, Error, Membership, ResourceKind, Result, Role, TenantId, User, UserId};
use models::{MainTx, members, tenants, users};
use serde_json::json;

use crate::{
    Caller, Core, UserServices,
    access::{authorize, require},
    access_cache::commit_access_change,
    events::events::{EventTx, audit_event, begin_main},
};

/// Identifies the user to add as a member.
#[derive(Clone, Debug)]
pub enum NewMember {
    /// By user id.
    Id(UserId),
    /// By email address.
    Email(Email),
}

impl UserServices {
    /// Adds a user to the caller's tenant.
    ///
    /// # Errors
    /// [`Conflict::AlreadyMember`]; [`Error::NotFound`] when there is no such active user.
    pub async fn add_member(&self, caller: &Caller, tenant_id: TenantId, who: NewMember, role: Role) -> Result<(Membership, User)> {
        authorize(&self.core, caller, tenant_id, Role::Admin).await?;
        let now = self.core.clock().now();
        let mut tx = begin_main(&self.core).await?;
        tenants::lock(&mut tx, tenant_id).await?.ok_or(Error::NotFound(ResourceKind::Tenant))?;
        let user = match who {
            NewMember::Id(id) => users::find(&mut tx, id).await?,
            NewMember::Email(email) => users::find_by_email(&mut tx, &email).await?,
        };
        let user = user.filter(|user| user.is_active).ok_or(Error::NotFound(ResourceKind::User))?;
        if let Some(already) = members::find(&mut tx, tenant_id, user.id).await? {
            return Err(Error::Conflict(Conflict::AlreadyMember { role: already.role }));
        }
        let membership = Membership { user_id: user.id, tenant_id, role, joined_at: now };
        members::insert(&mut tx, &membership).await?;
        commit_member_change(&self.core, tx, caller, "member.added", &membership, Some(role)).await?;
        Ok((membership, user))
    }

    /// Changes a member's role.
    ///
    /// # Errors
    /// [`Conflict::LastAdmin`] when the tenant would be left without an admin.
    pub async fn change_role(&self, caller: &Caller, tenant_id: TenantId, user_id: UserId, role: Role) -> Result<(Membership, User)> {
        authorize(&self.core, caller, tenant_id, Role::Admin).await?;
        let mut tx = begin_main(&self.core).await?;
        let before = lock_member(&mut tx, tenant_id, user_id).await?;
        let user = users::find(&mut tx, user_id).await?.ok_or(Error::NotFound(ResourceKind::Member))?;
        if role == before.role {
            return Ok((before, user));
        }
        if role < Role::Admin {
            keep_an_admin(&mut tx, &before).await?;
        }
        members::set_role(&mut tx, tenant_id, user_id, role).await?;
        commit_member_change(&self.core, tx, caller, "member.role_changed", &before, Some(role)).await?;
        Ok((Membership { role, ..before }, user))
    }

    /// Removes a member: an admin may remove any member, other members only themselves.
    ///
    /// # Errors
    /// [`Conflict::LastAdmin`] when the tenant would be left without an admin.
    pub async fn remove_member(&self, caller: &Caller, tenant_id: TenantId, user_id: UserId) -> Result<()> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        if user_id != caller.user_id() {
            require(tenant.role(), Role::Admin)?;
        }
        let mut tx = begin_main(&self.core).await?;
        let member = lock_member(&mut tx, tenant_id, user_id).await?;
        keep_an_admin(&mut tx, &member).await?;
        members::delete(&mut tx, tenant_id, user_id).await?;
        commit_member_change(&self.core, tx, caller, "member.removed", &member, None).await
    }
}

/// Commits a membership change with its audit event; `role` is the new role, none after a removal.
async fn commit_member_change(
    core: &Core,
    mut tx: EventTx<models::Main>,
    caller: &Caller,
    action: &str,
    member: &Membership,
    role: Option<Role>,
) -> Result<()> {
    let mut data = json!({ "member_id": member.user_id.to_string(), "role": role.map(Role::as_str) });
    if role != Some(member.role) {
        data["former_role"] = member.role.as_str().into();
    }
    tx.emit(&audit_event(core, action, Some(member.tenant_id), Some(caller.user_id()), data));
    commit_access_change(core, tx, member.user_id).await
}

/// A member, with the tenant locked: no other transaction changes its members until this one ends.
async fn lock_member(tx: &mut MainTx, tenant_id: TenantId, user_id: UserId) -> Result<Membership> {
    tenants::lock(tx, tenant_id).await?.ok_or(Error::NotFound(ResourceKind::Tenant))?;
    members::find(tx, tenant_id, user_id).await?.ok_or(Error::NotFound(ResourceKind::Member))
}

/// Fails when the member is the tenant's only admin.
async fn keep_an_admin(tx: &mut MainTx, member: &Membership) -> Result<()> {
    let is_needed = member.role == Role::Admin && members::count_other_admins(tx, member).await? == 0;
    if is_needed { Err(Error::Conflict(Conflict::LastAdmin)) } else { Ok(()) }
}
