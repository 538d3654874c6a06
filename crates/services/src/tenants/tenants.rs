//! Tenants, and the making of their databases.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::{
    Conflict, DatabaseName, Denial, Dependency, Email, Error, EventKind, IdempotencyKey, Member, Membership, Move, Noun, Page, PageRequest,
    PastRequest, Provisioning, QuotaLimits, Result, Role, StorageUse, Tenant, TenantId, TenantName, TenantPlace, Timestamp, User, UserId,
    failpoint,
};
use models::{TenantDatabase, idempotency, members, moves, quotas, tenant_schema_digest, tenant_schema_version, tenants, users, warm_pool};
use serde_json::json;

use crate::{
    Answered, Caller, EventKey, Once, Services,
    access::{NOTICED_AFTER, require},
    idempotency::fingerprint,
};

/// A tenant whose making took this long was probably left by a crash. If it was not, two complete it, which does no harm.
const ABANDONED_AFTER: Duration = Duration::from_secs(30);

/// How long a server that failed to make a database is tried last.
const TROUBLE_LASTS: Duration = Duration::from_secs(30);

/// A tenant as one of its members sees it.
#[derive(Clone, Debug)]
pub struct TenantDetails {
    /// The tenant with the caller's own membership.
    pub tenant: Arc<Member<Tenant>>,
    /// All members, in the order in which they joined.
    pub members: Vec<Member<User>>,
}

/// A tenant in the operator's list.
#[derive(Clone, Debug)]
pub struct TenantSummary {
    /// The tenant.
    pub tenant: Tenant,
    /// How many members it has.
    pub member_count: u64,
}

/// A tenant as the operator sees it.
#[derive(Debug)]
pub struct TenantReport {
    /// All members, in the order in which they joined.
    pub members: Vec<Member<User>>,
    /// What its database holds, or what is wrong with that.
    pub contents: Result<StorageUse>,
    /// A move of its database that is under way or has left a former one behind.
    pub on_the_move: Option<Move>,
}

/// The key of the request that makes a tenant, with what tells that from others.
type Request<'a> = Option<(&'a IdempotencyKey, [u8; 32])>;

