//! Who gets a connection, and which one is closed for it: the bookkeeping of one server's budget, without clock and network.
//!
//! - There are never more connections than the budget, those that are being opened or closed included.
//! - A database's first connection comes before another's second: whoever has one queues for it. A further one is opened
//!   for a long queue while there is room, and takes another database's place only when that one has been idle for long.
//! - What makes room is what will be missed least: connections that are not their database's only one, then those that were
//!   used once, then the others; among equals the least recently used (segmented LRU: Karedla, Love, Wherry, "Caching
//!   Strategies to Improve Disk System Performance", 1994). So many databases that are each used once can't displace those
//!   in constant use.
//! - Databases without a connection take turns. While one waits, no other keeps a connection busy for longer than
//!   [`QUANTUM`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::Error;

/// How long a database may go on with a connection without a pause while others wait for one: several times what it costs to
/// open one.
pub(super) const QUANTUM: Duration = Duration::from_millis(100);
/// How long a connection is left alone before it makes room for another database's further one: what was used just now is
/// probably wanted in a moment.
const HOLD: Duration = Duration::from_secs(1);
/// How many wait for each of a database's connections before another one is opened at once. Opening takes as long as dozens
/// of small requests, and more connections than processors make nothing faster.
const QUEUE: usize = 4;
/// Connections that are opened at once: opening is work for the server, and those who have a connection shall not notice.
const OPENINGS: usize = 2;
/// An opening that takes longer than this is no work for the server any more: its database does not answer, and shall hold up
/// no other.
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
    fn most_openings(self) -> usize {
        self.total.div_ceil(2).max(OPENINGS)
    }
}

/// The connections of a budget, by what they are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// All that count, those that are being opened or closed included; never more than the budget.
    pub open: usize,
    /// At work for somebody.
    pub leased: usize,
    /// Waiting for work.
    pub idle: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// How many were opened since the start.
    pub opened: u64,
    /// How many of them took another database's place.
    pub evictions: u64,
}

/// A connection on lease, with what is known of its use.
#[derive(Debug)]
pub(super) struct Held<S> {
    pub(super) session: S,
    /// Whether it was used, rested, and used again.
    reused: bool,
    /// Since when it has been at work without a rest.
    busy_since: Instant,
}

/// What somebody who waited gets: a connection, or why none could be opened.
pub(super) type Grant<S> = Result<Held<S>, Arc<Error>>;

/// What is to be done outside of the lock.
#[derive(Debug)]
pub(super) enum Task<K, S> {
    /// Close the connection of another database if there is one, open one to this, and say [`Budget::opened`].
    Open(K, Option<S>),
    /// Close a connection, and say [`Budget::closed`].
    Close(S),
}

/// How a lease begins.
#[derive(Debug)]
pub(super) enum Acquired<S> {
    /// With an idle connection.
    Now(Held<S>),
    /// In the queue. Whoever stops waiting must give back what was granted meanwhile.
    Later(oneshot::Receiver<Grant<S>>),
}

/// The books.
pub(super) struct Budget<K, S> {
    limits: Limits,
    open: usize,
    /// Databases to which a connection is being opened, each with one, and since when.
    opening: HashMap<K, Instant>,
    databases: HashMap<K, Database<S>>,
    /// Idle connections by class, the least recently used first.
    idle: [BTreeMap<u64, K>; CLASSES.len()],
    /// Grows with every return.
    returns: u64,
    /// Databases whose requests wait and that have no connection, each once.
    turns: VecDeque<K>,
    opened: u64,
    evictions: u64,
}

/// How much an idle connection would be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Its database has others.
    Further,
    /// Used once.
    Once,
    /// Used again and again.
    Often,
}

/// In the order in which they make room.
const CLASSES: [Class; 3] = [Class::Further, Class::Once, Class::Often];

struct Database<S> {
    /// The one used last at the end.
    idle: Vec<Idle<S>>,
    /// Idle, leased or being opened.
    connections: usize,
    is_opening: bool,
    waiting: VecDeque<oneshot::Sender<Grant<S>>>,
    /// Whether it is among [`Budget::turns`].
    in_turn: bool,
}

struct Idle<S> {
    held: Held<S>,
    class: Class,
    returned: u64,
    since: Instant,
}

impl<S> Default for Database<S> {
    fn default() -> Self {
        Self { idle: Vec::new(), connections: 0, is_opening: false, waiting: VecDeque::new(), in_turn: false }
    }
}

impl<S> Database<S> {
    fn is_unused(&self) -> bool {
        self.connections == 0 && self.waiting.is_empty() && !self.in_turn
    }

