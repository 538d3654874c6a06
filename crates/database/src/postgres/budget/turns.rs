//! The turns of databases that have no connection, and opening connections.

use std::{hash::Hash, time::Instant};

use super::{Budget, OPEN_CONCURRENCY, OVERDUE, Task, database::Database};

impl<K: Hash + Eq + Clone, S> Budget<K, S> {
    /// Whether the server may be asked for another connection now. Overdue openings are no more than half the budget: the server
    /// may only be slow, and more requests make it slower.
    pub(super) fn may_open(&self, now: Instant) -> bool {
        let is_work = |since: &&Instant| now.saturating_duration_since(**since) < OVERDUE;
        self.opening.len() < self.limits.max_openings() && self.opening.values().filter(is_work).count() < OPEN_CONCURRENCY
    }

    /// Opens connections to the databases that have none, in turn, as far as there is room.
    pub(super) fn take_turns(&mut self, now: Instant, tasks: &mut Vec<Task<K, S>>) {
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

    /// Takes the next database from the queue whose requests still wait.
    pub(super) fn next_in_turn(&mut self) -> Option<K> {
        while let Some(key) = self.turns.pop_front() {
            if self.databases.get_mut(&key).is_some_and(Database::is_wanted) {
                return Some(key);
            }
            if let Some(database) = self.databases.get_mut(&key) {
                database.in_turn = false;
            }
            self.remove_if_unused(&key);
        }
        None
    }

    pub(super) fn wait_for_turn(&mut self, key: &K) {
        if let Some(database) = self.databases.get_mut(key)
            && !database.in_turn
            && !database.is_opening
        {
            database.in_turn = true;
            self.turns.push_back(key.clone());
        }
    }

    pub(super) fn begin_to_open(&mut self, key: &K, victim: Option<S>, now: Instant, tasks: &mut Vec<Task<K, S>>) {
        self.opening.insert(key.clone(), now);
        let database = self.databases.entry(key.clone()).or_default();
        (database.in_turn, database.is_opening) = (false, true);
        database.connections += 1;
        tasks.push(Task::Open(key.clone(), victim));
    }
}
