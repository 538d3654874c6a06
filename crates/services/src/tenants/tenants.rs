//! Creating, reading and changing tenants, for their members.

use std::sync::Arc;

use domain::{
    Conflict, Error, EventKind, ForbiddenReason, Member, Page, PageRequest, PastRequest, Provisioning, ResourceKind, Result, Role, Tenant,
    TenantId, TenantName, User, UserId,
};
use models::{idempotency, members, tenants};
use serde_json::json;

use crate::{
    Caller, Core, IdempotentOutcome, IdempotentRequest, UserServices,
    access::{authorize, membership, require},
    access_cache::commit_access_change,
    events::events::{audit_event, begin_main, event},
    idempotency::{find_past_request, fingerprint},
    tenants::provisioning::create_on_any_server,
};

/// A tenant as one of its members sees it.
#[derive(Clone, Debug)]
pub struct TenantDetails {
    /// The tenant with the caller's own membership.
    pub tenant: Arc<Member<Tenant>>,
    /// All members, in the order in which they joined.
    pub members: Vec<Member<User>>,
}

impl UserServices {
    /// The caller's tenants, active or not, newest membership first.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_tenants(&self, caller: &Caller, request: PageRequest) -> Result<Page<Member<Tenant>>> {
        Ok(members::list_tenants(&mut self.core.main().read().await?, caller.user_id(), request).await?)
    }

    /// Creates a tenant with a database of its own and the caller as its admin. It is ready when this returns.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no server can create the database; then nothing of the tenant stays.
    /// [`ForbiddenReason::TooManyTenants`] when the caller has created as many active ones as are allowed.
    /// [`Conflict::IdempotencyKeyInUse`] while a request with this key is in flight.
    pub async fn create_tenant(
        &self,
        caller: &Caller,
        name: &TenantName,
        once: Option<&IdempotentRequest<'_, Member<Tenant>>>,
    ) -> Result<IdempotentOutcome<Member<Tenant>>> {
        let user_id = caller.user_id();
        let limit = Some(self.core.settings().tenants_per_user);
        let Some(once) = once else {
            return Ok(IdempotentOutcome::Fresh(create_on_any_server(&self.core, user_id, name, limit, None).await?));
        };
        let fingerprint = fingerprint(&[b"tenant", name.as_str().as_bytes()]);
        let mut connection = self.core.main().read().await?;
        let past = find_past_request(&self.core, &mut connection, user_id, &once.key, fingerprint).await?;
        let created = match past {
            None => {
                drop(connection);
                create_on_any_server(&self.core, user_id, name, limit, Some((&once.key, fingerprint))).await?
            }
            Some(PastRequest { answer: Some(answer), .. }) => return Ok(IdempotentOutcome::Replayed(answer)),
            // Another request is creating it, or created it and died before the response was stored.
            Some(PastRequest { resource_id, answer: None, .. }) => {
                let found = members::find_with_tenant(&mut connection, resource_id.into(), user_id).await?;
                let created = found.filter(|member| member.of.provisioning == Provisioning::Active);
                created.ok_or(Error::Conflict(Conflict::IdempotencyKeyInUse))?
            }
        };
        let mut tx = self.core.main().begin().await?;
        idempotency::set_answer(&mut tx, user_id, &once.key, created.of.id.uuid(), &(once.answer)(&created)).await?;
        tx.commit().await?;
        Ok(IdempotentOutcome::Fresh(created))
    }

    /// A tenant with its members. An inactive tenant is visible to its admins only.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the caller is a member.
    pub async fn get_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<TenantDetails> {
        let tenant = membership(&self.core, caller, tenant_id).await?;
        if !tenant.of.is_active && tenant.membership.role < Role::Admin {
            return Err(Error::Forbidden(ForbiddenReason::TenantInactive));
        }
        let members = members::list_users(&mut self.core.main().read().await?, tenant_id).await?;
        Ok(TenantDetails { tenant, members })
    }

    /// Changes the given properties of a tenant. An admin may also activate an inactive tenant.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller is an admin.
    pub async fn update_tenant(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        name: Option<TenantName>,
        is_active: Option<bool>,
    ) -> Result<Member<Tenant>> {
        let known = membership(&self.core, caller, tenant_id).await?;
        if !known.of.is_active && known.membership.role < Role::Admin {
            return Err(Error::Forbidden(ForbiddenReason::TenantInactive));
        }
        require(known.membership.role, Role::Admin)?;
        let tenant = change_tenant(&self.core, tenant_id, Some(caller.user_id()), name.as_ref(), is_active).await?;
        Ok(Member { membership: known.membership, of: tenant })
    }

    /// Deactivates a tenant. None of its data is deleted.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller is an admin, or when the tenant is inactive already.
    pub async fn deactivate_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<()> {
        authorize(&self.core, caller, tenant_id, Role::Admin).await?;
        change_tenant(&self.core, tenant_id, Some(caller.user_id()), None, Some(false)).await.map(drop)
    }
}

/// Changes a tenant on behalf of an admin or the operator.
pub(crate) async fn change_tenant(
    core: &Core,
    tenant_id: TenantId,
    user_id: Option<UserId>,
    name: Option<&TenantName>,
    is_active: Option<bool>,
) -> Result<Tenant> {
    let now = core.clock().now();
    let mut tx = begin_main(core).await?;
    let before = tenants::lock(&mut tx, tenant_id).await?.ok_or(Error::NotFound(ResourceKind::Tenant))?;
    let tenant = tenants::update(&mut tx, tenant_id, name, is_active, now).await?.ok_or(Error::NotFound(ResourceKind::Tenant))?;
    let data = json!({ "name": tenant.name, "former_name": before.name });
    if before.is_active && !tenant.is_active {
        tx.emit(&event(core, EventKind::TenantDeleted, Some(tenant_id), user_id, &json!({ "name": tenant.name })));
    }
    let action = match (before.is_active, tenant.is_active) {
        (true, false) => "tenant.deactivated",
        (false, true) => "tenant.activated",
        _ => "tenant.renamed",
    };
    if action != "tenant.renamed" || before.name != tenant.name {
        tx.emit(&audit_event(core, action, Some(tenant_id), user_id, data));
    }
    commit_access_change(core, tx, tenant_id).await?;
    Ok(tenant)
}