    /// Whether anybody waits who has not gone away.
    fn is_wanted(&mut self) -> bool {
        while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiting.pop_front();
        }
        !self.waiting.is_empty()
    }
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

    /// Asks for a connection to a database.
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

    /// Somebody has waited for long: perhaps the database may have another connection.
    pub(super) fn open_further(&mut self, key: &K, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        let per_database = self.limits.per_database;
        // An opening may have become overdue meanwhile, which makes it others' turn.
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
            self.leave(key);
            self.begin_to_open(&next, Some(held.session), now, tasks);
        } else if let Some(held) = self.hand_over(key, held) {
            self.rest(key, held, now);
            self.take_turns(now, tasks);
        }
    }

    /// Whether anybody waits for a connection of this database, or for its place.
    pub(super) fn is_wanted(&self, key: &K) -> bool {
        let of_its_own = self.databases.get(key).is_some_and(|database| !database.waiting.is_empty());
        of_its_own || !self.turns.is_empty() && self.open >= self.limits.total
    }

    /// A connection that was on lease is closed.
    pub(super) fn lost(&mut self, key: &K, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.open -= 1;
        self.leave(key);
        self.take_turns(now, tasks);
    }

    /// What came of [`Task::Open`].
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
                // Who waits for connections that there are goes on waiting for those.
                if let Some(database) = self.databases.get_mut(key).filter(|database| database.connections == 1) {
                    let error = Arc::new(error);
                    for waiting in database.waiting.drain(..) {
                        let _gone = waiting.send(Err(Arc::clone(&error)));
                    }
                }
                self.leave(key);
            }
        }
        self.take_turns(now, tasks);
    }

    /// [`Task::Close`] is done.
    pub(super) fn closed(&mut self, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.open -= 1;
        self.take_turns(now, tasks);
    }

    /// Closes what has been idle for this long.
    pub(super) fn expire(&mut self, idle_time: Duration, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.close_idle(|_, idle| now.saturating_duration_since(idle.since) >= idle_time, tasks);
    }

    /// Closes the idle connections to some databases.
    pub(super) fn forget(&mut self, which: impl Fn(&K) -> bool, tasks: &mut Vec<Task<K, S>>) {
        self.close_idle(|key, _| which(key), tasks);
    }

    /// How many connections do what.
    pub(super) fn connections(&self) -> Connections {
        let idle = self.idle.iter().map(BTreeMap::len).sum();
        let at_work = self.databases.values().map(|database| database.connections).sum::<usize>();
        Connections {
            open: self.open,
            leased: at_work - idle - self.opening.len(),
            idle,
            waiting: self.databases.values().flat_map(|database| &database.waiting).filter(|waiting| !waiting.is_closed()).count(),
            opened: self.opened,
            evictions: self.evictions,
        }
    }

    /// Takes the connection of the database that was used last.
    fn take_idle(&mut self, key: &K, now: Instant) -> Option<Held<S>> {
        let Idle { held, class, returned, .. } = self.databases.get_mut(key)?.idle.pop()?;
        self.idle[class as usize].remove(&returned);
        Some(Held { reused: true, busy_since: now, ..held })
    }

    /// Gives a connection to the next of those who wait for one of its database, or back when nobody does.
    fn hand_over(&mut self, key: &K, held: Held<S>) -> Option<Held<S>> {
        let mut grant = Ok(held);
        while let Some(waiting) = self.databases.get_mut(key).and_then(|database| database.waiting.pop_front()) {
            match waiting.send(grant) {
                Ok(()) => return None,
                // It has gone away.
                Err(refused) => grant = refused,
            }
        }
        grant.ok()
    }

    fn rest(&mut self, key: &K, held: Held<S>, now: Instant) {
        self.returns += 1;
        let returned = self.returns;
        let database = self.databases.entry(key.clone()).or_default();
        let class = if database.connections > 1 { Class::Further } else { Class::of_only_one(&held) };
        database.idle.push(Idle { held, class, returned, since: now });
        self.idle[class as usize].insert(returned, key.clone());
        // Those used often are to leave room for others to become it.
        if self.idle[Class::Often as usize].len() > self.limits.total * 4 / 5
            && let Some((&returned, key)) = self.idle[Class::Often as usize].first_key_value()
        {
            let key = key.clone();
            self.reclassify(&key, returned, Class::Often, Class::Once);
        }
    }

    fn reclassify(&mut self, key: &K, returned: u64, from: Class, to: Class) {
        let idle = self.databases.get_mut(key).and_then(|database| database.idle.iter_mut().find(|idle| idle.returned == returned));
        if let Some(idle) = idle {
            idle.class = to;
            self.idle[to as usize].insert(returned, key.clone());
        }
        self.idle[from as usize].remove(&returned);
    }

    /// Whether the server shall open another connection now. Of those that are overdue there are no more than half the budget:
    /// perhaps the server is only slow, and the more it is asked, the slower it gets.
    fn may_open(&self, now: Instant) -> bool {
        let is_work = |since: &&Instant| now.saturating_duration_since(**since) < OVERDUE;
        self.opening.len() < self.limits.most_openings() && self.opening.values().filter(is_work).count() < OPENINGS
    }

    /// Lets those open a connection who have none, in turn, as far as there is room.
    fn take_turns(&mut self, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        while self.may_open(now)
            && let Some(key) = self.next_in_turn()
        {
            match self.make_room(|_| true) {
                Some(victim) => self.begin_to_open(&key, victim, now, tasks),
                None => {
                    self.turns.push_front(key);
                    return;
                }
            }
        }
    }

    /// The next database in turn that still is wanted, taken from the queue.
    fn next_in_turn(&mut self) -> Option<K> {
        while let Some(key) = self.turns.pop_front() {
            if self.databases.get_mut(&key).is_some_and(Database::is_wanted) {
                return Some(key);
            }
            if let Some(database) = self.databases.get_mut(&key) {
                database.in_turn = false;
            }
            self.forget_unused(&key);
        }
        None
    }

    fn wait_for_turn(&mut self, key: &K) {
        if let Some(database) = self.databases.get_mut(key)
            && !database.in_turn
            && !database.is_opening
        {
            database.in_turn = true;
            self.turns.push_back(key.clone());
        }
    }

    fn begin_to_open(&mut self, key: &K, victim: Option<S>, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.opening.insert(key.clone(), now);
        let database = self.databases.entry(key.clone()).or_default();
        (database.in_turn, database.is_opening) = (false, true);
        database.connections += 1;
        tasks.push(Task::Open(key.clone(), victim));
    }

    /// Room for one more connection, which counts from now on, with the idle one that is to be closed for it. None when all
    /// are in use, or may not go.
    fn make_room(&mut self, may_go: impl Fn(&Idle<S>) -> bool) -> Option<Option<S>> {
        if self.open < self.limits.total {
            self.open += 1;
            return Some(None);
        }
        for class in CLASSES {
            while let Some((&returned, key)) = self.idle[class as usize].first_key_value() {
                let key = key.clone();
                let database = self.databases.get_mut(&key)?;
                let position = database.idle.iter().position(|idle| idle.returned == returned)?;
                if class == Class::Further && database.connections == 1 {
                    // It has become the only one since it was put there.
                    let class = Class::of_only_one(&database.idle[position].held);
                    self.reclassify(&key, returned, Class::Further, class);
                    continue;
                }
                if !may_go(&database.idle[position]) {
                    break;
                }
                let idle = database.idle.remove(position);
                self.idle[class as usize].remove(&returned);
                self.evictions += 1;
                self.leave(&key);
                return Some(Some(idle.held.session));
            }
        }
        None
    }

    fn close_idle(&mut self, which: impl Fn(&K, &Idle<S>) -> bool, tasks: &mut Vec<Task<K, S>>) {
        let keys: Vec<K> = self.databases.iter().filter(|(_, database)| !database.idle.is_empty()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(database) = self.databases.get_mut(&key) else { continue };
            for idle in database.idle.extract_if(.., |idle| which(&key, idle)).collect::<Vec<_>>() {
                self.idle[idle.class as usize].remove(&idle.returned);
                tasks.push(Task::Close(idle.held.session));
                self.leave(&key);
            }
        }
    }

    /// A database has a connection less. Who waits for it queues for another.
    fn leave(&mut self, key: &K) {
        let Some(database) = self.databases.get_mut(key) else { return };
        database.connections -= 1;
        if database.connections == 0 && database.is_wanted() {
            self.wait_for_turn(key);
        }
        self.forget_unused(key);
    }

    fn forget_unused(&mut self, key: &K) {
        if self.databases.get(key).is_some_and(Database::is_unused) {
            self.databases.remove(key);
        }
    }
}

