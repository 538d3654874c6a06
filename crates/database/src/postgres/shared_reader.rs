//! Reads that share a connection. Statements outside a transaction do not depend on earlier ones, so many readers send theirs
//! without waiting for each other's answers (PostgreSQL documentation, "Pipelining"): on a busy database that saves the server
//! and this process many changes between sleeping and running.
//!
//! What makes it safe: a connection with an overdue answer takes no more readers, so a slow statement delays only the readers that
//! are already there. When a reader is dropped during its statement and the statement goes on, the connection is closed, and the
//! other readers repeat theirs on another one.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, TryFutureExt,
    future::{BoxFuture, Shared, try_join_all},
};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    ANSWER_TIMEOUT,
    budget::QUANTUM,
    error::SCHEMA_CHANGED,
    lease::{Lease, Pool},
    unfinished::Unfinished,
};
use crate::{
    error::{Error, Result},
    statement::{Outcome, Statement},
};

/// How many readers a connection has before another one is opened beside it. More processors than this keeps busy are rare.
const READERS_PER_CONNECTION: usize = 16;
/// How long an answer may take before its connection takes no more readers.
const OVERDUE: Duration = Duration::from_millis(2);
/// How long a dropped reader's statement may go on before its connection is closed.
const PROBE_TIMEOUT: Duration = Duration::from_millis(50);
/// How often a reader tries: again on another connection because a reader of its own was dropped, or because the schema changed.
const MAX_ATTEMPTS: usize = 5;

/// The connections that a database's readers share.
pub(super) struct SharedReaders {
    pool: Pool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Vec<Weak<Multiplexer>>,
    /// The opening of another one: one at a time.
    opening: Option<Opening>,
}

type Opening = Shared<BoxFuture<'static, Result<Arc<Multiplexer>, Arc<Error>>>>;

/// A connection with its readers. Returns to the pool when the last one has left.
struct Multiplexer {
    lease: Option<Lease>,
    since: Instant,
    /// When it last answered or had nothing to answer, in microseconds after `since`.
    answered: AtomicU64,
    /// Whether a reader was dropped during its statement: it takes no more readers.
    is_retired: AtomicBool,
    /// Becomes true when that reader's statement goes on.
    is_stuck: watch::Sender<bool>,
}

impl Multiplexer {
    fn new(lease: Lease) -> Self {
        Self {
            lease: Some(lease),
            since: Instant::now(),
            answered: AtomicU64::new(0),
            is_retired: AtomicBool::new(false),
            is_stuck: watch::Sender::new(false),
        }
    }

