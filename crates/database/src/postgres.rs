//! PostgreSQL: connections leased from a budget per server, each belonging to one database for its whole life.

mod budget;
mod hub;
mod maintenance;
mod unfinished;
mod wire;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{BufMut, BytesMut};
use domain::{TenantId, Timestamp};
use futures_util::future::{try_join_all, try_join3};
use tokio::{runtime::Handle, sync::oneshot, task::JoinHandle, time::timeout};
use tokio_postgres::{
    Client, Config, GenericClient, SimpleQueryMessage,
    error::{DbError, SqlState},
    types::{FromSql, IsNull, ToSql, Type},
};
use uuid::Uuid;

pub use self::budget::Connections;
use self::{
    budget::{Acquired, Budget, Grant, Held, Limits},
    hub::Hubs,
    maintenance::Maintenance,
    unfinished::Unfinished,
    wire::{Connector, Wired},
};
pub(crate) use self::{hub::PostgresReader, maintenance::create_database};
use crate::{
    Error, Result, Row, Value,
    connection::{Outcome, Statement},
    error::Constraint,
};

/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting may take: less, so that who waits for it is told what is wrong.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the server may take to close an idle connection, which takes it a millisecond, before it is taken for gone.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a request waits for a connection of its database before it asks for a further one: about what opening it costs.
const PATIENCE: Duration = Duration::from_millis(10);
/// A connection that nobody has used for this time is closed.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// How often such connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Why a prepared statement has to be prepared anew.
const SCHEMA_CHANGED: &str = "the schema has just changed";
/// How long statements may take together before the connection is given up. Longer than the server's own limit below, which
/// is what ends a slow statement; this one ends waiting for a server that is gone without a word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// What every connection is started with. Outside `BEGIN READ WRITE` nothing can be written, so a write can't slip past
/// its transaction; a commit is durable before it is acknowledged; nothing waits for ever.
const SESSION_SETTINGS: &str = "-c default_transaction_read_only=on -c synchronous_commit=on -c timezone=UTC \
     -c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s";

/// How many connections a process may have. Those for administration come on top, one for each database that is being made,
/// migrated, dropped or pinged: a server whose connections are all in use is not down.
#[derive(Clone, Copy, Debug)]
pub struct PostgresLimits {
    /// To one server, over all its databases.
    pub per_server: usize,
    /// To one database.
    pub per_database: usize,
}

/// A PostgreSQL server with this process's connections to it.
pub struct PostgresServer {
    connector: Connector,
    limits: PostgresLimits,
    budget: Mutex<Budget<Arc<Target>, Session>>,
    /// The task that closes connections that nobody has used for long.
    sweeper: Mutex<Option<JoinHandle<()>>>,
    maintenance: Maintenance,
}

/// What a connection is to, and whose database it was checked to be: handed to another tenant, it would pass unchecked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    database: String,
    identity: Option<TenantId>,
}