impl Class {
    fn of_only_one<S>(held: &Held<S>) -> Self {
        if held.reused { Self::Often } else { Self::Once }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Books = Budget<u8, u32>;

    /// A budget with somebody who does what it says, and knows every connection.
    struct Bench {
        budget: Books,
        total: usize,
        now: Instant,
        tasks: Vec<Task<u8, u32>>,
        leased: Vec<(u8, Held<u32>)>,
        waiting: Vec<(u8, oneshot::Receiver<Grant<u32>>)>,
        /// Which database an open connection is to.
        open: HashMap<u32, u8>,
        sessions: u32,
    }

    impl Bench {
        fn new(total: usize, per_database: usize) -> Self {
            Self {
                budget: Budget::new(Limits { total, per_database }),
                total,
                now: Instant::now(),
                tasks: Vec::new(),
                leased: Vec::new(),
                waiting: Vec::new(),
                open: HashMap::new(),
                sessions: 0,
            }
        }

        fn acquire(&mut self, key: u8) {
            match self.budget.acquire(&key, self.now, &mut self.tasks) {
                Acquired::Now(held) => self.lease(key, held),
                Acquired::Later(receiver) => self.waiting.push((key, receiver)),
            }
        }

        fn lease(&mut self, key: u8, held: Held<u32>) {
            assert_eq!(self.open.get(&held.session), Some(&key), "a connection to another database, or a closed one");
            self.leased.push((key, held));
        }

        fn give_back(&mut self, n: usize) {
            let (key, held) = self.leased.remove(n);
            self.budget.give_back(&key, held, self.now, &mut self.tasks);
            self.collect_grants();
        }

        /// Does a task, or fails to.
        fn perform(&mut self, n: usize, succeeds: bool) {
            match self.tasks.remove(n) {
                Task::Close(session) => {
                    self.open.remove(&session).expect("open until now");
                    self.budget.closed(self.now, &mut self.tasks);
                }
                Task::Open(key, victim) => {
                    if let Some(session) = victim {
                        self.open.remove(&session).expect("open until now");
                    }
                    let outcome = if succeeds {
                        self.sessions += 1;
                        self.open.insert(self.sessions, key);
                        Ok(self.sessions)
                    } else {
                        Err(Error::Busy("it is down"))
                    };
                    self.budget.opened(&key, outcome, self.now, &mut self.tasks);
                }
            }
            self.collect_grants();
        }

        fn collect_grants(&mut self) {
            for (key, mut receiver) in std::mem::take(&mut self.waiting) {
                match receiver.try_recv() {
                    Ok(Ok(held)) => self.lease(key, held),
                    Ok(Err(_)) => {}
                    Err(_) => self.waiting.push((key, receiver)),
                }
            }
        }

        fn check(&self) {
            let Connections { open, leased, idle, waiting, .. } = self.budget.connections();
            let closing = self.tasks.iter().filter(|task| matches!(task, Task::Close(_))).count();
            let opening = self.tasks.len() - closing;
            assert!(open <= self.total && self.open.len() <= self.total, "{open} booked, {} there", self.open.len());
            assert_eq!(open, leased + idle + opening + closing);
            assert_eq!((leased, waiting), (self.leased.len(), self.waiting.len()));
            let overdue = self.budget.opening.values().filter(|since| self.now - **since >= OVERDUE).count();
            assert!(opening - overdue <= OPENINGS, "{opening} are opened, {overdue} of them overdue");
            assert!(opening <= self.budget.limits.most_openings(), "{opening} are opened of {}", self.total);
        }

        /// Everybody gives back what they have, and everything succeeds, until nothing is left to do.
        fn settle(&mut self) {
            while !self.leased.is_empty() || !self.tasks.is_empty() {
                if self.leased.is_empty() {
                    self.perform(0, true);
                } else {
                    self.give_back(0);
                }
                self.check();
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Acquire(u8),
        GiveBack(usize),
        Lose(usize),
        Leave(usize),
        Perform(usize, bool),
        OpenFurther(u8),
        Wait(u64),
        Forget(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6_u8).prop_map(Step::Acquire),
            3 => (0..8_usize).prop_map(Step::GiveBack),
            1 => (0..8_usize).prop_map(Step::Lose),
            1 => (0..8_usize).prop_map(Step::Leave),
            4 => (0..8_usize, prop::bool::weighted(0.8)).prop_map(|(n, succeeds)| Step::Perform(n, succeeds)),
            1 => (0..6_u8).prop_map(Step::OpenFurther),
            1 => (0..1500_u64).prop_map(Step::Wait),
            1 => (0..6_u8).prop_map(Step::Forget),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_happens_the_books_are_right_and_nobody_waits_for_ever(
            total in 1..6_usize,
            per_database in 1..4_usize,
            steps in prop::collection::vec(step(), 0..120),
        ) {
            let mut bench = Bench::new(total, per_database);
            for step in steps {
                match step {
                    Step::Acquire(key) => bench.acquire(key),
                    Step::GiveBack(n) if n < bench.leased.len() => bench.give_back(n),
                    Step::Lose(n) if n < bench.leased.len() => {
                        let (key, held) = bench.leased.remove(n);
                        bench.open.remove(&held.session);
                        bench.budget.lost(&key, bench.now, &mut bench.tasks);
                    }
                    Step::Leave(n) if n < bench.waiting.len() => drop(bench.waiting.remove(n)),
                    Step::Perform(n, succeeds) if n < bench.tasks.len() => bench.perform(n, succeeds),
                    Step::OpenFurther(key) => bench.budget.open_further(&key, bench.now, &mut bench.tasks),
                    Step::Wait(millis) => bench.now += Duration::from_millis(millis),
                    Step::Forget(key) => bench.budget.forget(|known| *known == key, &mut bench.tasks),
                    _ => {}
                }
                bench.check();
            }
            bench.settle();
            prop_assert!(bench.waiting.is_empty(), "{} wait for ever", bench.waiting.len());
            bench.budget.expire(Duration::ZERO, bench.now, &mut bench.tasks);
            bench.settle();
            prop_assert_eq!(bench.budget.connections().open, 0);
            prop_assert!(bench.budget.databases.is_empty() && bench.budget.turns.is_empty());
        }
    }

    /// Planted once: an opening counted for as long as it took. Two databases that did not answer held up all others.
    #[test]
    fn databases_that_do_not_answer_hold_up_no_other() {
        let mut bench = Bench::new(10, 2);
        for key in 0..3 {
            bench.acquire(key);
        }
        assert_eq!(bench.tasks.len(), OPENINGS);
        bench.now += OVERDUE;
        bench.budget.open_further(&2, bench.now, &mut bench.tasks);
        assert_eq!(bench.tasks.len(), OPENINGS + 1);
        bench.perform(OPENINGS, true);
        assert_eq!(bench.leased.len(), 1);
        bench.check();
        bench.settle();
    }

    #[test]
    fn a_server_that_is_slow_is_not_asked_for_everything_at_once() {
        let mut bench = Bench::new(10, 2);
        for key in 0..9 {
            bench.acquire(key);
            bench.now += OVERDUE;
            bench.check();
        }
        assert_eq!(bench.tasks.len(), 5);
        bench.settle();
        assert!(bench.waiting.is_empty());
    }

    #[test]
    fn what_is_used_again_and_again_outlasts_what_is_used_once() {
        let mut bench = Bench::new(5, 1);
        for _ in 0..2 {
            bench.acquire(0);
            bench.settle();
        }
        for key in 1..=20 {
            bench.acquire(key);
            bench.settle();
        }
        let kept: BTreeSet<_> = bench.open.values().copied().collect();
        assert_eq!(kept, BTreeSet::from([0, 17, 18, 19, 20]));
    }

    #[test]
    fn a_first_connection_comes_before_another_databases_second() {
        let mut bench = Bench::new(3, 3);
        bench.acquire(0);
        bench.perform(0, true);
        // It gets a second one, for the queue is long and there is room.
        (0..=QUEUE).for_each(|_| bench.acquire(0));
        bench.perform(0, true);
        bench.settle();
        assert_eq!(bench.open.len(), 2);
        bench.acquire(1);
        bench.acquire(2);
        bench.settle();
        let mut kept: Vec<_> = bench.open.values().copied().collect();
        kept.sort_unstable();
        assert_eq!(kept, [0, 1, 2]);
    }

    #[test]
    fn nobody_keeps_a_connection_busy_while_others_wait() {
        let mut bench = Bench::new(1, 1);
        bench.acquire(0);
        bench.perform(0, true);
        bench.acquire(1);
        let mut served = 0;
        // Database 0 always has somebody waiting.
        while bench.leased.iter().all(|(key, _)| *key == 0) {
            bench.acquire(0);
            bench.now += Duration::from_millis(10);
            bench.give_back(0);
            if !bench.tasks.is_empty() {
                bench.perform(0, true);
            }
            served += 1;
            assert!(served < 100, "database 1 waits for ever");
        }
        assert_eq!(served, QUANTUM.as_millis() / 10);
        // And it goes on with database 0 after that.
        bench.give_back(0);
        bench.perform(0, true);
        assert_eq!(bench.leased[0].0, 0);
    }

    #[test]
    fn a_failure_is_told_to_all_who_wait_for_it() {
        let mut bench = Bench::new(2, 1);
        bench.acquire(0);
        bench.acquire(0);
        bench.acquire(1);
        bench.perform(0, false);
        assert_eq!(bench.waiting.len(), 1, "database 1's");
        bench.perform(0, true);
        assert_eq!(bench.leased.len(), 1);
    }
}
