//! Who calls, and what they may do where: the one way in for everything that belongs to a tenant.
//!
//! The facts (does this session live, is this user a member, as what) are cached in the process. Every change of them is
//! numbered in the main database in the order of the commits; each instance follows that log, and trusts its cache only
//! while it does: so a change is seen everywhere within [`FRESHNESS`], and at once by the instance that made it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{
    Closure, Denial, Dependency, Error, Member, Noun, Provisioning, Quota, Result, Role, SessionId, Tenant, TenantId, TokenKind,
    TokenProblem, UserId,
};
use models::{Connection, TenantDatabase};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    Core, UserServices,
    events::events::{EventTx, audit_event, begin_in, begin_main},
    tenants::migrations::ensure_schema,
};

/// How long a write waits for its tenant's database to arrive on another server, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(50);
/// Somebody whose access token was verified and whose session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    user_id: UserId,
    session_id: SessionId,
}

impl Caller {
    /// Somebody who is not there, but whose work goes on. May do what the user may at that time.
    pub(crate) fn of(user_id: UserId) -> Self {
        Self { user_id, session_id: Uuid::nil().into() }
    }

    /// Who calls.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    pub(crate) fn session_id(&self) -> SessionId {
        self.session_id
    }
}

/// A caller inside a tenant that the caller may enter. The only thing that opens a tenant's database for a request, so a
/// query can't reach another tenant's.
pub(crate) struct TenantCaller {
    caller: Caller,
    role: Role,
    quota: Quota,
    database: TenantDatabase,
    /// Whether it takes writes; not while it moves to another server.
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

    /// How much the tenant may store.
    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }

    pub(crate) fn database(&self) -> &TenantDatabase {
        &self.database
    }

    /// A connection to the tenant's database, for reading.
    pub(crate) async fn read(&self) -> Result<Connection<models::Tenant>> {
        Ok(self.database.read().await?)
    }
}

impl UserServices {
    /// Finds out who calls.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when there is no token, or it is not good for anything (any more).
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

    /// Asks a tenant's database whether it is there, for a member.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not.
    pub async fn check_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<()> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Viewer).await?;
        models::documents::count(&mut tenant.read().await?).await.map(drop)?;
        Ok(())
    }
}

/// Lets a caller into an active tenant, as far as the role reaches.
pub(crate) async fn authorize(core: &Core, caller: &Caller, tenant_id: TenantId, needed: Role) -> Result<TenantCaller> {
    let member = membership(core, caller, tenant_id).await?;
    if !member.of.is_active {
        return Err(Error::Forbidden(Denial::TenantInactive));
    }
    require(member.membership.role, needed)?;
    ensure_schema(core, &member.of).await?;
    let database = core.parts.tenant_databases.open(&member.of.place)?;
    let may_write = member.of.writes_paused_at.is_none();
    let quota = member.of.limits.or(core.settings().quota);
    Ok(TenantCaller { caller: *caller, role: member.membership.role, quota, database, may_write })
}

/// Lets a caller in and begins a transaction in the tenant's database. Waits while that moves to another server.
pub(crate) async fn begin(
    core: &Core,
    caller: &Caller,
    tenant_id: TenantId,
    needed: Role,
) -> Result<(TenantCaller, EventTx<models::Tenant>)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tenant = authorize(core, caller, tenant_id, needed).await?;
        if tenant.may_write {
            let tx = begin_in(core, &tenant.database).await?;
            return Ok((tenant, tx));
        }
        if Instant::now() > deadline {
            return Err(Error::Closed(Closure::Moving));
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Notes what somebody did without changing anything: in the tenant's database or, while that moves, in the main one.
pub(crate) async fn record(core: &Core, tenant: &TenantCaller, action: &str, data: Value) -> Result<()> {
    let event = audit_event(core, action, Some(tenant.tenant_id()), Some(tenant.user_id()), data);
    if tenant.may_write {
        begin_in(core, &tenant.database).await?.emit_and_commit(&event).await
    } else {
        begin_main(core).await?.emit_and_commit(&event).await
    }
}

/// The caller's membership in a tenant, active or not. To everybody else the tenant is not there.
pub(crate) async fn membership(core: &Core, caller: &Caller, tenant_id: TenantId) -> Result<Arc<Member<Tenant>>> {
    let member = core.access.member(caller.user_id, tenant_id).await?.ok_or(Error::NotFound(Noun::Tenant))?;
    match member.of.provisioning {
        Provisioning::Active => Ok(member),
        Provisioning::Deleting => Err(Error::NotFound(Noun::Tenant)),
        _ => Err(Error::Unavailable { dependency: Dependency::TenantDatabase, source: "the tenant's database is still being made".into() }),
    }
}

/// Begins a transaction for an upload. It may have taken long: long enough for the tenant to be deleted or to move, or for
/// the caller to be put out of it.
pub(crate) async fn reauthorize_and_begin(core: &Core, tenant: &TenantCaller) -> Result<EventTx<models::Tenant>> {
    Ok(begin(core, tenant.caller(), tenant.tenant_id(), Role::User).await?.1)
}

/// Fails when a role is lower than what is needed.
pub(crate) fn require(role: Role, needed: Role) -> Result<()> {
    if role >= needed { Ok(()) } else { Err(Error::Forbidden(Denial::RoleTooLow { needed })) }
}
