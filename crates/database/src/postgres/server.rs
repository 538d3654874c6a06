//! A PostgreSQL server with this process's connections to it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::TenantId;
use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_postgres::{Client, Config};

use super::{
    budget::{self, Budget, Connections, Limits},
    connector::{Connector, Session, within_connect_timeout},
    error::from_postgres,
    identity::check_session,
    session::PooledSession,
};
use crate::error::{Error, Result};

/// How long the server may take to close an idle connection, which takes it a millisecond, before the connection is cut.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// An unused connection is closed after this time.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// How often unused connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// The settings of every pooled connection. Outside `BEGIN READ WRITE` nothing can be written, so no write bypasses a transaction;
/// a commit is durable before it is acknowledged; nothing waits for ever.
const SESSION_SETTINGS: &str = "-c default_transaction_read_only=on -c synchronous_commit=on -c timezone=UTC \
     -c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s";
const ADMINISTRATION_SETTINGS: &str = "-c synchronous_commit=on -c timezone=UTC -c lock_timeout=30s";

/// How many connections a process may have. Those for administration come on top, one for each database that is being created,
/// migrated, dropped or pinged: a server whose connections are all in use is not down.
#[derive(Clone, Copy, Debug)]
pub struct PostgresLimits {
    /// To one server, over all its databases.
    pub per_server: usize,
    /// To one database.
    pub per_database: usize,
}

/// A PostgreSQL server.
pub(crate) struct PostgresServer {
    pub(super) connector: Connector,
    limits: PostgresLimits,
    budget: Mutex<Budget<Arc<Target>, PooledSession>>,
    /// The task that closes unused connections.
    sweeper: Mutex<Option<JoinHandle<()>>>,
}

/// The database of a connection, and the identity that was checked: another tenant must not get the connection unchecked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) database: String,
    pub(super) identity: Option<TenantId>,
}

pub(super) type BudgetTask = budget::Task<Arc<Target>, PooledSession>;

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration would print the user; hosts are enough.
        f.debug_struct("PostgresServer").field("hosts", &self.connector.hosts()).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl PostgresServer {
    /// The server that `config` names. Connects to nothing yet.
    pub(crate) fn new(config: Config, tls: Option<rustls::ClientConfig>, limits: PostgresLimits) -> Arc<Self> {
        let PostgresLimits { per_server: total, per_database } = limits;
        Arc::new(Self {
            connector: Connector::new(config, tls),
            limits,
            budget: Mutex::new(Budget::new(Limits { total, per_database })),
            sweeper: Mutex::default(),
        })
    }

    /// How many connections there may be.
    pub(crate) fn limits(&self) -> PostgresLimits {
        self.limits
    }

    /// Counts the connections to the server by what they are doing; those for administration don't count.
    pub(crate) fn connections(&self) -> Connections {
        self.budget.lock().connections()
    }

    /// A connection for statements that can't stand in a transaction or bring their own. Created for them, closed afterwards.
    pub(crate) async fn administer(&self, database: &str) -> Result<Client> {
        Ok(self.connect_for_administration(database).await?.client)
    }

    pub(super) async fn connect_for_administration(&self, database: &str) -> Result<Session> {
        self.connector.connect(database, ADMINISTRATION_SETTINGS).await
    }

    /// Whether the server answers.
    pub(crate) async fn ping(&self, database: &str) -> Result<()> {
        let client = self.administer(database).await?;
        within_connect_timeout(async { client.batch_execute("SELECT 1").await.map_err(from_postgres) }).await
    }

    /// Closes every idle connection to a database, before it is dropped or renamed.
    pub(super) fn close_idle_to(self: &Arc<Self>, database: &str) {
        self.update_budget(|budget, _, tasks| budget.close_idle_to(|target| target.database == database, tasks));
    }

    /// Whether a request waits for a connection to this database, or for its place in the budget.
    pub(super) fn is_wanted(&self, target: &Arc<Target>) -> bool {
        self.budget.lock().is_wanted(target)
    }

    /// Changes the budget, and starts the work that follows from the change.
    pub(super) fn update_budget<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Budget<Arc<Target>, PooledSession>, Instant, &mut Vec<BudgetTask>) -> T,
    ) -> T {
        let mut tasks = Vec::new();
        let answer = change(&mut self.budget.lock(), Instant::now(), &mut tasks);
        for task in tasks {
            let pending = Pending::new(self, task);
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(pending.run())),
                // Without a runtime nothing can be opened; a dropped connection is closed.
                Err(_) => drop(pending),
            }
        }
        answer
    }

    async fn open(&self, Target { database, identity }: &Target) -> Result<PooledSession> {
        let session = self.connector.connect(database, SESSION_SETTINGS).await?;
        if let Err(problem) = within_connect_timeout(check_session(&session.client, *identity)).await {
            session.close(CLOSE_TIMEOUT).await;
            return Err(problem);
        }
        Ok(PooledSession::new(session))
    }

    /// Makes sure that a task closes connections that are no longer used.
    fn ensure_sweeper(self: &Arc<Self>) {
        let mut sweeper = self.sweeper.lock();
        if sweeper.as_ref().is_none_or(JoinHandle::is_finished) {
            let server = Arc::downgrade(self);
            *sweeper = Some(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(SWEEP_INTERVAL).await;
                    let Some(server) = server.upgrade() else { return };
                    server.update_budget(|budget, now, tasks| budget.expire(IDLE_TIME, now, tasks));
                }
            }));
        }
    }
}

/// A task of the budget. Dropped before it is done, it counts as failed, so that no connection counts for ever.
struct Pending {
    server: Arc<PostgresServer>,
    to_close: Option<PooledSession>,
    to_open: Option<Arc<Target>>,
    is_reported: bool,
}

impl Pending {
    fn new(server: &Arc<PostgresServer>, task: BudgetTask) -> Self {
        let (to_close, to_open) = match task {
            budget::Task::Open(target, victim) => (victim, Some(target)),
            budget::Task::Close(session) => (Some(session), None),
        };
        Self { server: Arc::clone(server), to_close, to_open, is_reported: false }
    }

    async fn run(mut self) {
        if let Some(pooled) = self.to_close.take() {
            pooled.session.close(CLOSE_TIMEOUT).await;
        }
        if let Some(target) = self.to_open.clone() {
            self.server.ensure_sweeper();
            let opened = self.server.open(&target).await;
            self.is_reported = true;
            self.server.update_budget(|budget, now, tasks| budget.opened(&target, opened, now, tasks));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_reported {
            return;
        }
        match &self.to_open {
            Some(target) => {
                let cancelled = Err(Error::unavailable("opening the connection was cancelled"));
                self.server.update_budget(|budget, now, tasks| budget.opened(target, cancelled, now, tasks));
            }
            None => self.server.update_budget(|budget, now, tasks| budget.closed(now, tasks)),
        }
    }
}
