//! The connections of one database, as the budget knows them.

use std::{collections::VecDeque, time::Instant};

use tokio::sync::oneshot;

use super::Grant;

/// A connection on lease, with what is known of its use.
#[derive(Debug)]
pub(crate) struct Held<S> {
    pub(crate) session: S,
    /// Whether it was used, rested, and used again.
    pub(super) reused: bool,
    /// Since when it has been busy without a rest.
    pub(super) busy_since: Instant,
}

/// How much an idle connection would be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Its database has others.
    Further,
    /// Used once.
    Once,
    /// Used again and again.
    Often,
}

/// In the order in which they are evicted.
pub(super) const CLASSES: [Class; 3] = [Class::Further, Class::Once, Class::Often];

impl Class {
    /// The class of a database's only connection.
    pub(super) fn of_only_one<S>(held: &Held<S>) -> Self {
        if held.reused { Self::Often } else { Self::Once }
    }
}

/// An idle connection.
pub(super) struct Idle<S> {
    pub(super) held: Held<S>,
    pub(super) class: Class,
    pub(super) returned: u64,
    pub(super) since: Instant,
}

pub(super) struct Database<S> {
    /// The one used last at the end.
    pub(super) idle: Vec<Idle<S>>,
    /// Idle, leased or being opened.
    pub(super) connections: usize,
    pub(super) is_opening: bool,
    pub(super) waiting: VecDeque<oneshot::Sender<Grant<S>>>,
    /// Whether it is in the queue of databases that wait for their first connection.
    pub(super) in_turn: bool,
}

impl<S> Default for Database<S> {
    fn default() -> Self {
        Self { idle: Vec::new(), connections: 0, is_opening: false, waiting: VecDeque::new(), in_turn: false }
    }
}

impl<S> Database<S> {
    pub(super) fn is_unused(&self) -> bool {
        self.connections == 0 && self.waiting.is_empty() && !self.in_turn
    }

    /// Whether a request still waits. Forgets those that have gone.
    pub(super) fn is_wanted(&mut self) -> bool {
        while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiting.pop_front();
        }
        !self.waiting.is_empty()
    }
}
