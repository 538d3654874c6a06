//! Who calls, and what they may do where: the one way in for everything that belongs to a tenant.
//!
//! The facts (does this session live, is this user a member, as what) are cached in the process. Every change of them is
//! numbered in the main database in the order of the commits; each instance follows that log, and trusts its cache only
//! while it does: so a change is seen everywhere within [`FRESHNESS`], and at once by the instance that made it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use domain::{
    Closure, Denial, Dependency, Error, Member, Noun, Provisioning, Quota, Result, Role, SessionId, Tenant, TenantId, TokenKind,
    TokenProblem, UserId,
};
use models::{Connection, MainDatabase, MainTx, TenantDatabase, TenantTx, access_changes, members, sessions};
use moka::sync::Cache;
use serde_json::Value;
use uuid::Uuid;

use crate::Services;

/// How often an instance asks for changes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);
/// How old the last answer may be for the cache to be trusted.
const FRESHNESS: Duration = Duration::from_secs(1);
/// After what time every instance goes by a change, with room for a slow one.
pub(crate) const NOTICED_AFTER: Duration = FRESHNESS.saturating_add(Duration::from_millis(500));
/// How long a write waits for its tenant's database to arrive on another server, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(50);
/// How long a fact is cached at most.
const FACT_LIFE: Duration = Duration::from_secs(60);
/// How many facts of a kind are cached at most; each is a few hundred bytes.
const FACTS: u64 = 50_000;

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

impl Services {
    /// Finds out who calls.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when there is no token, or it is not good for anything (any more).
    pub async fn authenticate(&self, access_token: Option<&str>) -> Result<Caller> {
        let token = access_token.ok_or(Error::Unauthenticated(TokenProblem::Missing))?;
        let verified = self.0.parts.tokens.verify(token, TokenKind::Access, self.clock().now());
        let claims = verified.map_err(Error::Unauthenticated)?;
        let living = self.0.access.session_user(claims.session_id, claims.user_id).await?;
        if living == Some(claims.user_id) {
            Ok(Caller { user_id: claims.user_id, session_id: claims.session_id })
        } else {
            Err(Error::Unauthenticated(TokenProblem::Revoked))
        }
    }

    /// Lets a caller into an active tenant, as far as the role reaches.
    pub(crate) async fn enter(&self, caller: &Caller, tenant_id: TenantId, needed: Role) -> Result<TenantCaller> {
        let member = self.membership(caller, tenant_id).await?;
        if !member.of.is_active {
            return Err(Error::Forbidden(Denial::TenantInactive));
        }
        require(member.membership.role, needed)?;
        self.ensure_schema(&member.of).await?;
        let database = self.0.parts.tenant_databases.open(&member.of.place)?;
        let may_write = member.of.writes_paused_at.is_none();
        let quota = member.of.limits.or(self.settings().quota);
        Ok(TenantCaller { caller: *caller, role: member.membership.role, quota, database, may_write })
    }

