//! How a tenant comes to be: a row reserves its name and location, its database is created, and a transaction makes it active.

use std::{
    collections::HashMap,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::{
    Conflict, DatabaseName, Dependency, Email, Error, EventKind, IdempotencyKey, Member, Membership, Noun, Provisioning, QuotaLimits,
    Result, Role, Tenant, TenantId, TenantName, TenantPlace, Timestamp, UserId, dyn_error, failpoint,
};
use models::{idempotency, members, tenant_schema_digest, tenant_schema_version, tenants, users, warm_pool};
use serde_json::json;

/// How long a server that failed to create a database is tried last.
const FAILURE_MEMORY: Duration = Duration::from_secs(30);

/// The key of the request that creates a tenant, with what tells that request from others.
pub(crate) type Request<'a> = Option<(&'a IdempotencyKey, [u8; 32])>;

use crate::{
    Core, EventServices, OperatorServices, OrderingKey,
    access_cache::commit_access_change,
    events::events::{audit_event, begin_main, event},
    idempotency::record_request,
};

impl OperatorServices {
    /// Makes a tenant for the user with this address, who becomes its admin: for the command line.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such user who can log in; else as [`UserServices::create_tenant`].
    pub async fn create_tenant_for_address(&self, email: &Email, name: &TenantName) -> Result<Member<Tenant>> {
        let found = users::find_by_email(&mut self.core.main().read().await?, email).await?;
        let user = found.filter(|user| user.is_active).ok_or(Error::NotFound(Noun::User))?;
        self.create_tenant_for(user.id, name).await
    }

    /// Makes a tenant for a user who becomes its admin: for the command line. Its database goes to the server that holds the
    /// fewest; when that one can't take it, to the next.
    ///
    /// # Errors
    /// As [`UserServices::create_tenant`].
    pub async fn create_tenant_for(&self, user_id: UserId, name: &TenantName) -> Result<Member<Tenant>> {
        create_on_any_server(&self.core, user_id, name, None).await
    }

    /// Takes up tenants whose making was interrupted: completes those that a crash left, removes those that were given up.
    /// Answers how many it settled. Those from before these services were assembled are taken up at once, for they are not
    /// of their making; others after a time in which nothing happened to them.
    ///
    /// # Errors
    /// When the main database is down. A tenant that can't be settled is logged and left for the next time.
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
                    tracing::warn!(tenant_id = %tenant.id, error = dyn_error(&error), "a tenant's making could not be completed");
                }
            }
        }
        Ok(settled)
    }
}

