//! Provisioning of tenants: a row reserves the name and the location, the database is created, and a transaction activates the
//! tenant.

use std::time::{Duration, Instant};

use domain::{
    Conflict, DatabaseName, Dependency, Email, Error, EventKind, ForbiddenReason, IdempotencyKey, Member, Membership, Provisioning,
    QuotaLimits, ResourceKind, Result, Role, Tenant, TenantId, TenantLocation, TenantName, Timestamp, UserId, dyn_error, failpoint,
};
use models::{idempotency, members, tenant_schema_digest, tenant_schema_version, tenants, users, warm_pool};
use serde_json::json;

/// For how long after a failure to create a database a server is tried last.
const FAILURE_MEMORY: Duration = Duration::from_secs(30);

/// The idempotency key of the request that creates a tenant, with the request's fingerprint.
pub(crate) type Request<'a> = Option<(&'a IdempotencyKey, [u8; 32])>;

use crate::{
    Core, EventServices, OperatorServices, OrderingKey,
    access_cache::commit_access_change,
    events::events::{audit_event, begin_main, event},
    idempotency::record_request,
};

impl OperatorServices {
    /// Creates a tenant for the user with this address, who becomes its admin. For the command line.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such active user; otherwise as
    /// [`UserServices::create_tenant`](crate::UserServices::create_tenant).
    pub async fn create_tenant_for_address(&self, email: &Email, name: &TenantName) -> Result<Member<Tenant>> {
        let found = users::find_by_email(&mut self.core.main().read().await?, email).await?;
        let user = found.filter(|user| user.is_active).ok_or(Error::NotFound(ResourceKind::User))?;
        self.create_tenant_for(user.id, name).await
    }

    /// Creates a tenant for a user, who becomes its admin. For the command line. The server with the fewest databases creates the
    /// tenant's; if it can't, the next one does.
    ///
    /// # Errors
    /// As [`UserServices::create_tenant`](crate::UserServices::create_tenant).
    pub async fn create_tenant_for(&self, user_id: UserId, name: &TenantName) -> Result<Member<Tenant>> {
        create_on_any_server(&self.core, user_id, name, None, None).await
    }

    /// Resumes provisioning that a crash interrupted, and removes tenants whose creation was aborted. Returns the
    /// number of both. Creations from before these services were assembled are resumed immediately, since this process did not begin
    /// them. Others are resumed after they have been inactive for a time.
    ///
    /// # Errors
    /// When the main database is down. A tenant that can't be resumed or removed is logged and retried the next time.
    pub async fn resume_provisioning(&self) -> Result<usize> {
        let unfinished = tenants::list_unfinished(&mut self.core.main().read().await?, self.core.abandoned_before()).await?;
        let mut settled = 0;
        for tenant in unfinished {
            let result = match tenant.provisioning {
                Provisioning::Failed => undo_creation(&self.core, &tenant).await,
                _ => provision(&self.core, &tenant).await.map(drop),
            };
            match result {
                Ok(()) => settled += 1,
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant.id, error = dyn_error(&error), "could not complete the provisioning of a tenant");
                }
            }
        }
        Ok(settled)
    }
}

impl EventServices {
    /// Checks that a created tenant has a database.
    ///
    /// # Errors
    /// When it has none, or its server is down.
    pub async fn ensure_tenant_database(&self, key: OrderingKey) -> Result<()> {
        let found = match key {
            Some(tenant_id) => tenants::find(&mut self.core.main().read().await?, tenant_id).await?,
            None => None,
        };
        match found.filter(|tenant| tenant.provisioning == Provisioning::Active) {
            Some(tenant) if !self.core.parts.tenant_databases.exists(&tenant.location).await? => {
                Err(Error::internal(format!("server {} has no database {}", tenant.location.server, tenant.location.database)))
            }
            _ => Ok(()),
        }
    }
}

/// Creates a tenant on the server with the fewest databases that can. With a limit, the user may have created fewer active tenants.
pub(crate) async fn create_on_any_server(
    core: &Core,
    user_id: UserId,
    name: &TenantName,
    limit: Option<u64>,
    request: Request<'_>,
) -> Result<Member<Tenant>> {
    let servers = servers_by_load(core, &tenants::count_by_server(&mut core.main().read().await?).await?);
    let mut problem = Error::internal("no tenant database server");
    for server in servers {
        match create_on(core, &server, user_id, name, limit, request).await {
            Err(error @ Error::Unavailable { .. }) => {
                tracing::warn!(server, error = dyn_error(&error), "a server could not create a tenant's database");
                core.failing_servers.lock().insert(server, Instant::now());
                problem = error;
            }
            settled => return settled,
        }
    }
    Err(problem)
}

/// The servers in the order in which to try them: by the number of their databases, those that failed recently last.
fn servers_by_load(core: &Core, loads: &[(String, u64)]) -> Vec<String> {
    let load = |server: &str| loads.iter().find(|(name, _)| name == server).map_or(0, |(_, load)| *load);
    let mut troubled = core.failing_servers.lock();
    troubled.retain(|_, since| since.elapsed() < FAILURE_MEMORY);
    let mut servers: Vec<_> = core.parts.tenant_databases.servers().map(str::to_owned).collect();
    servers.sort_by_key(|server| (troubled.contains_key(server), load(server)));
    servers
}