struct Session {
    wired: Wired,
    /// By address and length of their text, which is static: hashing the text itself would take as long as encoding its parameters.
    statements: Mutex<HashMap<(usize, usize), tokio_postgres::Statement>>,
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration would print the user; hosts are enough.
        f.debug_struct("PostgresServer").field("hosts", &self.connector.hosts()).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl PostgresServer {
    /// The server that `config` names. Connects to nothing yet.
    #[must_use]
    pub fn new(config: Config, tls: Option<rustls::ClientConfig>, limits: PostgresLimits) -> Arc<Self> {
        let PostgresLimits { per_server: total, per_database } = limits;
        Arc::new(Self {
            connector: Connector::new(config, tls),
            limits,
            budget: Mutex::new(Budget::new(Limits { total, per_database })),
            sweeper: Mutex::default(),
            maintenance: Maintenance::default(),
        })
    }

    /// How many connections there may be.
    pub(crate) fn limits(&self) -> PostgresLimits {
        self.limits
    }

    /// What the connections to the server are doing; those for administration don't count.
    #[must_use]
    pub fn connections(&self) -> Connections {
        lock(&self.budget).connections()
    }

    /// Runs statements that can't stand in a transaction, or bring their own, on a connection made for them and closed
    /// afterwards.
    pub(crate) async fn administer(&self, database: &str) -> Result<Client> {
        Ok(self.connect_for_administration(database).await?.client)
    }

    async fn connect_for_administration(&self, database: &str) -> Result<Wired> {
        within_connect_timeout(self.connector.connect(database, "-c synchronous_commit=on -c timezone=UTC -c lock_timeout=30s")).await
    }

    async fn open(&self, Target { database, identity }: &Target) -> Result<Session> {
        let wired = within_connect_timeout(self.connector.connect(database, SESSION_SETTINGS)).await?;
        if let Err(problem) = within_connect_timeout(check_session(&wired.client, *identity)).await {
            wired.close(CLOSE_PATIENCE).await;
            return Err(problem);
        }
        Ok(Session { wired, statements: Mutex::default() })
    }

    /// Changes the books, and does what follows from the change.
    fn book<T>(self: &Arc<Self>, change: impl FnOnce(&mut Budget<Arc<Target>, Session>, Instant, &mut Vec<BudgetTask>) -> T) -> T {
        let mut tasks = Vec::new();
        let answer = change(&mut lock(&self.budget), Instant::now(), &mut tasks);
        for task in tasks {
            let pending = Pending::new(self, task);
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(pending.run())),
                // Nothing can be opened any more; what is dropped is closed.
                Err(_) => drop(pending),
            }
        }
        answer
    }

    /// Sees to it that connections don't stay open for tenants that nobody works in any more.
    fn sweep_idle(self: &Arc<Self>) {
        let mut sweeper = lock(&self.sweeper);
        if sweeper.as_ref().is_none_or(JoinHandle::is_finished) {
            let server = Arc::downgrade(self);
            *sweeper = Some(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(SWEEP_INTERVAL).await;
                    let Some(server) = server.upgrade() else { return };
                    server.book(|budget, now, tasks| budget.expire(IDLE_TIME, now, tasks));
                }
            }));
        }
    }

    /// Whether the server answers.
    pub(crate) async fn ping(&self, database: &str) -> Result<()> {
        let client = self.administer(database).await?;
        within_connect_timeout(async { client.batch_execute("SELECT 1").await.map_err(from_postgres) }).await
    }

    /// Closes every idle connection to a database, before it is dropped or renamed.
    fn forget(self: &Arc<Self>, database: &str) {
        self.book(|budget, _, tasks| budget.forget(|target| target.database == database, tasks));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type BudgetTask = budget::Task<Arc<Target>, Session>;

/// What is to be done for the budget. Dropped before it is done, it is booked as failed, so that nothing counts for ever.
struct Pending {
    server: Arc<PostgresServer>,
    to_close: Option<Session>,
    to_open: Option<Arc<Target>>,
    is_booked: bool,
}

impl Pending {
    fn new(server: &Arc<PostgresServer>, task: BudgetTask) -> Self {
        let (to_close, to_open) = match task {
            budget::Task::Open(target, victim) => (victim, Some(target)),
            budget::Task::Close(session) => (Some(session), None),
        };
        Self { server: Arc::clone(server), to_close, to_open, is_booked: false }
    }

    async fn run(mut self) {
        if let Some(session) = self.to_close.take() {
            session.wired.close(CLOSE_PATIENCE).await;
        }
        if let Some(target) = self.to_open.clone() {
            self.server.sweep_idle();
            let opened = self.server.open(&target).await;
            self.is_booked = true;
            self.server.book(|budget, now, tasks| budget.opened(&target, opened, now, tasks));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_booked {
            return;
        }
        match &self.to_open {
            Some(target) => {
                let given_up = Err(Error::unavailable("opening the connection was given up"));
                self.server.book(|budget, now, tasks| budget.opened(target, given_up, now, tasks));
            }
            None => self.server.book(|budget, now, tasks| budget.closed(now, tasks)),
        }
    }
}

/// Whether the server has a database of this name.
pub(crate) async fn database_exists(client: &Client, name: &str) -> Result<bool> {
    let found = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await.map_err(from_postgres)?;
    Ok(found.is_some())
}

async fn within_connect_timeout<T>(connect: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| Error::unavailable("connecting took too long"))?
}

/// Fails unless the settings that durability and isolation rest on are in force, and the database is this tenant's. Asks the
/// server itself, in one trip: a pooler in between may report what it is told.
async fn check_session(client: &Client, identity: Option<TenantId>) -> Result<()> {
    let settings = "SELECT current_setting('default_transaction_read_only'), current_setting('synchronous_commit')";
    let whose = if identity.is_some() { ", (SELECT tenant_id FROM tenant_identity)" } else { "" };
    // Without its table, it is not the tenant's database: that is missing.
    let answers = client.simple_query(&format!("{settings}{whose}")).await.map_err(Error::unavailable)?;
    let row = answers.iter().find_map(|answer| if let SimpleQueryMessage::Row(row) = answer { Some(row) } else { None });
    let row = row.ok_or_else(|| Error::internal("a statement answered no row"))?;
    if row.get(0) != Some("on") || row.get(1) != Some("on") {
        return Err(Error::unavailable(wire::POOLER));
    }
    let Some(expected) = identity else { return Ok(()) };
    match row.get(2) {
        Some(found) if found == expected.to_string() => Ok(()),
        Some(_) => Err(Error::unavailable(ANOTHERS)),
        None => Err(Error::unavailable(NOBODYS)),
    }
}

const NOBODYS: &str = "the database is nobody's";
const ANOTHERS: &str = "the database is another tenant's";

/// Fails unless the database is this tenant's.
pub(crate) async fn check_identity(client: &impl GenericClient, expected: TenantId) -> Result<()> {
    // Whatever else it may be, it is not the tenant's database: that is missing.
    let row = client.query_opt("SELECT tenant_id FROM tenant_identity", &[]).await.map_err(Error::unavailable)?;
    let row = row.ok_or_else(|| Error::unavailable(NOBODYS))?;
    let found: Value = row.try_get(0).map_err(Error::unavailable)?;
    if found == Value::from(expected) { Ok(()) } else { Err(Error::unavailable(ANOTHERS)) }
}

/// One database on a server.
pub(crate) struct PostgresDatabase {
    pub(crate) server: Arc<PostgresServer>,
    target: Arc<Target>,
    hubs: Hubs,
}

impl fmt::Debug for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresDatabase").field("target", &self.target).finish_non_exhaustive()
    }
}

