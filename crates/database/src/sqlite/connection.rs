//! Leased connections as async callers see them. A statement moves to a thread together with its connection and comes back with
//! the outcome. That costs several times what it takes to find a row by its key, so a single read is first tried on the caller's
//! thread, and moves when it is not done after a few microseconds.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    error::from_rusqlite,
    file::{Home, Lease, SqliteFile},
    group_commit::Group,
    limits::{Wanted, interruptible, unlimited},
    statement::{run, run_all},
    threads::Threads,
};
use crate::{
    error::{Error, Result},
    statement::{Outcome, Statement},
};

/// A read on the caller's thread takes longer than this only when it waits for the disk (or, for some milliseconds, for a
/// processor). The file's pages are then not in memory, and its reads go to the threads for [`SLOW_PERIOD`].
const SLOW_AFTER: Duration = Duration::from_millis(10);
const SLOW_PERIOD: Duration = Duration::from_millis(100);

const LOST: &str = "the connection was lost";

/// A leased connection.
#[derive(Debug)]
pub(crate) struct SqliteConnection {
    /// Absent while a statement runs, and for good when the statement's future was dropped.
    lease: Option<Lease>,
    /// The file whose writer is to be leased, until it is.
    unleased: Option<Arc<SqliteFile>>,
    threads: Threads,
    transaction: TransactionState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransactionState {
    None,
    /// `BEGIN` is sent with the first statement, to save a change of threads.
    BeginsWithFirstStatement,
    Open,
}

impl SqliteFile {
    /// A connection for reading.
    pub(crate) async fn read(self: &Arc<Self>) -> Result<SqliteConnection> {
        let lease = self.lease_reader().await?;
        Ok(SqliteConnection {
            lease: Some(lease),
            unleased: None,
            threads: self.threads.reads.clone(),
            transaction: TransactionState::None,
        })
    }

    /// A connection for writing. It waits for the writer with its first statement.
    pub(crate) fn write(self: &Arc<Self>) -> SqliteConnection {
        SqliteConnection {
            lease: None,
            unleased: Some(Arc::clone(self)),
            threads: self.threads.writes.clone(),
            transaction: TransactionState::None,
        }
    }

    /// Runs a transaction whose statements are all known, together with others that wait for the writer. The failure of one
    /// transaction does not affect the others.
    async fn commit_in_group(self: &Arc<Self>, statements: Vec<Statement>) -> Result<()> {
        let panicked = || Error::internal("an SQLite job panicked");
        let (ticket, mut outcome) = self.commit_queue.push(statements);
        tokio::select! {
            biased;
            outcome = &mut outcome => return outcome.map_err(|_| panicked())?,
            lease = self.lease_writer() => match lease {
                Ok(lease) => {
                    let group = self.commit_queue.take_group();
                    self.threads.writes.start_job(move || commit_group(lease, group))?;
                }
                Err(error) if self.commit_queue.withdraw(&ticket) => return Err(error),
                Err(_) => {}
            }
        }
        outcome.await.map_err(|_| panicked())?
    }
}

fn commit_group(mut lease: Lease, mut group: Group) {
    group.drop_abandoned();
    let outcomes = match &mut lease.connection {
        Some(open) if !group.is_empty() => {
            interruptible(&mut open.connection, Arc::new(AtomicBool::new(true)), |connection| group.commit(connection))
        }
        _ => Ok(Vec::new()),
    };
    // The next transaction may begin while the callers get their outcomes.
    drop(lease);
    group.answer(outcomes);
}

impl SqliteConnection {
    /// Begins a transaction, with the first statement.
    pub(crate) fn begin(&mut self) {
        self.transaction = TransactionState::BeginsWithFirstStatement;
    }

    /// Runs statements in order. Stops at the first that fails.
    pub(crate) async fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>> {
        if let [statement] = &statements[..]
            && let Some(outcome) = self.try_inline(statement)
        {
            return Ok(vec![outcome?]);
        }
        let begin = self.transaction == TransactionState::BeginsWithFirstStatement;
        let outcomes = self.with_connection(move |connection| run_all(connection, begin, &statements)).await;
        if begin && outcomes.is_ok() {
            self.transaction = TransactionState::Open;
        }
        outcomes
    }

    /// Runs a read on the caller's thread. Without an outcome when it takes long or has to wait: it is then to be run again.
    fn try_inline(&mut self, Statement { sql, params }: &Statement) -> Option<Result<Outcome>> {
        let Lease { connection: Some(open), home: Home::Reader(..) } = self.lease.as_mut()? else { return None };
        let began = Instant::now();
        if open.is_slow_until.is_some_and(|until| began < until) {
            return None;
        }
        let outcome = run(&open.connection, sql, params);
        open.is_slow_until = (began.elapsed() > SLOW_AFTER).then(|| began + SLOW_PERIOD);
        match outcome {
            Err(Error::Busy(_)) => None,
            outcome => Some(outcome),
        }
    }

    /// Runs the remaining statements and commits.
    pub(crate) async fn commit(&mut self, statements: Vec<Statement>) -> Result<()> {
        if self.transaction == TransactionState::Open {
            let job = move |connection: &Connection| {
                run_all(connection, false, &statements)?;
                connection.execute_batch("COMMIT").map_err(from_rusqlite)
            };
            return self.with_connection(job).await;
        }
        match self.unleased.take() {
            Some(file) if !statements.is_empty() => file.commit_in_group(statements).await,
            _ => Ok(()),
        }
    }

    async fn with_connection<T: Send + 'static>(&mut self, job: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let mut lease = match (self.lease.take(), &self.unleased) {
            (Some(lease), _) => lease,
            (None, Some(file)) => file.lease_writer().await?,
            (None, None) => return Err(Error::internal(LOST)),
        };
        self.unleased = None;
        let wanted = Wanted::default();
        let is_wanted = wanted.flag();
        let run_job = move || {
            let result = match (&mut lease.connection, &lease.home) {
                (Some(open), Home::Writer(..)) => interruptible(&mut open.connection, is_wanted, job),
                (Some(open), Home::Reader(..)) => unlimited(&mut open.connection, |connection| interruptible(connection, is_wanted, job)),
                (None, _) => Err(Error::internal(LOST)),
            };
            (lease, result)
        };
        let (lease, result) = self.threads.run(run_job).await?;
        self.lease = Some(lease);
        result
    }
}

impl Drop for SqliteConnection {
    fn drop(&mut self) {
        // SQLite rolls back on a thread; without a transaction there is nothing to roll back.
        if let Some(lease) = self.lease.take_if(|lease| lease.is_in_transaction()) {
            self.threads.drop_there(lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::{Access, SqliteThreads, open_file};

    #[tokio::test]
    async fn a_job_that_panics_ends_neither_its_thread_nor_its_lease() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sqlite3");
        open_file(&path, Access::Create, None).unwrap();
        let file = SqliteFile::new(path, None, SqliteThreads::start(1, 1).unwrap());
        for _ in 0..3 {
            let mut connection = file.write();
            let panicking = connection.with_connection(|connection| -> Result<()> {
                connection.execute_batch("BEGIN IMMEDIATE; CREATE TABLE a (b)").unwrap();
                panic!("a bug")
            });
            assert!(matches!(panicking.await, Err(Error::Internal(_))));
        }
        let mut connection = file.write();
        connection.begin();
        connection.run(vec![Statement::new("CREATE TABLE a (b)", Vec::new())]).await.unwrap();
        connection.commit(Vec::new()).await.unwrap();
    }
}
