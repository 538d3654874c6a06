//! Authentication and authorization: the only way to a tenant's data.
//!
//! Sessions, memberships and roles are cached in the process. Every change of them is numbered in the main database in commit
//! order. Each instance follows that log, and trusts its cache only while it does. So a change is effective within one second in
//! every instance, and immediately in the instance that made it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{
    Dependency, Error, ForbiddenReason, Member, Provisioning, Quota, ResourceKind, Result, Role, SessionId, Tenant, TenantId, TokenKind,
    TokenProblem, UnavailableReason, UserId,
};
use models::{Connection, TenantDatabase};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    Core, UserServices,
    events::events::{EventTx, audit_event, begin_in, begin_main},
    tenants::migrations::ensure_schema,
};

/// How long a write waits while its tenant's database moves to another server, and how often it polls.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A caller with a verified access token and a live session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    user_id: UserId,
    session_id: SessionId,
}

impl Caller {
    /// A user on whose behalf background work continues. It has the permissions that the user has at that time.
    pub(crate) fn of(user_id: UserId) -> Self {
        Self { user_id, session_id: Uuid::nil().into() }
    }

    /// The caller's user id.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    pub(crate) fn session_id(&self) -> SessionId {
        self.session_id
    }
}

/// A caller authorized in a tenant. Only this opens a tenant's database for a request, so a query can't reach another tenant's.
pub(crate) struct TenantCaller {
    caller: Caller,
    role: Role,
    quota: Quota,
    database: TenantDatabase,
    /// Whether the tenant's database accepts writes; false while it moves to another server.
    may_write: bool,
}

impl TenantCaller {
    pub(crate) fn user_id(&self) -> UserId {
        self.caller.user_id
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn tenant_id(&self) -> TenantId {
        self.database.tenant_id()
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The tenant's storage quota.
    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }

    pub(crate) fn database(&self) -> &TenantDatabase {
        &self.database
    }

    /// A read connection to the tenant's database.
    pub(crate) async fn read(&self) -> Result<Connection<models::Tenant>> {
        Ok(self.database.read().await?)
    }
}

impl UserServices {
    /// Authenticates the caller.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when the token is missing, invalid, expired or revoked.
    pub async fn authenticate(&self, access_token: Option<&str>) -> Result<Caller> {
        let token = access_token.ok_or(Error::Unauthenticated(TokenProblem::Missing))?;
        let verified = self.core.parts.tokens.verify(token, TokenKind::Access, self.core.clock().now());
        let claims = verified.map_err(Error::Unauthenticated)?;
        let living = self.core.access.session_user(claims.session_id, claims.user_id).await?;
        if living == Some(claims.user_id) {
            Ok(Caller { user_id: claims.user_id, session_id: claims.session_id })
        } else {
            Err(Error::Unauthenticated(TokenProblem::Revoked))
        }
    }

    /// Whether the caller is a member of a tenant.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn is_member(&self, caller: &Caller, tenant_id: TenantId) -> Result<bool> {
        Ok(self.core.access.member(caller.user_id, tenant_id).await?.is_some())
    }

    /// Checks that a tenant's database is reachable, for a member.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not reachable.
    pub async fn check_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<()> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        models::documents::count(&mut tenant.read().await?).await.map(drop)?;
        Ok(())
    }
}

/// Authorizes a caller in an active tenant, with at least the needed role.
pub(crate) async fn authorize(core: &Core, caller: &Caller, tenant_id: TenantId, needed: Role) -> Result<TenantCaller> {
    let member = membership(core, caller, tenant_id).await?;
    if !member.of.is_active {
        return Err(Error::Forbidden(ForbiddenReason::TenantInactive));
    }
    require(member.membership.role, needed)?;
    ensure_schema(core, &member.of).await?;
    let database = core.parts.tenant_databases.open(&member.of.location)?;
    let may_write = member.of.writes_paused_at.is_none();
    let quota = member.of.limits.or(core.settings().quota);
    Ok(TenantCaller { caller: *caller, role: member.membership.role, quota, database, may_write })
}

/// Authorizes a caller and begins a transaction in the tenant's database. Waits while the database moves to another server.
pub(crate) async fn begin(
    core: &Core,
    caller: &Caller,
    tenant_id: TenantId,
    needed: Role,
) -> Result<(TenantCaller, EventTx<models::Tenant>)> {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        let tenant = authorize(core, caller, tenant_id, needed).await?;
        if tenant.may_write {
            let tx = begin_in(core, &tenant.database).await?;
            return Ok((tenant, tx));
        }
        if Instant::now() > deadline {
            return Err(Error::TenantUnavailable(UnavailableReason::Moving));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Records an audit event that accompanies no change: in the tenant's database or, while that moves, in the main database.
pub(crate) async fn record(core: &Core, tenant: &TenantCaller, action: &str, data: Value) -> Result<()> {
    let event = audit_event(core, action, Some(tenant.tenant_id()), Some(tenant.user_id()), data);
    if tenant.may_write {
        begin_in(core, &tenant.database).await?.emit_and_commit(&event).await
    } else {
        begin_main(core).await?.emit_and_commit(&event).await
    }
}

/// The caller's membership in a tenant, active or not. For a caller who is no member, the tenant does not exist.
pub(crate) async fn membership(core: &Core, caller: &Caller, tenant_id: TenantId) -> Result<Arc<Member<Tenant>>> {
    let member = core.access.member(caller.user_id, tenant_id).await?.ok_or(Error::NotFound(ResourceKind::Tenant))?;
    match member.of.provisioning {
        Provisioning::Active => Ok(member),
        Provisioning::Deleting => Err(Error::NotFound(ResourceKind::Tenant)),
        _ => Err(Error::Unavailable {
            dependency: Dependency::TenantDatabase,
            source: "the tenant's database is still being created".into(),
        }),
    }
}

/// Authorizes an upload's caller again and begins its transaction. An upload may take long enough for the tenant to be deleted or
/// moved, or for the caller to lose membership.
pub(crate) async fn reauthorize_and_begin(core: &Core, tenant: &TenantCaller) -> Result<EventTx<models::Tenant>> {
    Ok(begin(core, tenant.caller(), tenant.tenant_id(), Role::User).await?.1)
}

/// Fails when a role is lower than the needed one.
pub(crate) fn require(role: Role, needed: Role) -> Result<()> {
    if role >= needed { Ok(()) } else { Err(Error::Forbidden(ForbiddenReason::RoleTooLow { needed })) }
}