impl PostgresDatabase {
    pub(crate) fn new(server: Arc<PostgresServer>, name: String, identity: Option<TenantId>) -> Arc<Self> {
        Arc::new(Self { server, target: Arc::new(Target { database: name, identity }), hubs: Hubs::default() })
    }

    /// Its name on the server.
    pub(crate) fn name(&self) -> &str {
        &self.target.database
    }

    /// A place to read from, outside of transactions, on a connection that others may share.
    pub(crate) async fn read(self: &Arc<Self>) -> Result<PostgresReader> {
        PostgresReader::begin(self).await
    }

    /// A connection of one's own, for a transaction.
    pub(crate) async fn write(&self) -> Result<PostgresConnection> {
        Ok(PostgresConnection { lease: Some(self.lease().await?), in_transaction: InTransaction::No, interrupted: false })
    }

    /// Leases a connection: an idle one of this database, one that comes back, or a new one.
    async fn lease(&self) -> Result<Lease> {
        let held = match self.server.book(|budget, now, tasks| budget.acquire(&self.target, now, tasks)) {
            Acquired::Now(held) => held,
            Acquired::Later(granted) => {
                let waiting = Waiting { server: &self.server, target: &self.target, granted };
                // Boxed, for it is rare and large: every request's future would hold room for it.
                Box::pin(waiting.end()).await?
            }
        };
        let lease = Lease { held: Some(held), server: Arc::clone(&self.server), target: Arc::clone(&self.target) };
        if lease.is_closed() {
            // The server has closed it while it was idle. That costs this one try, and no error.
            drop(lease);
            return Box::pin(self.lease()).await;
        }
        Ok(lease)
    }
}

/// Somebody who waits for a connection.
struct Waiting<'a> {
    server: &'a Arc<PostgresServer>,
    target: &'a Arc<Target>,
    granted: oneshot::Receiver<Grant<Session>>,
}