impl Services {
    /// The caller's tenants, active or not, newest membership first.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_tenants(&self, caller: &Caller, request: PageRequest) -> Result<Page<Member<Tenant>>> {
        Ok(members::list_tenants(&mut self.main().read().await?, caller.user_id(), request).await?)
    }

    /// Makes a tenant with a database of its own and the caller as its admin. It is ready when this returns.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no server can take the database; then nothing of it stays.
    /// [`Conflict::IdempotencyKeyInUse`] while the same request is being done.
    pub async fn create_tenant(
        &self,
        caller: &Caller,
        name: &TenantName,
        once: Option<&Once<'_, Member<Tenant>>>,
    ) -> Result<Answered<Member<Tenant>>> {
        let user_id = caller.user_id();
        let Some(once) = once else { return Ok(Answered::Now(self.create_tenant_for(user_id, name).await?)) };
        let fingerprint = fingerprint(&[b"tenant", name.as_str().as_bytes()]);
        let mut connection = self.main().read().await?;
        let past = self.find_past_request(&mut connection, user_id, &once.key, fingerprint).await?;
        let made = match past {
            None => {
                drop(connection);
                self.create_on_some_server(user_id, name, Some((&once.key, fingerprint))).await?
            }
            Some(PastRequest { answer: Some(answer), .. }) => return Ok(Answered::Before(answer)),
            // Somebody is making it, or made it and died before the answer was kept.
            Some(PastRequest { resource_id, answer: None, .. }) => {
                let found = members::find_with_tenant(&mut connection, resource_id.into(), user_id).await?;
                let made = found.filter(|member| member.of.provisioning == Provisioning::Active);
                made.ok_or(Error::Conflict(Conflict::IdempotencyKeyInUse))?
            }
        };
        let mut tx = self.main().begin().await?;
        idempotency::set_answer(&mut tx, user_id, &once.key, made.of.id.uuid(), &(once.answer)(&made)).await?;
        tx.commit().await?;
        Ok(Answered::Now(made))
    }

    /// Makes a tenant for the user with this address, who becomes its admin: for the command line.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such user who can log in; else as [`Services::create_tenant`].
    pub async fn create_tenant_for_address(&self, email: &Email, name: &TenantName) -> Result<Member<Tenant>> {
        let found = users::find_by_email(&mut self.main().read().await?, email).await?;
        let user = found.filter(|user| user.is_active).ok_or(Error::NotFound(Noun::User))?;
        self.create_tenant_for(user.id, name).await
    }

    /// Makes a tenant for a user who becomes its admin: for the command line. Its database goes to the server that holds the
    /// fewest; when that one can't take it, to the next.
    ///
    /// # Errors
    /// As [`Services::create_tenant`].
    pub async fn create_tenant_for(&self, user_id: UserId, name: &TenantName) -> Result<Member<Tenant>> {
        self.create_on_some_server(user_id, name, None).await
    }

    async fn create_on_some_server(&self, user_id: UserId, name: &TenantName, request: Request<'_>) -> Result<Member<Tenant>> {
        let servers = self.servers_by_load(&tenants::count_by_server(&mut self.main().read().await?).await?);
        let mut problem = Error::internal("no server for tenants' databases");
        for server in servers {
            match self.create_tenant_on(&server, user_id, name, request).await {
                Err(error @ Error::Unavailable { .. }) => {
                    tracing::warn!(server, error = &error as &dyn std::error::Error, "a server can't take a tenant's database");
                    self.troubled_servers().insert(server, Instant::now());
                    problem = error;
                }
                settled => return settled,
            }
        }
        Err(problem)
    }

    /// The servers, those that hold the fewest databases first, and last those that failed just now.
    fn servers_by_load(&self, loads: &[(String, u64)]) -> Vec<String> {
        let load = |server: &str| loads.iter().find(|(name, _)| name == server).map_or(0, |(_, load)| *load);
        let mut troubled = self.troubled_servers();
        troubled.retain(|_, since| since.elapsed() < TROUBLE_LASTS);
        let mut servers: Vec<_> = self.0.parts.tenant_databases.servers().map(str::to_owned).collect();
        servers.sort_by_key(|server| (troubled.contains_key(server), load(server)));
        servers
    }

    fn troubled_servers(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.troubled_servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create_tenant_on(&self, server: &str, user_id: UserId, name: &TenantName, request: Request<'_>) -> Result<Member<Tenant>> {
        let now = self.clock().now();
        let mut tx = self.main().begin().await?;
        let spare = warm_pool::take(&mut tx, server, &tenant_schema_digest()).await?;
        let id = spare.unwrap_or_else(|| TenantId::generate(self.clock()));
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
            && !self.note_request(&mut tx, user_id, key, fingerprint, id.uuid(), None).await?
        {
            return Err(Error::Conflict(Conflict::IdempotencyKeyInUse));
        }
        failpoint!("tenant.reserving");
        tx.commit().await?;
        failpoint!("tenant.reserved");
        if spare.is_some() {
            self.0.spare_taken.notify_one();
        }

        match self.provision(&tenant).await {
            Ok((schema_version, updated_at)) => {
                tenant = Tenant { provisioning: Provisioning::Active, schema_version, updated_at, ..tenant };
                Ok(Member { membership, of: tenant })
            }
            Err(error) => {
                if let Err(error) = self.abandon(&tenant).await {
                    tracing::warn!(tenant_id = %id, error = &error as &dyn std::error::Error, "what was made of a tenant could not be removed yet");
                }
                Err(error)
            }
        }
    }

    /// Makes a reserved tenant's database, or what is missing of it. Every step can be repeated.
    async fn provision(&self, tenant: &Tenant) -> Result<(i64, Timestamp)> {
        let databases = &self.0.parts.tenant_databases;
        let is_finished = databases.create(&tenant.place).await?;
        failpoint!("tenant.created");
        let schema_version = if is_finished { tenant_schema_version() } else { databases.finish(&tenant.place).await?.to };
        failpoint!("tenant.migrated");
        let now = self.clock().now();
        let mut tx = self.main().begin().await?;
        if tenants::set_provisioning(&mut tx, tenant.id, Provisioning::Active, schema_version, now).await? {
            let data = json!({ "name": tenant.name, "database_name": tenant.place.database.as_str() });
            self.tell(&mut tx, &self.event(EventKind::TenantCreated, Some(tenant.id), tenant.created_by, &data));
            self.tell(&mut tx, &self.audit("tenant.created", Some(tenant.id), tenant.created_by, data));
        } else if tenants::find(&mut tx, tenant.id).await?.is_none_or(|settled| settled.provisioning != Provisioning::Active) {
            // Whoever gave it up may have dropped the database before it was made here again.
            databases.drop_database(&tenant.place).await?;
            return Err(Error::Unavailable { dependency: Dependency::TenantDatabase, source: "the tenant's making was given up".into() });
        }
        // Whoever was told that the tenant is still being made is told otherwise at once.
        failpoint!("tenant.activating");
        self.commit_access_change(tx, tenant.id).await?;
        failpoint!("tenant.active");
        Ok((schema_version, now))
    }

    /// Removes what was made of a tenant that nobody was ever told of.
    async fn abandon(&self, tenant: &Tenant) -> Result<()> {
        let mut tx = self.main().begin().await?;
        // First the mark, so that nobody completes it meanwhile; the database next; the row last.
        if !tenants::set_provisioning(&mut tx, tenant.id, Provisioning::Failed, 0, self.clock().now()).await? {
            return Ok(());
        }
        tx.commit().await?;
        failpoint!("tenant.given_up");
        self.0.parts.tenant_databases.drop_database(&tenant.place).await?;
        let mut tx = self.main().begin().await?;
        tenants::delete_failed(&mut tx, tenant.id).await?;
        // Nobody was told of it, so its request may be made again.
        idempotency::delete_unanswered(&mut tx, tenant.id.uuid()).await?;
        Ok(tx.commit().await?)
    }

    /// Takes up tenants whose making was interrupted: completes those that a crash left, removes those that were given up.
    /// Answers how many it settled. Those from before these services were assembled are taken up at once, for they are not
    /// of their making; others after a time in which nothing happened to them.
    ///
    /// # Errors
    /// When the main database is down. A tenant that can't be settled is logged and left for the next time.
    pub async fn resume_provisioning(&self) -> Result<usize> {
        let unfinished = tenants::list_unfinished(&mut self.main().read().await?, self.abandoned_before()).await?;
        let mut settled = 0;
        for tenant in unfinished {
            let result = match tenant.provisioning {
                Provisioning::Failed => self.abandon(&tenant).await,
                _ => self.provision(&tenant).await.map(drop),
            };
            match result {
                Ok(()) => settled += 1,
                Err(error) => {
                    tracing::warn!(tenant_id = %tenant.id, error = &error as &dyn std::error::Error, "a tenant's making could not be completed");
                }
            }
        }
        Ok(settled)
    }

    /// What was begun before this and has not moved since was left by a crash.
    pub(crate) fn abandoned_before(&self) -> Timestamp {
        self.clock().now().minus(ABANDONED_AFTER).max(self.0.assembled_at)
    }

    /// A tenant with its members. An inactive one only its admins see.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless the caller is a member.
    pub async fn get_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<TenantDetails> {
        let tenant = self.membership(caller, tenant_id).await?;
        if !tenant.of.is_active && tenant.membership.role < Role::Admin {
            return Err(Error::Forbidden(Denial::TenantInactive));
        }
        let members = members::list_users(&mut self.main().read().await?, tenant_id).await?;
        Ok(TenantDetails { tenant, members })
    }

    /// Changes what is given of a tenant; an admin may also bring an inactive one back.
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
        let known = self.membership(caller, tenant_id).await?;
        if !known.of.is_active && known.membership.role < Role::Admin {
            return Err(Error::Forbidden(Denial::TenantInactive));
        }
        require(known.membership.role, Role::Admin)?;
        let tenant = self.change_tenant(tenant_id, Some(caller.user_id()), name.as_ref(), is_active).await?;
        Ok(Member { membership: known.membership, of: tenant })
    }

    /// Makes a tenant inactive. Nothing of it is dropped.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller is an admin, or when it is inactive already.
    pub async fn deactivate_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<()> {
        self.enter(caller, tenant_id, Role::Admin).await?;
        self.change_tenant(tenant_id, Some(caller.user_id()), None, Some(false)).await.map(drop)
    }

    /// Makes a tenant inactive, or active again, for the operator: everywhere, when this returns. Answers whether it was not so
    /// already.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone or being deleted.
    pub async fn set_tenant_active(&self, tenant_id: TenantId, is_active: bool) -> Result<bool> {
        let known = tenants::find(&mut self.main().read().await?, tenant_id).await?;
        let known = known.filter(|tenant| tenant.provisioning != Provisioning::Deleting).ok_or(Error::NotFound(Noun::Tenant))?;
        if known.is_active == is_active {
            return Ok(false);
        }
        self.change_tenant(tenant_id, None, None, Some(is_active)).await?;
        tokio::time::sleep(NOTICED_AFTER).await;
        Ok(true)
    }

    /// Changes a tenant for an admin or the operator.
    async fn change_tenant(
        &self,
        tenant_id: TenantId,
        user_id: Option<UserId>,
        name: Option<&TenantName>,
        is_active: Option<bool>,
    ) -> Result<Tenant> {
        let now = self.clock().now();
        let mut tx = self.main().begin().await?;
        let before = tenants::lock(&mut tx, tenant_id).await?.ok_or(Error::NotFound(Noun::Tenant))?;
        let tenant = tenants::update(&mut tx, tenant_id, name, is_active, now).await?.ok_or(Error::NotFound(Noun::Tenant))?;
        let data = json!({ "name": tenant.name, "former_name": before.name });
        if before.is_active && !tenant.is_active {
            self.tell(&mut tx, &self.event(EventKind::TenantDeleted, Some(tenant_id), user_id, &json!({ "name": tenant.name })));
        }
        let action = match (before.is_active, tenant.is_active) {
            (true, false) => "tenant.deactivated",
            (false, true) => "tenant.activated",
            _ => "tenant.renamed",
        };
        if action != "tenant.renamed" || before.name != tenant.name {
            self.tell(&mut tx, &self.audit(action, Some(tenant_id), user_id, data));
        }
        self.commit_access_change(tx, tenant_id).await?;
        Ok(tenant)
    }

    /// All tenants, for the operator.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_all_tenants(&self) -> Result<Vec<Tenant>> {
        Ok(tenants::list(&mut self.main().read().await?).await?)
    }

    /// All tenants but those that are being deleted, for what is done in every tenant's database.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_kept_tenants(&self) -> Result<Vec<Tenant>> {
        let mut tenants = self.list_all_tenants().await?;
        tenants.retain(|tenant| tenant.provisioning != Provisioning::Deleting);
        Ok(tenants)
    }

    /// All tenants with the numbers of their members, in the order of their making, for the operator.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn summarize_tenants(&self) -> Result<Vec<TenantSummary>> {
        let mut connection = self.main().read().await?;
        let tenants = tenants::list(&mut connection).await?;
        let counts: HashMap<_, _> = members::count_by_tenant(&mut connection).await?.into_iter().collect();
        let summary = |tenant: Tenant| TenantSummary { member_count: counts.get(&tenant.id).copied().unwrap_or(0), tenant };
        Ok(tenants.into_iter().map(summary).collect())
    }

    /// The tenants that an operator may mean: the one with this id, else the one whose database has this name, else all that
    /// are called so.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn find_tenants(&self, wanted: &str) -> Result<Vec<Tenant>> {
        let mut connection = self.main().read().await?;
        if let Ok(id) = wanted.parse()
            && let Some(tenant) = tenants::find(&mut connection, id).await?
        {
            return Ok(vec![tenant]);
        }
        match tenants::find_by_database(&mut connection, wanted).await? {
            Some(tenant) => Ok(vec![tenant]),
            None => Ok(tenants::list_by_name(&mut connection, wanted).await?),
        }
    }

    /// A tenant's members and what its database holds, for the operator.
    ///
    /// # Errors
    /// When the main database is down. A tenant's database that is down is part of the answer.
    pub async fn report_tenant(&self, tenant: &Tenant) -> Result<TenantReport> {
        let mut connection = self.main().read().await?;
        let members = members::list_users(&mut connection, tenant.id).await?;
        let on_the_move = moves::find(&mut connection, tenant.id).await?;
        drop(connection);
        Ok(TenantReport { members, contents: self.count_contents(tenant).await, on_the_move })
    }

    pub(crate) async fn count_contents(&self, tenant: &Tenant) -> Result<StorageUse> {
        let mut connection = self.open_for_operator(tenant)?.read().await?;
        Ok(quotas::find_use(&mut connection, self.clock().now()).await?)
    }

    /// A tenant's database, for what an operator does with it, if it has a schema that this program understands.
    pub(crate) fn open_for_operator(&self, tenant: &Tenant) -> Result<TenantDatabase> {
        if tenant.schema_version < tenant_schema_version() - 1 {
            return Err(Error::Unavailable {
                dependency: Dependency::TenantDatabase,
                source: format!("its schema is of version {}; run tenantry migrate first", tenant.schema_version).into(),
            });
        }
        Ok(self.0.parts.tenant_databases.open(&tenant.place)?)
    }

    /// Makes sure that a tenant that was created has a database.
    ///
    /// # Errors
    /// When it has none, or its server is down.
    pub async fn ensure_tenant_database(&self, key: EventKey) -> Result<()> {
        let found = match key {
            Some(tenant_id) => tenants::find(&mut self.main().read().await?, tenant_id).await?,
            None => None,
        };
        match found.filter(|tenant| tenant.provisioning == Provisioning::Active) {
            Some(tenant) if !self.0.parts.tenant_databases.exists(&tenant.place).await? => {
                Err(Error::internal(format!("server {} has no database {}", tenant.place.server, tenant.place.database)))
            }
            _ => Ok(()),
        }
    }

    /// Sets how much a tenant may store, for the operator: in force everywhere when this returns. What is stored stays, even if it
    /// is more.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone or being deleted.
    pub async fn set_limits(&self, tenant_id: TenantId, limits: QuotaLimits) -> Result<Tenant> {
        let mut tx = self.main().begin().await?;
        let tenant = tenants::set_limits(&mut tx, tenant_id, limits, self.clock().now()).await?.ok_or(Error::NotFound(Noun::Tenant))?;
        let data = json!({ "name": tenant.name, "max_bytes": limits.bytes.stored(), "max_documents": limits.documents.stored() });
        self.tell(&mut tx, &self.audit("tenant.quota_set", Some(tenant_id), None, data));
        self.commit_access_change(tx, tenant_id).await?;
        tokio::time::sleep(NOTICED_AFTER).await;
        Ok(tenant)
    }

    /// Drops every tenant's database and objects, for an operator who wants to begin anew. Answers how many tenants there were.
    /// Objects of others, who have their tenants in the same bucket, are not touched.
    ///
    /// # Errors
    /// When a server or the storage is down. What was dropped until then is gone.
    pub async fn drop_everything(&self) -> Result<usize> {
        let tenants = self.list_all_tenants().await?;
        for tenant in &tenants {
            self.drop_databases_of(tenant).await?;
            self.delete_objects(tenant.id).await?;
        }
        self.collect_late_objects().await?;
        Ok(tenants.len())
    }
}
