//! The process's cache of sessions and memberships.
//!
//! Every change of these facts is numbered in the main database in commit order. Each instance follows that log, and trusts its
//! cache only while it does. So a change is effective everywhere within [`FRESHNESS`], and immediately in the instance that made
//! it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Member, Result, SessionId, Tenant, TenantId, UserId, dyn_error};
use models::{Connection, Main, MainDatabase, access_changes, members, sessions};
use moka::sync::Cache;
use parking_lot::RwLock;
use uuid::Uuid;

use crate::{Core, OperatorServices, events::events::EventTx};

/// How often an instance polls the log of changes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);
/// The maximum age of the last poll for the cache to be trusted.
const FRESHNESS: Duration = Duration::from_secs(1);
/// After this time every instance applies a change, with a margin for a slow one.
pub(crate) const NOTICED_AFTER: Duration = FRESHNESS.saturating_add(Duration::from_millis(500));
/// How long a fact is cached.
const FACT_TTL: Duration = Duration::from_secs(60);
/// How many facts of a kind are cached; each takes a few hundred bytes.
const MAX_FACTS: u64 = 50_000;

impl OperatorServices {
    /// Follows the log of changes until cancelled (dropped). Otherwise every request reads the main database.
    pub async fn follow_access_changes(&self) {
        let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = self.core.access.follow().await {
                tracing::warn!(error = dyn_error(&error), "cannot read the log of access changes; the cache is bypassed");
            }
        }
    }
}

/// Commits a change of the facts about `subject` (a session, a user or a tenant). It is effective in this instance when this
/// returns, and everywhere after [`NOTICED_AFTER`].
pub(crate) async fn commit_access_change(core: &Core, mut tx: EventTx<Main>, subject: impl Into<Uuid>) -> Result<()> {
    let subject = subject.into();
    let version = access_changes::push(&mut tx, subject, core.clock().now()).await?;
    tx.commit().await?;
    core.access.log.write().record(subject, version, Instant::now());
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

/// What this instance knows of the log of changes.
#[derive(Default)]
struct Log {
    /// Every change up to this number is known.
    version: i64,
    /// When the last completed poll started; none before the first.
    asked_at: Option<Instant>,
    /// The last change of each subject, and when it was recorded. A fact read before that change is invalid.
    changed: HashMap<Uuid, (i64, Instant)>,
}

impl Log {
    /// Records a change. Changes may arrive out of order: this instance records its own before it reads the earlier ones of
    /// others.
    fn record(&mut self, subject: Uuid, version: i64, at: Instant) {
        let last = self.changed.entry(subject).or_insert((version, at));
        *last = (version.max(last.0), at.max(last.1));
    }

    /// The number up to which every change is known. It is none before the first poll, and then nothing may be cached: the first
    /// poll does not return the changes before it.
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
            sessions: Cache::builder().max_capacity(MAX_FACTS).time_to_live(FACT_TTL).build(),
            members: Cache::builder().max_capacity(MAX_FACTS).time_to_live(FACT_TTL).build(),
            log: RwLock::default(),
        }
    }

    /// The user of a live session. `user_id` is the user that the token claims.
    pub(crate) async fn session_user(&self, id: SessionId, user_id: UserId) -> Result<Option<UserId>> {
        self.fact(&self.sessions, id, &[id.uuid(), user_id.uuid()], async |connection| sessions::find_living(connection, id).await).await
    }

    pub(crate) async fn member(&self, user_id: UserId, tenant_id: TenantId) -> Result<Option<Arc<Member<Tenant>>>> {
        self.fact(&self.members, (user_id, tenant_id), &[user_id.uuid(), tenant_id.uuid()], async |connection| {
            Ok(members::find_with_tenant(connection, tenant_id, user_id).await?.map(Arc::new))
        })
        .await
    }

    /// The cached fact if it is valid, otherwise what the database says. A missing fact is not cached: unauthenticated clients
    /// could fill the cache with them.
    async fn fact<K: Hash + Eq + Send + Sync + 'static, T: Clone + Send + Sync + 'static>(
        &self,
        cache: &Cache<K, Fact<T>>,
        key: K,
        subjects: &[Uuid],
        read: impl AsyncFnOnce(&mut Connection<Main>) -> models::Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some(fact) = cache.get(&key)
            && self.log.read().holds(&fact, subjects)
        {
            return Ok(Some(fact.value));
        }
        // Taken before the read: a change committed meanwhile has a greater number and so invalidates what is cached here.
        let version = self.log.read().known_version();
        let value = read(&mut self.main.read().await?).await?;
        if let (Some(value), Some(version)) = (&value, version) {
            cache.insert(key, Fact { value: value.clone(), version });
        }
        Ok(value)
    }

    async fn follow(&self) -> Result<()> {
        let asked_at = Instant::now();
        let known = self.log.read().known_version();
        let mut connection = self.main.read().await?;
        let (version, changes) = match known {
            // Nothing is cached before the first poll, so no earlier change matters.
            None => (access_changes::last_version(&mut connection).await?, Vec::new()),
            Some(known) => {
                let changes = access_changes::after(&mut connection, known).await?;
                (changes.last().map_or(known, |(version, _)| *version), changes)
            }
        };
        let mut log = self.log.write();
        for (version, subject) in changes {
            log.record(subject, version, asked_at);
        }
        // No fact outlives its time to live, so no change has to be remembered longer.
        log.changed.retain(|_, (_, recorded_at)| recorded_at.elapsed() < 2 * FACT_TTL);
        log.version = version;
        log.asked_at = Some(asked_at);
        Ok(())
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
    fn a_change_that_arrives_late_hides_no_later_one() {
        let mut log = Log { asked_at: Some(Instant::now()), version: 6, ..Log::default() };
        let subject = Uuid::from_u128(1);
        // This instance records its own change 7 while the poll that ends with 6 is still running.
        log.record(subject, 7, Instant::now());
        log.record(subject, 6, Instant::now());
        let read_before_7 = Fact { value: (), version: 6 };
        assert!(!log.holds(&read_before_7, &[subject]));
        assert!(log.holds(&Fact { value: (), version: 7 }, &[subject]));
    }
}
