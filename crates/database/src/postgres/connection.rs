//! Connections for transactions: one caller each.

use std::fmt;

use futures_util::future::{try_join_all, try_join3};
use tokio::time::timeout;

use super::{
    ANSWER_TIMEOUT,
    lease::{Lease, Pool},
    session::PooledSession,
    unfinished::Unfinished,
};
use crate::{
    error::{Error, Result},
    statement::{Outcome, Statement},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InTransaction {
    No,
    /// `BEGIN` is sent with the first statement, to save a trip.
    WithFirstStatement,
    Yes,
}

/// A leased connection.
pub(crate) struct PostgresConnection {
    lease: Option<Lease>,
    in_transaction: InTransaction,
    /// Set while the server works: a connection dropped then is in an unknown state.
    interrupted: bool,
}

impl fmt::Debug for PostgresConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConnection").field("in_transaction", &self.in_transaction).finish_non_exhaustive()
    }
}

impl PostgresConnection {
    pub(super) async fn lease(pool: &Pool) -> Result<Self> {
        Ok(Self { lease: Some(pool.lease().await?), in_transaction: InTransaction::No, interrupted: false })
    }

    /// Begins a transaction, with the first statement.
    pub(crate) fn begin(&mut self) {
        self.in_transaction = InTransaction::WithFirstStatement;
    }

    /// Runs statements in order. Stops at the first that fails.
    pub(crate) async fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>> {
        let begin = self.in_transaction == InTransaction::WithFirstStatement;
        if begin {
            self.in_transaction = InTransaction::Yes;
        }
        self.send(begin, statements, false).await
    }

    /// Runs the remaining statements and commits.
    pub(crate) async fn commit(&mut self, statements: Vec<Statement>) -> Result<()> {
        match std::mem::replace(&mut self.in_transaction, InTransaction::No) {
            InTransaction::WithFirstStatement if !statements.is_empty() => self.send(true, statements, true).await.map(drop),
            InTransaction::Yes => self.send(false, statements, true).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Sends statements all at once, in a transaction that begins before or ends after them. When one fails, the server turns the
    /// commit behind it into a rollback.
    async fn send(&mut self, begin: bool, statements: Vec<Statement>, commit: bool) -> Result<Vec<Outcome>> {
        self.with_session(async |session| {
            session.prepare(&statements).await?;
            let execute = async |wanted: bool, sql| if wanted { session.execute(sql).await } else { Ok(()) };
            // Polled in this order, they are sent in this order.
            let run_all = try_join_all(statements.iter().map(|statement| session.run(statement)));
            let ((), outcomes, ()) = try_join3(execute(begin, "BEGIN READ WRITE"), run_all, execute(commit, "COMMIT")).await?;
            Ok(outcomes)
        })
        .await
    }

    async fn with_session<T>(&mut self, work: impl AsyncFnOnce(&PooledSession) -> Result<T>) -> Result<T> {
        let lease = self.lease.as_mut().filter(|_| !self.interrupted).ok_or_else(|| Error::internal("the connection was lost"))?;
        let session = lease.session()?;
        self.interrupted = true;
        let result = timeout(ANSWER_TIMEOUT, work(session)).await;
        // After a time-out the server may still be working: the connection stays interrupted, and so is closed.
        let result = result.map_err(|_| Error::unavailable("the database server does not answer"))?;
        self.interrupted = false;
        result
    }
}

impl Drop for PostgresConnection {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if !self.interrupted && self.in_transaction != InTransaction::Yes {
            return;
        }
        let unfinished = Unfinished::new(lease);
        if self.interrupted { unfinished.abandon() } else { unfinished.roll_back() }
    }
}
