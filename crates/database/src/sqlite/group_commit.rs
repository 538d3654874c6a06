//! Group commit: transactions whose statements are all known share one commit, and so one wait for the disk.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{error::from_rusqlite, statement::run_all};
use crate::{
    error::{Error, Result},
    statement::Statement,
};

/// How many transactions share a commit at most.
const MAX_GROUP: usize = 64;

/// Transactions that wait for the writer and need no outcome before their commit.
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<Vec<Queued>>);

/// A transaction whose statements are all known.
#[derive(Debug)]
struct Queued {
    statements: Vec<Statement>,
    outcome: oneshot::Sender<Result<()>>,
    ticket: Ticket,
}

/// Identifies a transaction in the queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Ticket(Arc<()>);

/// Transactions to be committed together.
pub(super) struct Group(Vec<Queued>);

impl Queue {
    /// Queues a transaction.
    pub(super) fn push(&self, statements: Vec<Statement>) -> (Ticket, oneshot::Receiver<Result<()>>) {
        let (sender, outcome) = oneshot::channel();
        let ticket = Ticket::default();
        self.0.lock().push(Queued { statements, outcome: sender, ticket: ticket.clone() });
        (ticket, outcome)
    }

    /// Takes the transactions that came first.
    pub(super) fn take_group(&self) -> Group {
        let mut queued = self.0.lock();
        let count = queued.len().min(MAX_GROUP);
        Group(queued.drain(..count).collect())
    }

    /// Takes a transaction back. Returns whether it was still in the queue; otherwise another caller is about to commit it.
    pub(super) fn withdraw(&self, ticket: &Ticket) -> bool {
        let mut queued = self.0.lock();
        let before = queued.len();
        queued.retain(|queued| !Arc::ptr_eq(&queued.ticket.0, &ticket.0));
        queued.len() < before
    }
}

impl Group {
    /// Removes transactions whose callers have gone: these were answered already, or cancelled before they began.
    pub(super) fn drop_abandoned(&mut self) {
        self.0.retain(|queued| !queued.outcome.is_closed());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Runs the transactions in one, each in a savepoint unless it is the only one, and returns the outcome of each.
    pub(super) fn commit(&self, connection: &Connection) -> Result<Vec<Result<()>>> {
        connection.execute_batch("BEGIN IMMEDIATE").map_err(from_rusqlite)?;
        let outcomes = match &self.0[..] {
            // A savepoint copies each page before its first change. A failure of the only transaction rolls back the lease.
            [only] => {
                run_all(connection, false, &only.statements)?;
                vec![Ok(())]
            }
            all => all.iter().map(|queued| run_in_savepoint(connection, &queued.statements)).collect::<Result<_>>()?,
        };
        connection.execute_batch("COMMIT").map_err(from_rusqlite)?;
        Ok(outcomes)
    }

    /// Sends the callers their outcomes.
    pub(super) fn answer(self, outcomes: Result<Vec<Result<()>>>) {
        match outcomes {
            Ok(outcomes) => self.0.into_iter().zip(outcomes).for_each(|(queued, outcome)| drop(queued.outcome.send(outcome))),
            Err(error) => self.0.into_iter().for_each(|queued| drop(queued.outcome.send(Err(error.duplicate())))),
        }
    }
}

/// Runs all of the statements or none of them, and returns their outcome.
///
/// # Errors
/// When the failure also undid what this transaction did before.
fn run_in_savepoint(connection: &Connection, statements: &[Statement]) -> Result<Result<()>> {
    connection.execute_batch("SAVEPOINT whole").map_err(from_rusqlite)?;
    let outcome = run_all(connection, false, statements).map(drop);
    // Some failures (above all of the disk) undo the whole transaction. Then this fails, too.
    let end = if outcome.is_ok() { "RELEASE whole" } else { "ROLLBACK TO whole; RELEASE whole" };
    connection.execute_batch(end).map_err(|error| outcome.as_ref().err().map_or_else(|| from_rusqlite(error), Error::duplicate))?;
    Ok(outcome)
}
