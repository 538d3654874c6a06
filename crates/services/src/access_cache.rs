//! What is known of sessions and memberships, cached in the process.
//!
//! Every change of these facts is numbered in the main database in the order of the commits. Each instance follows that log, and
//! trusts its cache only while it does: a change is effective everywhere within [`FRESHNESS`], and at once in the instance that
//! made it.

use std::sync::Arc;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use domain::{Member, Result, SessionId, Tenant, TenantId, UserId, dyn_error};
use models::{Connection, Main, MainDatabase, access_changes, members, sessions};
use moka::sync::Cache;
use uuid::Uuid;

use crate::{Core, OperatorServices, events::events::EventTx};

/// How often an instance asks for changes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);
/// How old the last answer may be for the cache to be trusted.
const FRESHNESS: Duration = Duration::from_secs(1);
/// After what time every instance goes by a change, with room for a slow one.
pub(crate) const NOTICED_AFTER: Duration = FRESHNESS.saturating_add(Duration::from_millis(500));
/// How long a fact is cached at most.
const FACT_LIFE: Duration = Duration::from_secs(60);
/// How many facts of a kind are cached at most; each is a few hundred bytes.
const FACTS: u64 = 50_000;

impl OperatorServices {
    /// Follows the log of changes until cancelled (dropped). Without it every request asks the main database.
    pub async fn follow_access_changes(&self) {
        let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = self.core.access.follow().await {
                tracing::warn!(error = dyn_error(&error), "the log of access changes can't be read; nothing is cached");
            }
        }
    }
}

/// Commits a change of what is known of `subject` (a session, a user or a tenant). It is effective in this instance when
/// this returns, and everywhere after [`NOTICED_AFTER`].
pub(crate) async fn commit_access_change(core: &Core, mut tx: EventTx<Main>, subject: impl Into<Uuid>) -> Result<()> {
    let subject = subject.into();
    let version = access_changes::push(&mut tx, subject, core.clock().now()).await?;
    tx.commit().await?;
    core.access.log().note(subject, version, Instant::now());
    Ok(())
}

/// The cached facts.
pub(crate) struct AccessCache {
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

impl AccessCache {
    pub(crate) fn new(main: MainDatabase) -> Self {
        Self {
            main,
            sessions: Cache::builder().max_capacity(FACTS).time_to_live(FACT_LIFE).build(),
            members: Cache::builder().max_capacity(FACTS).time_to_live(FACT_LIFE).build(),
            log: RwLock::default(),
        }
    }

    /// Whose session it is, when it lives. `user_id` is whose it is said to be.
    pub(crate) async fn session_user(&self, id: SessionId, user_id: UserId) -> Result<Option<UserId>> {
        self.fact(&self.sessions, id, &[id.uuid(), user_id.uuid()], async |connection| sessions::find_living(connection, id).await).await
    }

    pub(crate) async fn member(&self, user_id: UserId, tenant_id: TenantId) -> Result<Option<Arc<Member<Tenant>>>> {
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
        read: impl AsyncFnOnce(&mut Connection<Main>) -> models::Result<Option<T>>,
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
