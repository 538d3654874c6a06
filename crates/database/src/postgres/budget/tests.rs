//! The budget under thousands of random histories, and under some chosen ones.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Ledger = Budget<u8, u32>;

/// A budget with a simulated server: it does the budget's tasks and knows every connection.
struct Simulation {
    budget: Ledger,
    total: usize,
    now: Instant,
    tasks: Vec<Task<u8, u32>>,
    leased: Vec<(u8, Held<u32>)>,
    waiting: Vec<(u8, oneshot::Receiver<Grant<u32>>)>,
    /// Which database an open connection is to.
    open: HashMap<u32, u8>,
    sessions: u32,
}

impl Simulation {
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

    /// Does a task, or lets it fail.
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
        assert!(open <= self.total && self.open.len() <= self.total, "{open} counted, {} open", self.open.len());
        assert_eq!(open, leased + idle + opening + closing);
        assert_eq!((leased, waiting), (self.leased.len(), self.waiting.len()));
        let overdue = self.budget.opening.values().filter(|since| self.now - **since >= OVERDUE).count();
        assert!(opening - overdue <= OPEN_CONCURRENCY, "{opening} are being opened, {overdue} of them overdue");
        assert!(opening <= self.budget.limits.max_openings(), "{opening} are being opened of {}", self.total);
    }

    /// Returns all connections and lets every task succeed, until nothing is left to do.
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
    Cancel(usize),
    Perform(usize, bool),
    OpenFurther(u8),
    Wait(u64),
    CloseIdle(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8).prop_map(Step::Acquire),
        3 => (0..8_usize).prop_map(Step::GiveBack),
        1 => (0..8_usize).prop_map(Step::Lose),
        1 => (0..8_usize).prop_map(Step::Cancel),
        4 => (0..8_usize, prop::bool::weighted(0.8)).prop_map(|(n, succeeds)| Step::Perform(n, succeeds)),
        1 => (0..6_u8).prop_map(Step::OpenFurther),
        1 => (0..1500_u64).prop_map(Step::Wait),
        1 => (0..6_u8).prop_map(Step::CloseIdle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_is_right_whatever_happens_and_no_request_waits_for_ever(
        total in 1..6_usize,
        per_database in 1..4_usize,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut simulation = Simulation::new(total, per_database);
        for step in steps {
            match step {
                Step::Acquire(key) => simulation.acquire(key),
                Step::GiveBack(n) if n < simulation.leased.len() => simulation.give_back(n),
                Step::Lose(n) if n < simulation.leased.len() => {
                    let (key, held) = simulation.leased.remove(n);
                    simulation.open.remove(&held.session);
                    simulation.budget.lost(&key, simulation.now, &mut simulation.tasks);
                }
                Step::Cancel(n) if n < simulation.waiting.len() => drop(simulation.waiting.remove(n)),
                Step::Perform(n, succeeds) if n < simulation.tasks.len() => simulation.perform(n, succeeds),
                Step::OpenFurther(key) => simulation.budget.open_further(&key, simulation.now, &mut simulation.tasks),
                Step::Wait(millis) => simulation.now += Duration::from_millis(millis),
                Step::CloseIdle(key) => simulation.budget.close_idle_to(|known| *known == key, &mut simulation.tasks),
                _ => {}
            }
            simulation.check();
        }
        simulation.settle();
        prop_assert!(simulation.waiting.is_empty(), "{} wait for ever", simulation.waiting.len());
        simulation.budget.expire(Duration::ZERO, simulation.now, &mut simulation.tasks);
        simulation.settle();
        prop_assert_eq!(simulation.budget.connections().open, 0);
        prop_assert!(simulation.budget.databases.is_empty() && simulation.budget.turns.is_empty());
    }
}

/// Seeded once: an opening counted for as long as it took. Two databases that did not answer delayed all others.
#[test]
fn databases_that_do_not_answer_delay_no_other() {
    let mut simulation = Simulation::new(10, 2);
    for key in 0..3 {
        simulation.acquire(key);
    }
    assert_eq!(simulation.tasks.len(), OPEN_CONCURRENCY);
    simulation.now += OVERDUE;
    simulation.budget.open_further(&2, simulation.now, &mut simulation.tasks);
    assert_eq!(simulation.tasks.len(), OPEN_CONCURRENCY + 1);
    simulation.perform(OPEN_CONCURRENCY, true);
    assert_eq!(simulation.leased.len(), 1);
    simulation.check();
    simulation.settle();
}

#[test]
fn a_slow_server_gets_a_bounded_number_of_openings() {
    let mut simulation = Simulation::new(10, 2);
    for key in 0..9 {
        simulation.acquire(key);
        simulation.now += OVERDUE;
        simulation.check();
    }
    assert_eq!(simulation.tasks.len(), 5);
    simulation.settle();
    assert!(simulation.waiting.is_empty());
}

#[test]
fn connections_used_often_outlast_connections_used_once() {
    let mut simulation = Simulation::new(5, 1);
    for _ in 0..2 {
        simulation.acquire(0);
        simulation.settle();
    }
    for key in 1..=20 {
        simulation.acquire(key);
        simulation.settle();
    }
    let kept: BTreeSet<_> = simulation.open.values().copied().collect();
    assert_eq!(kept, BTreeSet::from([0, 17, 18, 19, 20]));
}

#[test]
fn a_first_connection_comes_before_another_databases_second() {
    let mut simulation = Simulation::new(3, 3);
    simulation.acquire(0);
    simulation.perform(0, true);
    // It gets a second one: the queue is long and there is room.
    (0..=QUEUE).for_each(|_| simulation.acquire(0));
    simulation.perform(0, true);
    simulation.settle();
    assert_eq!(simulation.open.len(), 2);
    simulation.acquire(1);
    simulation.acquire(2);
    simulation.settle();
    let mut kept: Vec<_> = simulation.open.values().copied().collect();
    kept.sort_unstable();
    assert_eq!(kept, [0, 1, 2]);
}

#[test]
fn no_database_keeps_a_connection_busy_while_others_wait() {
    let mut simulation = Simulation::new(1, 1);
    simulation.acquire(0);
    simulation.perform(0, true);
    simulation.acquire(1);
    let mut served = 0;
    // A request always waits for database 0.
    while simulation.leased.iter().all(|(key, _)| *key == 0) {
        simulation.acquire(0);
        simulation.now += Duration::from_millis(10);
        simulation.give_back(0);
        if !simulation.tasks.is_empty() {
            simulation.perform(0, true);
        }
        served += 1;
        assert!(served < 100, "database 1 waits for ever");
    }
    assert_eq!(served, QUANTUM.as_millis() / 10);
    // Then it is the turn of database 0 again.
    simulation.give_back(0);
    simulation.perform(0, true);
    assert_eq!(simulation.leased[0].0, 0);
}

#[test]
fn a_failure_reaches_every_request_that_waits_for_it() {
    let mut simulation = Simulation::new(2, 1);
    simulation.acquire(0);
    simulation.acquire(0);
    simulation.acquire(1);
    simulation.perform(0, false);
    assert_eq!(simulation.waiting.len(), 1, "database 1's");
    simulation.perform(0, true);
    assert_eq!(simulation.leased.len(), 1);
}