    /// Lets a caller in and begins a transaction in the tenant's database. Waits while that moves to another server.
    pub(crate) async fn begin(&self, caller: &Caller, tenant_id: TenantId, needed: Role) -> Result<(TenantCaller, TenantTx)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tenant = self.enter(caller, tenant_id, needed).await?;
            if tenant.may_write {
                let tx = self.begin_in(&tenant.database).await?;
                return Ok((tenant, tx));
            }
            if Instant::now() > deadline {
                return Err(Error::Closed(Closure::Moving));
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Notes what somebody did without changing anything: in the tenant's database or, while that moves, in the main one.
    pub(crate) async fn note(&self, tenant: &TenantCaller, action: &str, data: Value) -> Result<()> {
        let event = self.audit(action, Some(tenant.tenant_id()), Some(tenant.user_id()), data);
        if tenant.may_write {
            self.tell_alone(self.begin_in(&tenant.database).await?, &event).await
        } else {
            self.tell_alone(self.main().begin().await?, &event).await
        }
    }

    /// The caller's membership in a tenant, active or not. To everybody else the tenant is not there.
    pub(crate) async fn membership(&self, caller: &Caller, tenant_id: TenantId) -> Result<Arc<Member<Tenant>>> {
        let member = self.0.access.member(caller.user_id, tenant_id).await?.ok_or(Error::NotFound(Noun::Tenant))?;
        match member.of.provisioning {
            Provisioning::Active => Ok(member),
            Provisioning::Deleting => Err(Error::NotFound(Noun::Tenant)),
            _ => Err(Error::Unavailable {
                dependency: Dependency::TenantDatabase,
                source: "the tenant's database is still being made".into(),
            }),
        }
    }

    /// Asks a tenant's database whether it is there, for a member.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not.
    pub async fn check_tenant(&self, caller: &Caller, tenant_id: TenantId) -> Result<()> {
        let tenant = self.enter(caller, tenant_id, Role::Viewer).await?;
        models::documents::count(&mut tenant.read().await?).await.map(drop)?;
        Ok(())
    }

    /// Follows the log of changes until cancelled (dropped). Without it every request asks the main database.
    pub async fn follow_access_changes(&self) {
        let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = self.0.access.follow().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the log of access changes can't be read; nothing is cached");
            }
        }
    }

    /// Commits a change of what is known of `subject` (a session, a user or a tenant). It is effective in this instance when
    /// this returns, and everywhere after [`NOTICED_AFTER`].
    pub(crate) async fn commit_access_change(&self, mut tx: MainTx, subject: impl Into<Uuid>) -> Result<()> {
        let subject = subject.into();
        let version = access_changes::push(&mut tx, subject, self.clock().now()).await?;
        tx.commit().await?;
        self.0.access.log().note(subject, version, Instant::now());
        Ok(())
    }
}

/// Fails when a role is lower than what is needed.
pub(crate) fn require(role: Role, needed: Role) -> Result<()> {
    if role >= needed { Ok(()) } else { Err(Error::Forbidden(Denial::RoleTooLow { needed })) }
}

/// The cached facts.
pub(crate) struct Access {
    main: MainDatabase,
    sessions: Cache<SessionId, Fact<UserId>>,
    members: Cache<(UserId, TenantId), Fact<Arc<Member<Tenant>>>>,
    log: RwLock<Log>,
}

/// A fact with the number of the last change that was known when it was read.
#[derive(Clone)]
struct Fact<T> {
    value: T,
    version: i64,
}

/// What is known of the log of changes.
#[derive(Default)]
struct Log {
    /// Every change up to this number is known.
    version: i64,
    /// When the question was asked whose answer was the last; never before the first one.
    asked_at: Option<Instant>,
    /// The last change of each subject, and when it was noted. A fact that was read before it does not hold.
    changed: HashMap<Uuid, (i64, Instant)>,
}

impl Log {
    /// Notes a change. They do not always come in order: what this instance changes it knows before it is told of the changes
    /// before.
    fn note(&mut self, subject: Uuid, version: i64, at: Instant) {
        let last = self.changed.entry(subject).or_insert((version, at));
        *last = (version.max(last.0), at.max(last.1));
    }

    /// Up to which number every change is known. Before the first answer none is, and nothing may be cached: the first answer
    /// does not tell of the changes before it.
    fn known_version(&self) -> Option<i64> {
        self.asked_at.map(|_| self.version)
    }

    fn is_fresh(&self) -> bool {
        self.asked_at.is_some_and(|asked_at| asked_at.elapsed() < FRESHNESS)
    }

    fn holds<T>(&self, fact: &Fact<T>, subjects: &[Uuid]) -> bool {
        let unchanged = |subject| self.changed.get(subject).is_none_or(|(version, _)| *version <= fact.version);
        self.is_fresh() && subjects.iter().all(unchanged)
    }
}

