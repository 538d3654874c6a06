//! Reads that share a connection. Statements outside a transaction depend on nothing before them, so many readers send theirs
//! without waiting for each other's answers (PostgreSQL documentation, "Pipelining"): on a busy database that saves the server
//! and us a good part of the trips to sleep and back.
//!
//! What makes it harmless: a connection on which an answer is overdue takes no more readers, so a slow statement holds up those
//! only who were there already. When a reader has gone away in the middle and its statement goes on, the connection is closed,
//! and the others ask again elsewhere.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, TryFutureExt,
    future::{BoxFuture, Shared, try_join_all},
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{ANSWER_TIMEOUT, Lease, PostgresDatabase, SCHEMA_CHANGED, budget::QUANTUM, lock, unfinished::Unfinished};
use crate::{
    Error, Result,
    connection::{Outcome, Statement},
};

/// How many readers a connection has before another one is opened beside it. More processors than this keeps busy are rare.
const READERS: usize = 16;
/// How long an answer may take before its connection takes no more readers.
const OVERDUE: Duration = Duration::from_millis(2);
/// How long what a reader left behind may go on before its connection is closed.
const PROBE: Duration = Duration::from_millis(50);
/// How often a reader asks again: elsewhere because others went away, or because the schema has changed.
const ATTEMPTS: usize = 5;

/// The connections that a database's readers share.
#[derive(Default)]
pub(super) struct Hubs(Mutex<State>);

#[derive(Default)]
struct State {
    open: Vec<Weak<Hub>>,
    /// Another one, under way: one at a time.
    opening: Option<Opening>,
}

type Opening = Shared<BoxFuture<'static, Result<Arc<Hub>, Arc<Error>>>>;

/// A connection with its readers. Goes back when the last one has left.
pub(super) struct Hub {
    lease: Option<Lease>,
    since: Instant,
    /// When it last answered or had nothing to answer, in microseconds after `since`.
    answered: AtomicU64,
    /// Whether a reader left in the middle: it takes no more of them.
    retired: AtomicBool,
    /// Becomes true when what that reader left behind goes on.
    stuck: watch::Sender<bool>,
}

impl Hub {
    fn new(lease: Lease) -> Self {
        Self {
            lease: Some(lease),
            since: Instant::now(),
            answered: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            stuck: watch::Sender::new(false),
        }
    }