impl EventServices {
    /// Makes sure that a tenant that was created has a database.
    ///
    /// # Errors
    /// When it has none, or its server is down.
    pub async fn ensure_tenant_database(&self, key: OrderingKey) -> Result<()> {
        let found = match key {
            Some(tenant_id) => tenants::find(&mut self.core.main().read().await?, tenant_id).await?,
            None => None,
        };
        match found.filter(|tenant| tenant.provisioning == Provisioning::Active) {
            Some(tenant) if !self.core.parts.tenant_databases.exists(&tenant.place).await? => {
                Err(Error::internal(format!("server {} has no database {}", tenant.place.server, tenant.place.database)))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) async fn create_on_any_server(core: &Core, user_id: UserId, name: &TenantName, request: Request<'_>) -> Result<Member<Tenant>> {
    let servers = servers_by_load(core, &tenants::count_by_server(&mut core.main().read().await?).await?);
    let mut problem = Error::internal("no server for tenants' databases");
    for server in servers {
        match create_on(core, &server, user_id, name, request).await {
            Err(error @ Error::Unavailable { .. }) => {
                tracing::warn!(server, error = dyn_error(&error), "a server can't take a tenant's database");
                failing_servers(core).insert(server, Instant::now());
                problem = error;
            }
            settled => return settled,
        }
    }
    Err(problem)
}

/// The servers, those that hold the fewest databases first, and last those that failed just now.
fn servers_by_load(core: &Core, loads: &[(String, u64)]) -> Vec<String> {
    let load = |server: &str| loads.iter().find(|(name, _)| name == server).map_or(0, |(_, load)| *load);
    let mut troubled = failing_servers(core);
    troubled.retain(|_, since| since.elapsed() < FAILURE_MEMORY);
    let mut servers: Vec<_> = core.parts.tenant_databases.servers().map(str::to_owned).collect();
    servers.sort_by_key(|server| (troubled.contains_key(server), load(server)));
    servers
}

fn failing_servers(core: &Core) -> MutexGuard<'_, HashMap<String, Instant>> {
    core.failing_servers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn create_on(core: &Core, server: &str, user_id: UserId, name: &TenantName, request: Request<'_>) -> Result<Member<Tenant>> {
    let now = core.clock().now();
    let mut tx = core.main().begin().await?;
    let spare = warm_pool::take(&mut tx, server, &tenant_schema_digest()).await?;
    let id = spare.unwrap_or_else(|| TenantId::generate(core.clock()));
    let mut tenant = Tenant {
        id,
        name: name.as_str().to_owned(),
        place: TenantPlace { tenant_id: id, server: server.to_owned(), database: DatabaseName::derive(name, id) },
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
    if spare.is_some() {
        core.warm_database_taken.notify_one();
    }

    match provision(core, &tenant).await {
        Ok((schema_version, updated_at)) => {
            tenant = Tenant { provisioning: Provisioning::Active, schema_version, updated_at, ..tenant };
            Ok(Member { membership, of: tenant })
        }
        Err(error) => {
            if let Err(error) = undo_creation(core, &tenant).await {
                tracing::warn!(tenant_id = %id, error = dyn_error(&error), "what was made of a tenant could not be removed yet");
            }
            Err(error)
        }
    }
}

/// Makes a reserved tenant's database, or what is missing of it. Every step can be repeated.
async fn provision(core: &Core, tenant: &Tenant) -> Result<(i64, Timestamp)> {
    let databases = &core.parts.tenant_databases;
    let is_finished = databases.create(&tenant.place).await?;
    failpoint!("tenant.created");
    let schema_version = if is_finished { tenant_schema_version() } else { databases.finish(&tenant.place).await?.to };
    failpoint!("tenant.migrated");
    let now = core.clock().now();
    let mut tx = begin_main(core).await?;
    if tenants::set_provisioning(&mut tx, tenant.id, Provisioning::Active, schema_version, now).await? {
        let data = json!({ "name": tenant.name, "database_name": tenant.place.database.as_str() });
        tx.emit(&event(core, EventKind::TenantCreated, Some(tenant.id), tenant.created_by, &data));
        tx.emit(&audit_event(core, "tenant.created", Some(tenant.id), tenant.created_by, data));
    } else if tenants::find(&mut tx, tenant.id).await?.is_none_or(|settled| settled.provisioning != Provisioning::Active) {
        // Whoever gave it up may have dropped the database before it was made here again.
        databases.drop_database(&tenant.place).await?;
        return Err(Error::Unavailable { dependency: Dependency::TenantDatabase, source: "the tenant's making was given up".into() });
    }
    // Whoever was told that the tenant is still being made is told otherwise at once.
    failpoint!("tenant.activating");
    commit_access_change(core, tx, tenant.id).await?;
    failpoint!("tenant.active");
    Ok((schema_version, now))
}

/// Removes what was made of a tenant that nobody was ever told of.
async fn undo_creation(core: &Core, tenant: &Tenant) -> Result<()> {
    let mut tx = core.main().begin().await?;
    // First the mark, so that nobody completes it meanwhile; the database next; the row last.
    if !tenants::set_provisioning(&mut tx, tenant.id, Provisioning::Failed, 0, core.clock().now()).await? {
        return Ok(());
    }
    tx.commit().await?;
    failpoint!("tenant.given_up");
    core.parts.tenant_databases.drop_database(&tenant.place).await?;
    let mut tx = core.main().begin().await?;
    tenants::delete_failed(&mut tx, tenant.id).await?;
    // Nobody was told of it, so its request may be made again.
    idempotency::delete_unanswered(&mut tx, tenant.id.uuid()).await?;
    Ok(tx.commit().await?)
}
