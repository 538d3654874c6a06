//! The ledger of one server's budget of connections: which database gets a connection, and which one is closed for it. Uses
//! neither clock nor network.
//!
//! - There are never more connections than the budget, those that are being opened or closed included.
//! - A database's first connection comes before another's second: requests queue for the connection that there is. A further
//!   one is opened for a long queue while there is room, and replaces another database's only when that has been idle for long.
//! - The connection that will be missed least is evicted first: connections that are not their database's only one, then those
//!   that were used once, then the others; among equals the least recently used (segmented LRU: Karedla, Love, Wherry, "Caching
//!   Strategies to Improve Disk System Performance", 1994). So many databases that are each used once can't displace those
//!   in constant use.
//! - Databases without a connection take turns. While one waits, no other keeps a connection busy for longer than
//!   [`QUANTUM`].

mod database;
mod idle;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

pub(super) use self::database::Held;
use self::{
    database::{Database, Idle},
    idle::ByClass,
};
use crate::error::Error;

/// How long a database may keep a connection busy without a pause while others wait for one: several times what it costs to
/// open one.
pub(super) const QUANTUM: Duration = Duration::from_millis(100);
/// How long a connection is idle before it may be evicted for another database's further one: a connection that was just used
/// is probably needed again soon.
const HOLD: Duration = Duration::from_secs(1);
/// How many requests wait for each of a database's connections before another one is opened at once. Opening takes as long as
/// dozens of small requests, and more connections than processors make nothing faster.
const QUEUE: usize = 4;
/// Connections that are opened at once: opening is work for the server, and must not slow down other connections.
const OPEN_CONCURRENCY: usize = 2;
/// An opening that takes longer than this is no longer work for the server: its database does not answer, and must not delay
/// the others.
const OVERDUE: Duration = Duration::from_millis(300);

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To all databases together, at least 1.
    pub(super) total: usize,
    /// To one database, at least 1.
    pub(super) per_database: usize,
}

impl Limits {
    fn max_openings(self) -> usize {
        self.total.div_ceil(2).max(OPEN_CONCURRENCY)
    }
}

/// The connections of a budget, by what they are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// All that count, those that are being opened or closed included; never more than the budget.
    pub open: usize,
    /// On lease to a request.
    pub leased: usize,
    /// Waiting for work.
    pub idle: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// How many were opened since the start.
    pub opened: u64,
    /// How many of them replaced another database's.
    pub evictions: u64,
}

/// What a waiting request gets: a connection, or the reason why none could be opened.
pub(super) type Grant<S> = Result<Held<S>, Arc<Error>>;

/// Work that is done outside of the lock.
#[derive(Debug)]
pub(super) enum Task<K, S> {
    /// Close another database's connection if there is one, open one to this, and call [`Budget::opened`].
    Open(K, Option<S>),
    /// Close a connection, and call [`Budget::closed`].
    Close(S),
}

/// How a lease begins.
#[derive(Debug)]
pub(super) enum Acquired<S> {
    /// With an idle connection.
    Now(Held<S>),
    /// In the queue. A request that stops waiting must give back what was granted meanwhile.
    Later(oneshot::Receiver<Grant<S>>),
}

/// The ledger.
pub(super) struct Budget<K, S> {
    limits: Limits,
    open: usize,
    /// Databases to which a connection is being opened, each with one, and since when.
    opening: HashMap<K, Instant>,
    databases: HashMap<K, Database<S>>,
    idle: ByClass<K>,
    /// Grows with every return.
    returns: u64,
    /// Databases whose requests wait and that have no connection, each once.
    turns: VecDeque<K>,
    opened: u64,
    evictions: u64,
}