impl Access {
    pub(crate) fn new(main: MainDatabase) -> Self {
        Self {
            main,
            sessions: Cache::builder().max_capacity(FACTS).time_to_live(FACT_LIFE).build(),
            members: Cache::builder().max_capacity(FACTS).time_to_live(FACT_LIFE).build(),
            log: RwLock::default(),
        }
    }

    /// Whose session it is, when it lives. `user_id` is whose it is said to be.
    async fn session_user(&self, id: SessionId, user_id: UserId) -> Result<Option<UserId>> {
        self.fact(&self.sessions, id, &[id.uuid(), user_id.uuid()], async |connection| sessions::find_living(connection, id).await).await
    }

    async fn member(&self, user_id: UserId, tenant_id: TenantId) -> Result<Option<Arc<Member<Tenant>>>> {
        self.fact(&self.members, (user_id, tenant_id), &[user_id.uuid(), tenant_id.uuid()], async |connection| {
            Ok(members::find_with_tenant(connection, tenant_id, user_id).await?.map(Arc::new))
        })
        .await
    }

    /// The cached fact when it holds, else what the database says. What is not there is not cached: strangers could fill
    /// the cache with it.
    async fn fact<K: Hash + Eq + Send + Sync + 'static, T: Clone + Send + Sync + 'static>(
        &self,
        cache: &Cache<K, Fact<T>>,
        key: K,
        subjects: &[Uuid],
        read: impl AsyncFnOnce(&mut Connection<models::Main>) -> models::Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some(fact) = cache.get(&key)
            && self.log_read().holds(&fact, subjects)
        {
            return Ok(Some(fact.value));
        }
        // Taken before reading: a change that commits meanwhile has a greater number and so undoes what is cached here.
        let version = self.log_read().known_version();
        let value = read(&mut self.main.read().await?).await?;
        if let (Some(value), Some(version)) = (&value, version) {
            cache.insert(key, Fact { value: value.clone(), version });
        }
        Ok(value)
    }

    async fn follow(&self) -> Result<()> {
        let asked_at = Instant::now();
        let known = self.log_read().known_version();
        let mut connection = self.main.read().await?;
        let (version, changes) = match known {
            // Nothing is cached before the first answer, so nothing before it matters.
            None => (access_changes::last_version(&mut connection).await?, Vec::new()),
            Some(known) => {
                let changes = access_changes::after(&mut connection, known).await?;
                (changes.last().map_or(known, |(version, _)| *version), changes)
            }
        };
        let mut log = self.log();
        for (version, subject) in changes {
            log.note(subject, version, asked_at);
        }
        // No fact is older than its life, so neither need a change be remembered longer.
        log.changed.retain(|_, (_, noted_at)| noted_at.elapsed() < 2 * FACT_LIFE);
        log.version = version;
        log.asked_at = Some(asked_at);
        Ok(())
    }

    fn log(&self) -> std::sync::RwLockWriteGuard<'_, Log> {
        self.log.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_read(&self) -> std::sync::RwLockReadGuard<'_, Log> {
        self.log.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_cached_before_the_log_is_followed() {
        assert_eq!(Log::default().known_version(), None);
        assert_eq!(Log { asked_at: Some(Instant::now()), version: 6, ..Log::default() }.known_version(), Some(6));
    }

    #[test]
    fn a_change_that_is_told_late_hides_no_later_one() {
        let mut log = Log { asked_at: Some(Instant::now()), version: 6, ..Log::default() };
        let subject = Uuid::from_u128(1);
        // Our own change 7 is noted while the answer to the question that ends with 6 is under way.
        log.note(subject, 7, Instant::now());
        log.note(subject, 6, Instant::now());
        let read_before_7 = Fact { value: (), version: 6 };
        assert!(!log.holds(&read_before_7, &[subject]));
        assert!(log.holds(&Fact { value: (), version: 7 }, &[subject]));
    }
}