impl Waiting<'_> {
    async fn end(mut self) -> Result<Held<Session>> {
        let deadline = tokio::time::Instant::now() + ACQUIRE_TIMEOUT;
        let mut patience = PATIENCE;
        loop {
            let next = deadline.min(tokio::time::Instant::now() + patience);
            match tokio::time::timeout_at(next, &mut self.granted).await {
                Ok(Ok(Ok(held))) => return Ok(held),
                Ok(Ok(Err(problem))) => return Err(problem.again()),
                Ok(Err(_)) => return Err(Error::internal("a queue for connections was lost")),
                Err(_) if next == deadline => return Err(Error::Busy("no connection became free in time")),
                Err(_) => {
                    self.server.book(|budget, now, tasks| budget.open_further(self.target, now, tasks));
                    patience *= 2;
                }
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.granted.close();
        if let Ok(Ok(held)) = self.granted.try_recv() {
            self.server.book(|budget, now, tasks| budget.give_back(self.target, held, now, tasks));
        }
    }
}

/// A connection that goes back to its server when it is dropped.
struct Lease {
    /// Absent when it went another way.
    held: Option<Held<Session>>,
    server: Arc<PostgresServer>,
    target: Arc<Target>,
}

impl Lease {
    fn is_closed(&self) -> bool {
        self.session().is_ok_and(|session| session.wired.client.is_closed())
    }

    /// Whether anybody waits for it to come back.
    fn is_wanted(&self) -> bool {
        lock(&self.server.budget).is_wanted(&self.target)
    }

    fn session(&self) -> Result<&Session> {
        self.held.as_ref().map(|held| &held.session).ok_or_else(|| Error::internal("the connection was lost"))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.held.take() {
            Some(held) if !held.session.wired.client.is_closed() => {
                self.server.book(|budget, now, tasks| budget.give_back(&self.target, held, now, tasks));
            }
            Some(_) => drop(Lost { server: &self.server, target: &self.target }),
            None => {}
        }
    }
}

/// Books a leased connection as closed when it is dropped.
struct Lost<'a> {
    server: &'a Arc<PostgresServer>,
    target: &'a Arc<Target>,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.server.book(|budget, now, tasks| budget.lost(self.target, now, tasks));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InTransaction {
    No,
    /// `BEGIN` goes out together with the first statement: one trip less.
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
    pub(crate) fn begin(&mut self) {
        self.in_transaction = InTransaction::WithFirstStatement;
    }

    pub(crate) async fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>> {
        let begin = self.in_transaction == InTransaction::WithFirstStatement;
        if begin {
            self.in_transaction = InTransaction::Yes;
        }
        self.send(begin, statements, false).await
    }

    /// Runs what is left to do, and commits.
    pub(crate) async fn commit(&mut self, statements: Vec<Statement>) -> Result<()> {
        match std::mem::replace(&mut self.in_transaction, InTransaction::No) {
            InTransaction::WithFirstStatement if !statements.is_empty() => self.send(true, statements, true).await.map(drop),
            InTransaction::Yes => self.send(false, statements, true).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Sends statements all at once, in a transaction that begins before or ends after them. When one fails, the server makes of
    /// the commit behind it a rollback.
    async fn send(&mut self, begin: bool, statements: Vec<Statement>, commit: bool) -> Result<Vec<Outcome>> {
        self.with_session(async |session| {
            session.prepare(&statements).await?;
            let execute = async |wanted: bool, sql| match wanted {
                true => session.wired.client.batch_execute(sql).await.map_err(from_postgres),
                false => Ok(()),
            };
            // Polled in this order, they are sent in this order.
            let run_all = try_join_all(statements.iter().map(|statement| session.run(statement)));
            let ((), outcomes, ()) = try_join3(execute(begin, "BEGIN READ WRITE"), run_all, execute(commit, "COMMIT")).await?;
            Ok(outcomes)
        })
        .await
    }

    async fn with_session<T>(&mut self, work: impl AsyncFnOnce(&Session) -> Result<T>) -> Result<T> {
        let lease = self.lease.as_mut().filter(|_| !self.interrupted).ok_or_else(|| Error::internal("the connection was lost"))?;
        let session = lease.session()?;
        self.interrupted = true;
        let result = timeout(ANSWER_TIMEOUT, work(session)).await;
        // After a time-out the server may still be at work: stays marked, and so is closed.
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

impl Session {
    async fn prepare(&self, statements: &[Statement]) -> Result<()> {
        for Statement { sql, .. } in statements {
            if !lock(&self.statements).contains_key(&address(sql)) {
                let prepared = self.wired.client.prepare(sql).await.map_err(from_postgres)?;
                lock(&self.statements).insert(address(sql), prepared);
            }
        }
        Ok(())
    }

    async fn run(&self, Statement { sql, params }: &Statement) -> Result<Outcome> {
        let prepared = lock(&self.statements).get(&address(sql)).cloned();
        let prepared = &prepared.ok_or_else(|| Error::internal("a statement was not prepared"))?;
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|value| value as _).collect();
        if prepared.columns().is_empty() {
            let affected = self.wired.client.execute(prepared, &params).await.map_err(|error| self.failed(error))?;
            return Ok(Outcome { rows: Vec::new(), affected });
        }
        let found = self.wired.client.query(prepared, &params).await.map_err(|error| self.failed(error))?;
        let rows = found.into_iter().map(|row| {
            let values = (0..row.len()).map(|n| row.try_get::<_, Value>(n).map_err(from_postgres));
            values.collect::<Result<_>>().map(Row::new)
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        Ok(Outcome { affected: rows.len() as u64, rows })
    }

    fn failed(&self, error: tokio_postgres::Error) -> Error {
        if error.as_db_error().is_some_and(is_stale_plan) {
            lock(&self.statements).clear();
        }
        from_postgres(error)
    }
}

/// Whether a migration has changed what a prepared statement answers ("cached plan must not change result type").
fn is_stale_plan(reported: &DbError) -> bool {
    reported.code() == &SqlState::FEATURE_NOT_SUPPORTED && reported.routine() == Some("RevalidateCachedQuery")
}

fn address(text: &'static str) -> (usize, usize) {
    (text.as_ptr().addr(), text.len())
}

/// Microseconds between 1970 and 2000, PostgreSQL's zero.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

type Cause = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Value {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        match (self, ty) {
            (Self::Null, _) => return Ok(IsNull::Yes),
            (Self::Bool(b), &Type::BOOL) => out.put_u8(u8::from(*b)),
            (Self::Int(n), &Type::INT8) => out.put_i64(*n),
            (Self::Int(n), &Type::INT4) => out.put_i32(i32::try_from(*n)?),
            (Self::Int(n), &Type::INT2) => out.put_i16(i16::try_from(*n)?),
            (Self::Text(text), &(Type::TEXT | Type::VARCHAR | Type::NAME | Type::UNKNOWN)) => out.put_slice(text.as_bytes()),
            (Self::Bytes(bytes), &Type::BYTEA) => out.put_slice(bytes),
            (Self::Uuid(uuid), &Type::UUID) => out.put_slice(uuid.as_bytes()),
            (Self::Time(at), &Type::TIMESTAMPTZ) => {
                out.put_i64(at.micros().checked_sub(POSTGRES_EPOCH_MICROS).ok_or("a time before all that PostgreSQL stores")?);
            }
            (_, ty) => return Err(format!("a parameter of type {ty} got a value of another type").into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Cause> {
        Ok(match *ty {
            Type::BOOL => Self::Bool(bool::from_sql(ty, raw)?),
            Type::INT8 => Self::Int(i64::from_sql(ty, raw)?),
            Type::INT4 => Self::Int(i64::from(i32::from_sql(ty, raw)?)),
            Type::INT2 => Self::Int(i64::from(i16::from_sql(ty, raw)?)),
            Type::TEXT | Type::VARCHAR | Type::NAME => Self::Text(String::from_sql(ty, raw)?),
            Type::BYTEA => Self::Bytes(raw.to_vec()),
            Type::UUID => Self::Uuid(Uuid::from_slice(raw)?),
            Type::TIMESTAMPTZ => {
                let micros = i64::from_be_bytes(raw.try_into()?);
                Self::Time(Timestamp::from_micros(micros.saturating_add(POSTGRES_EPOCH_MICROS)))
            }
            _ => return Err(format!("a column has the unexpected type {ty}").into()),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Cause> {
        Ok(Self::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Names the error, by its SQLSTATE.
pub(crate) fn from_postgres(error: tokio_postgres::Error) -> Error {
    let Some(reported) = error.as_db_error() else {
        // Without a report from the server it is the connection that failed, unless a value did not fit its column.
        let of_ours = std::error::Error::source(&error).is_some_and(|source| source.downcast_ref::<std::io::Error>().is_none());
        return if of_ours && !error.is_closed() { Error::internal(error) } else { Error::unavailable(error) };
    };
    let constraint = || reported.constraint().unwrap_or_default().to_owned();
    match reported.code() {
        &SqlState::UNIQUE_VIOLATION => Error::Violated(Constraint::Unique(constraint())),
        &SqlState::FOREIGN_KEY_VIOLATION | &SqlState::RESTRICT_VIOLATION => Error::Violated(Constraint::ForeignKey),
        &SqlState::CHECK_VIOLATION | &SqlState::NOT_NULL_VIOLATION => Error::Violated(Constraint::Check),
        &SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE => Error::Busy("deadlock"),
        &SqlState::OBJECT_IN_USE => Error::Busy("the database is in use"),
        &SqlState::LOCK_NOT_AVAILABLE => Error::Busy("a lock was not to be had in time"),
        &SqlState::QUERY_CANCELED => Error::Busy("a statement took too long"),
        &SqlState::FEATURE_NOT_SUPPORTED if is_stale_plan(reported) => Error::Busy(SCHEMA_CHANGED),
        // A server that was made a standby, or is not yet promoted.
        &SqlState::READ_ONLY_SQL_TRANSACTION => Error::unavailable(error),
        // Not there, or not for us: the operator's to mend.
        &SqlState::INVALID_CATALOG_NAME | &SqlState::INSUFFICIENT_PRIVILEGE => Error::unavailable(error),
        // Connection exceptions, refused logins, insufficient resources, operator intervention, system errors.
        code if ["08", "28", "53", "57", "58"].iter().any(|class| code.code().starts_with(class)) => Error::unavailable(error),
        _ => Error::internal(error),
    }
}