impl<K: Hash + Eq + Clone, S> Budget<K, S> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits: Limits { total: limits.total.max(1), per_database: limits.per_database.max(1) },
            open: 0,
            opening: HashMap::new(),
            databases: HashMap::new(),
            idle: Default::default(),
            returns: 0,
            turns: VecDeque::new(),
            opened: 0,
            evictions: 0,
        }
    }

    /// Requests a connection to a database.
    pub(super) fn acquire(&mut self, key: &K, now: Instant, tasks: &mut Vec<Task<K, S>>) -> Acquired<S> {
        if let Some(held) = self.take_idle(key, now) {
            return Acquired::Now(held);
        }
        let (sender, receiver) = oneshot::channel();
        let database = self.databases.entry(key.clone()).or_default();
        database.waiting.push_back(sender);
        let queue_is_long = database.waiting.len() > QUEUE * database.connections;
        if database.connections == 0 {
            self.wait_for_turn(key);
            self.take_turns(now, tasks);
        } else if queue_is_long && self.open < self.limits.total {
            self.open_further(key, now, tasks);
        }
        Acquired::Later(receiver)
    }

    /// A request has waited for long: opens another connection of its database if that is allowed.
    pub(super) fn open_further(&mut self, key: &K, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        let per_database = self.limits.per_database;
        // An opening that became overdue meanwhile makes it others' turn.
        self.take_turns(now, tasks);
        let Some(database) = self.databases.get_mut(key) else { return };
        let may_grow = (1..per_database).contains(&database.connections) && !database.is_opening;
        if may_grow && database.is_wanted() && self.may_open(now) {
            let idle_for_long = |idle: &Idle<S>| now.saturating_duration_since(idle.since) >= HOLD;
            if let Some(victim) = self.make_room(idle_for_long) {
                self.begin_to_open(key, victim, now, tasks);
            }
        }
    }

    /// A connection is back.
    pub(super) fn give_back(&mut self, key: &K, held: Held<S>, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        let others_wait = !self.turns.is_empty() && self.open >= self.limits.total && self.may_open(now);
        if others_wait
            && now.saturating_duration_since(held.busy_since) >= QUANTUM
            && let Some(next) = self.next_in_turn()
        {
            self.evictions += 1;
            self.disconnect(key);
            self.begin_to_open(&next, Some(held.session), now, tasks);
        } else if let Some(held) = self.hand_over(key, held) {
            self.keep_idle(key, held, now);
            self.take_turns(now, tasks);
        }
    }

    /// Whether a request waits for a connection of this database, or for its place in the budget.
    pub(super) fn is_wanted(&self, key: &K) -> bool {
        let by_its_own = self.databases.get(key).is_some_and(|database| !database.waiting.is_empty());
        by_its_own || !self.turns.is_empty() && self.open >= self.limits.total
    }

    /// A leased connection was closed.
    pub(super) fn lost(&mut self, key: &K, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.open -= 1;
        self.disconnect(key);
        self.take_turns(now, tasks);
    }

    /// The outcome of [`Task::Open`].
    pub(super) fn opened(&mut self, key: &K, outcome: Result<S, Error>, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.opening.remove(key);
        if let Some(database) = self.databases.get_mut(key) {
            database.is_opening = false;
        }
        match outcome {
            Ok(session) => {
                self.opened += 1;
                self.give_back(key, Held { session, reused: false, busy_since: now }, now, tasks);
            }
            Err(error) => {
                self.open -= 1;
                // Requests that wait for connections that exist go on waiting for those.
                if let Some(database) = self.databases.get_mut(key).filter(|database| database.connections == 1) {
                    let error = Arc::new(error);
                    for waiting in database.waiting.drain(..) {
                        let _gone = waiting.send(Err(Arc::clone(&error)));
                    }
                }
                self.disconnect(key);
            }
        }
        self.take_turns(now, tasks);
    }

    /// [`Task::Close`] is done.
    pub(super) fn closed(&mut self, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.open -= 1;
        self.take_turns(now, tasks);
    }

    /// Closes connections that have been idle for this long.
    pub(super) fn expire(&mut self, idle_time: Duration, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.close_idle(|_, idle| now.saturating_duration_since(idle.since) >= idle_time, tasks);
    }

    /// Closes the idle connections to some databases.
    pub(super) fn close_idle_to(&mut self, which: impl Fn(&K) -> bool, tasks: &mut Vec<Task<K, S>>) {
        self.close_idle(|key, _| which(key), tasks);
    }

    /// Counts the connections by what they are doing.
    pub(super) fn connections(&self) -> Connections {
        let idle = self.idle.iter().map(BTreeMap::len).sum();
        let in_use = self.databases.values().map(|database| database.connections).sum::<usize>();
        Connections {
            open: self.open,
            leased: in_use - idle - self.opening.len(),
            idle,
            waiting: self.databases.values().flat_map(|database| &database.waiting).filter(|waiting| !waiting.is_closed()).count(),
            opened: self.opened,
            evictions: self.evictions,
        }
    }

    /// Hands a connection to the next request that waits for one of its database; returns it when none does.
    fn hand_over(&mut self, key: &K, held: Held<S>) -> Option<Held<S>> {
        let mut grant = Ok(held);
        while let Some(waiting) = self.databases.get_mut(key).and_then(|database| database.waiting.pop_front()) {
            match waiting.send(grant) {
                Ok(()) => return None,
                // The request has gone.
                Err(refused) => grant = refused,
            }
        }
        grant.ok()
    }

    /// A database has one connection less. If it was the last, requests that wait for it queue for another.
    fn disconnect(&mut self, key: &K) {
        let Some(database) = self.databases.get_mut(key) else { return };
        database.connections -= 1;
        if database.connections == 0 && database.is_wanted() {
            self.wait_for_turn(key);
        }
        self.remove_if_unused(key);
    }

    fn remove_if_unused(&mut self, key: &K) {
        if self.databases.get(key).is_some_and(Database::is_unused) {
            self.databases.remove(key);
        }
    }
}