    fn record_answer(&self) {
        self.answered.store(u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn is_overdue(&self) -> bool {
        self.since.elapsed().saturating_sub(Duration::from_micros(self.answered.load(Ordering::Relaxed))) > OVERDUE
    }

    /// Whether it takes another reader beside so many.
    fn is_joinable(&self, readers: usize) -> bool {
        let Some(lease) = &self.lease else { return false };
        let has_time = || self.since.elapsed() < QUANTUM || !lease.is_wanted();
        !self.is_retired.load(Ordering::Relaxed) && !lease.is_closed() && (readers == 0 || !self.is_overdue()) && has_time()
    }

    async fn run(&self, statements: &[Statement]) -> Result<Vec<Outcome>> {
        let session = self.lease.as_ref().ok_or_else(|| Error::internal("the connection was lost"))?.session()?;
        session.prepare(statements).await?;
        let outcomes = try_join_all(statements.iter().map(|statement| session.run(statement))).await;
        self.record_answer();
        outcomes
    }

    /// Checks whether the server still works for a dropped reader: it answers an empty query after all statements before it.
    async fn probe(self: Arc<Self>) {
        let answers = async { self.lease.as_ref()?.session().ok()?.execute("").await.ok() };
        if !matches!(timeout(PROBE_TIMEOUT, answers).await, Ok(Some(()))) {
            self.is_stuck.send_replace(true);
        }
    }
}

impl Drop for Multiplexer {
    fn drop(&mut self) {
        // Otherwise the lease returns by itself.
        if *self.is_stuck.borrow()
            && let Some(lease) = self.lease.take()
        {
            Unfinished::new(lease).abandon();
        }
    }
}

impl SharedReaders {
    pub(super) fn new(pool: Pool) -> Arc<Self> {
        Arc::new(Self { pool, state: Mutex::default() })
    }

    /// A connection to read from.
    async fn join(self: &Arc<Self>) -> Result<Arc<Multiplexer>> {
        loop {
            let opening = {
                let mut state = self.state.lock();
                if let Some(multiplexer) = state.least_loaded() {
                    let is_crowded = Arc::strong_count(&multiplexer) > READERS_PER_CONNECTION;
                    if is_crowded && state.open.len() < self.pool.server.limits().per_database {
                        state.opening.get_or_insert_with(|| self.open());
                    }
                    return Ok(multiplexer);
                }
                state.opening.get_or_insert_with(|| self.open()).clone()
            };
            let multiplexer = opening.await.map_err(|problem| problem.duplicate())?;
            if multiplexer.is_joinable(0) {
                return Ok(multiplexer);
            }
        }
    }

    /// Opens another connection in a task of its own: the callers that wait for it may be dropped, but the opening must not depend
    /// on them.
    fn open(self: &Arc<Self>) -> Opening {
        let readers = Arc::clone(self);
        let open = async move {
            let leased = readers.pool.lease().await;
            let mut state = readers.state.lock();
            state.opening = None;
            let multiplexer = Arc::new(Multiplexer::new(leased?));
            state.open.push(Arc::downgrade(&multiplexer));
            Ok(multiplexer)
        };
        let opening = open.map_err(Arc::new).boxed().shared();
        tokio::spawn(opening.clone().map(drop));
        opening
    }
}

impl State {
    fn least_loaded(&mut self) -> Option<Arc<Multiplexer>> {
        self.open.retain(|multiplexer| multiplexer.strong_count() > 0);
        let open = self.open.iter().filter_map(Weak::upgrade);
        let joinable = open.filter(|multiplexer| multiplexer.is_joinable(Arc::strong_count(multiplexer) - 1));
        let multiplexer = joinable.min_by_key(Arc::strong_count)?;
        if Arc::strong_count(&multiplexer) == 1 {
            multiplexer.record_answer();
        }
        Some(multiplexer)
    }
}

/// A reader.
pub(crate) struct PostgresReader {
    readers: Arc<SharedReaders>,
    /// Absent while it looks for another one: held, it could not return to the pool.
    multiplexer: Option<Arc<Multiplexer>>,
    /// Set while the server works for it.
    is_interrupted: bool,
}

impl PostgresReader {
    pub(super) async fn join(readers: &Arc<SharedReaders>) -> Result<Self> {
        let multiplexer = readers.join().await?;
        Ok(Self { readers: Arc::clone(readers), multiplexer: Some(multiplexer), is_interrupted: false })
    }

    /// Runs statements in order.
    pub(crate) async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Outcome>> {
        for _ in 0..MAX_ATTEMPTS {
            match self.attempt(statements).await? {
                // A read does not depend on earlier statements, so it succeeds when it is prepared again.
                None | Some(Err(Error::Busy(SCHEMA_CHANGED))) => {}
                Some(outcomes) => return outcomes,
            }
        }
        Err(Error::Busy("other readers of the connection or the schema interrupted it too often"))
    }

    /// Runs the statements once. Without an outcome when another reader's statement blocked the connection.
    async fn attempt(&mut self, statements: &[Statement]) -> Result<Option<Result<Vec<Outcome>>>> {
        let still_good = self.multiplexer.take().filter(|multiplexer| multiplexer.is_joinable(Arc::strong_count(multiplexer) - 1));
        let multiplexer = match still_good {
            Some(multiplexer) => multiplexer,
            None => self.readers.join().await?,
        };
        let multiplexer = self.multiplexer.insert(multiplexer);
        let mut stuck = multiplexer.is_stuck.subscribe();
        self.is_interrupted = true;
        let outcomes = tokio::select! {
            biased;
            outcomes = timeout(ANSWER_TIMEOUT, multiplexer.run(statements)) => Some(outcomes),
            _ = stuck.wait_for(|is_stuck| *is_stuck) => None,
        };
        match outcomes {
            // Stays interrupted: the server may still be working.
            Some(Err(_)) => Err(Error::unavailable("the database server does not answer")),
            Some(Ok(outcomes)) => {
                self.is_interrupted = false;
                Ok(Some(outcomes))
            }
            None => {
                self.is_interrupted = false;
                self.multiplexer = None;
                Ok(None)
            }
        }
    }
}

impl Drop for PostgresReader {
    fn drop(&mut self) {
        let Some(multiplexer) = self.multiplexer.take().filter(|_| self.is_interrupted) else { return };
        multiplexer.is_retired.store(true, Ordering::Relaxed);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(multiplexer.probe())),
            Err(_) => drop(multiplexer.is_stuck.send_replace(true)),
        }
    }
}

impl std::fmt::Debug for PostgresReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresReader").field("is_interrupted", &self.is_interrupted).finish_non_exhaustive()
    }
}