async fn create_on(
    core: &Core,
    server: &str,
    user_id: UserId,
    name: &TenantName,
    limit: Option<u64>,
    request: Request<'_>,
) -> Result<Member<Tenant>> {
    let now = core.clock().now();
    let mut tx = core.main().begin().await?;
    if let Some(limit) = limit {
        users::lock(&mut tx, user_id).await?;
        if tenants::count_created_by(&mut tx, user_id).await? >= limit {
            return Err(Error::Forbidden(ForbiddenReason::TooManyTenants { limit }));
        }
    }
    let warm_id = warm_pool::take(&mut tx, server, &tenant_schema_digest()).await?;
    let id = warm_id.unwrap_or_else(|| TenantId::generate(core.clock()));
    let mut tenant = Tenant {
        id,
        name: name.as_str().to_owned(),
        location: TenantLocation { tenant_id: id, server: server.to_owned(), database: DatabaseName::derive(name, id) },
        provisioning: Provisioning::Reserved,
        schema_version: 0,
        quarantined_at: None,
        writes_paused_at: None,
        limits: QuotaLimits::default(),
        is_active: true,
        created_at: now,
        updated_at: now,
        created_by: Some(user_id),
    };
    let membership = Membership { user_id, tenant_id: id, role: Role::Admin, joined_at: now };
    tenants::insert(&mut tx, &tenant).await?;
    members::insert(&mut tx, &membership).await?;
    if let Some((key, fingerprint)) = request
        && !record_request(core, &mut tx, user_id, key, fingerprint, id.uuid(), None).await?
    {
        return Err(Error::Conflict(Conflict::IdempotencyKeyInUse));
    }
    failpoint!("tenant.reserving");
    tx.commit().await?;
    failpoint!("tenant.reserved");
    if warm_id.is_some() {
        core.warm_database_taken.notify_one();
    }

    match provision(core, &tenant).await {
        Ok((schema_version, updated_at)) => {
            tenant = Tenant { provisioning: Provisioning::Active, schema_version, updated_at, ..tenant };
            Ok(Member { membership, of: tenant })
        }
        Err(error) => {
            if let Err(error) = undo_creation(core, &tenant).await {
                tracing::warn!(tenant_id = %id, error = dyn_error(&error), "could not undo the creation of a tenant yet");
            }
            Err(error)
        }
    }
}

/// Provisions a reserved tenant's database, or completes it. Every step can be repeated.
async fn provision(core: &Core, tenant: &Tenant) -> Result<(i64, Timestamp)> {
    let databases = &core.parts.tenant_databases;
    let is_finished = databases.create(&tenant.location).await?;
    failpoint!("tenant.created");
    let schema_version = if is_finished { tenant_schema_version() } else { databases.finish(&tenant.location).await?.to };
    failpoint!("tenant.migrated");
    let now = core.clock().now();
    let mut tx = begin_main(core).await?;
    if tenants::set_provisioning(&mut tx, tenant.id, Provisioning::Active, schema_version, now).await? {
        let data = json!({ "name": tenant.name, "database_name": tenant.location.database.as_str() });
        tx.emit(&event(core, EventKind::TenantCreated, Some(tenant.id), tenant.created_by, &data));
        tx.emit(&audit_event(core, "tenant.created", Some(tenant.id), tenant.created_by, data));
    } else if tenants::find(&mut tx, tenant.id).await?.is_none_or(|settled| settled.provisioning != Provisioning::Active) {
        // The process that aborted the creation may have dropped the database before it was created here again.
        databases.drop_database(&tenant.location).await?;
        return Err(Error::Unavailable { dependency: Dependency::TenantDatabase, source: "the tenant's creation was aborted".into() });
    }
    // Requests that found the tenant unfinished find it active at once.
    failpoint!("tenant.activating");
    commit_access_change(core, tx, tenant.id).await?;
    failpoint!("tenant.active");
    Ok((schema_version, now))
}

/// Removes what was created of a tenant that no response ever named.
async fn undo_creation(core: &Core, tenant: &Tenant) -> Result<()> {
    let mut tx = core.main().begin().await?;
    // First the mark, so that no other process completes it meanwhile; the database next; the row last.
    if !tenants::set_provisioning(&mut tx, tenant.id, Provisioning::Failed, 0, core.clock().now()).await? {
        return Ok(());
    }
    tx.commit().await?;
    failpoint!("tenant.given_up");
    core.parts.tenant_databases.drop_database(&tenant.location).await?;
    let mut tx = core.main().begin().await?;
    tenants::delete_failed(&mut tx, tenant.id).await?;
    // No response named the tenant, so its request may be sent again.
    idempotency::delete_unanswered(&mut tx, tenant.id.uuid()).await?;
    Ok(tx.commit().await?)
}