    fn answered(&self) {
        self.answered.store(u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn is_overdue(&self) -> bool {
        self.since.elapsed().saturating_sub(Duration::from_micros(self.answered.load(Ordering::Relaxed))) > OVERDUE
    }

    /// Whether it takes another reader beside so many.
    fn is_joinable(&self, readers: usize) -> bool {
        let Some(lease) = &self.lease else { return false };
        let has_time = || self.since.elapsed() < QUANTUM || !lease.is_wanted();
        !self.retired.load(Ordering::Relaxed) && !lease.is_closed() && (readers == 0 || !self.is_overdue()) && has_time()
    }

    async fn run(&self, statements: &[Statement]) -> Result<Vec<Outcome>> {
        let session = self.lease.as_ref().ok_or_else(|| Error::internal("the connection was lost"))?.session()?;
        session.prepare(statements).await?;
        let outcomes = try_join_all(statements.iter().map(|statement| session.run(statement))).await;
        self.answered();
        outcomes
    }

    /// Finds out whether the server still works for a reader that left: an empty query is answered after what was sent before.
    async fn probe(self: Arc<Self>) {
        let answers = async { self.lease.as_ref()?.session().ok()?.wired.client.batch_execute("").await.ok() };
        if !matches!(timeout(PROBE, answers).await, Ok(Some(()))) {
            self.stuck.send_replace(true);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Otherwise it goes home by itself.
        if *self.stuck.borrow()
            && let Some(lease) = self.lease.take()
        {
            Unfinished::new(lease).abandon();
        }
    }
}

impl Hubs {
    /// A connection to read from.
    pub(super) async fn join(&self, database: &Arc<PostgresDatabase>) -> Result<Arc<Hub>> {
        loop {
            let opening = {
                let mut state = lock(&self.0);
                if let Some(hub) = state.least_loaded() {
                    let is_crowded = Arc::strong_count(&hub) > READERS && state.open.len() < database.server.limits.per_database;
                    if is_crowded {
                        state.opening.get_or_insert_with(|| open(Arc::clone(database)));
                    }
                    return Ok(hub);
                }
                state.opening.get_or_insert_with(|| open(Arc::clone(database))).clone()
            };
            let hub = opening.await.map_err(|problem| problem.again())?;
            if hub.is_joinable(0) {
                return Ok(hub);
            }
        }
    }
}

impl State {
    fn least_loaded(&mut self) -> Option<Arc<Hub>> {
        self.open.retain(|hub| hub.strong_count() > 0);
        let hubs = self.open.iter().filter_map(Weak::upgrade);
        let joinable = hubs.filter(|hub| hub.is_joinable(Arc::strong_count(hub) - 1));
        let hub = joinable.min_by_key(Arc::strong_count)?;
        if Arc::strong_count(&hub) == 1 {
            hub.answered();
        }
        Some(hub)
    }
}

/// Opens another one in a task of its own: those who wait for it may go away, but what they get must not wait for them.
fn open(database: Arc<PostgresDatabase>) -> Opening {
    let open = async move {
        let leased = database.lease().await;
        let mut state = lock(&database.hubs.0);
        state.opening = None;
        let hub = Arc::new(Hub::new(leased?));
        state.open.push(Arc::downgrade(&hub));
        Ok(hub)
    };
    let opening = open.map_err(Arc::new).boxed().shared();
    tokio::spawn(opening.clone().map(drop));
    opening
}

/// A reader, with its place on a connection.
pub(crate) struct PostgresReader {
    database: Arc<PostgresDatabase>,
    /// Absent while it looks for another one: held, it could not come back to be had.
    hub: Option<Arc<Hub>>,
    /// Set while the server works for it.
    interrupted: bool,
}

impl PostgresReader {
    pub(super) async fn begin(database: &Arc<PostgresDatabase>) -> Result<Self> {
        let hub = database.hubs.join(database).await?;
        Ok(Self { database: Arc::clone(database), hub: Some(hub), interrupted: false })
    }

    pub(crate) async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Outcome>> {
        for _ in 0..ATTEMPTS {
            let still_good = self.hub.take().filter(|hub| hub.is_joinable(Arc::strong_count(hub) - 1));
            let hub = match still_good {
                Some(hub) => hub,
                None => self.database.hubs.join(&self.database).await?,
            };
            let hub = self.hub.insert(hub);
            let mut stuck = hub.stuck.subscribe();
            self.interrupted = true;
            let outcomes = tokio::select! {
                biased;
                outcomes = timeout(ANSWER_TIMEOUT, hub.run(statements)) => Some(outcomes),
                _ = stuck.wait_for(|stuck| *stuck) => None,
            };
            match outcomes {
                Some(Ok(outcomes)) => {
                    self.interrupted = false;
                    // A read depends on nothing before it: prepared anew, it succeeds.
                    if !matches!(outcomes, Err(Error::Busy(SCHEMA_CHANGED))) {
                        return outcomes;
                    }
                }
                // Stays marked as interrupted: the server may still be at work.
                Some(Err(_)) => return Err(Error::unavailable("the database server does not answer")),
                None => {
                    self.interrupted = false;
                    self.hub = None;
                }
            }
        }
        Err(Error::Busy("the connection's other readers or the schema gave it no peace"))
    }
}

impl Drop for PostgresReader {
    fn drop(&mut self) {
        let Some(hub) = self.hub.take().filter(|_| self.interrupted) else { return };
        hub.retired.store(true, Ordering::Relaxed);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(hub.probe())),
            Err(_) => drop(hub.stuck.send_replace(true)),
        }
    }
}

impl std::fmt::Debug for PostgresReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresReader").field("interrupted", &self.interrupted).finish_non_exhaustive()
    }
}
