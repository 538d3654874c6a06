//! PostgreSQL: connections leased from a budget per server, each belonging to one database for its whole life.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use domain::{TenantId, Timestamp};
use futures_util::{
    FutureExt,
    future::{try_join, try_join_all},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{
    CancelToken, Client, Config, NoTls,
    error::SqlState,
    types::{FromSql, IsNull, ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use crate::{
    Error, Result, Row, Value,
    connection::{Outcome, Statement},
    error::Constraint,
};

/// How long a request waits for a free connection, and for the server to take a new one.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long statements may take together before the connection is given up. Longer than the server's own limit below, which
/// is what ends a slow statement; this one ends waiting for a server that is gone without a word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a statement that nobody waits for any more may go on before it is cancelled, and cancelled again.
const CANCEL_INTERVAL: Duration = Duration::from_millis(20);
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
    config: Config,
    tls: Option<MakeRustlsConnect>,
    limits: PostgresLimits,
    permits: Arc<Semaphore>,
    /// Connections that nobody uses, the one used last at the end.
    idle: Mutex<HashMap<Target, Vec<Idle>>>,
}

/// What a connection is to, and whose database it was checked to be: handed to another tenant, it would pass unchecked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Target {
    database: String,
    identity: Option<TenantId>,
}

struct Idle {
    session: Session,
    /// Grows with every return: the smallest is the least recently used.
    returned: u64,
}

struct Session {
    client: Client,
    /// Ends when the connection is closed.
    closed: JoinHandle<()>,
    statements: HashMap<&'static str, tokio_postgres::Statement>,
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Config` would print the user; hosts are enough.
        f.debug_struct("PostgresServer").field("hosts", &self.config.get_hosts()).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl PostgresServer {
    /// The server that `config` names. Connects to nothing yet.
    #[must_use]
    pub fn new(config: Config, tls: Option<rustls::ClientConfig>, limits: PostgresLimits) -> Arc<Self> {
        Arc::new(Self {
            config,
            tls: tls.map(MakeRustlsConnect::new),
            limits,
            permits: Arc::new(Semaphore::new(limits.per_server.max(1))),
            idle: Mutex::default(),
        })
    }

    /// Runs statements that can't stand in a transaction, or bring their own, on a connection made for them and closed
    /// afterwards.
    pub(crate) async fn administer(&self, database: &str) -> Result<Client> {
        let mut config = self.config.clone();
        config.dbname(database).options("-c synchronous_commit=on -c timezone=UTC -c lock_timeout=30s");
        within_acquire_timeout(self.connect_with(&config)).await.map(|(client, _)| client)
    }

    async fn connect(&self, Target { database, identity }: &Target) -> Result<Session> {
        let mut config = self.config.clone();
        config.dbname(database).options(SESSION_SETTINGS);
        within_acquire_timeout(async {
            let (client, closed) = self.connect_with(&config).await?;
            if let Some(expected) = identity {
                check_identity(&client, *expected).await?;
            }
            Ok(Session { client, closed, statements: HashMap::new() })
        })
        .await
    }

    async fn connect_with(&self, config: &Config) -> Result<(Client, JoinHandle<()>)> {
        // Why a connection ended is told to whoever uses it.
        match &self.tls {
            Some(tls) => {
                let (client, connection) = config.connect(tls.clone()).await.map_err(from_postgres)?;
                Ok((client, tokio::spawn(connection.map(drop))))
            }
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(from_postgres)?;
                Ok((client, tokio::spawn(connection.map(drop))))
            }
        }
    }

    async fn cancel(&self, token: &CancelToken) {
        let _finished_or_gone = match &self.tls {
            Some(tls) => token.cancel_query(tls.clone()).await,
            None => token.cancel_query(NoTls).await,
        };
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Target, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self, target: &Target) -> Option<Session> {
        let mut idle = self.idle();
        let sessions = idle.get_mut(target)?;
        // Those that the server has closed meanwhile are dropped on the way.
        let session = std::iter::from_fn(|| sessions.pop()).map(|idle| idle.session).find(|session| !session.client.is_closed());
        if sessions.is_empty() {
            idle.remove(target);
        }
        session
    }

    fn give_back(&self, target: &Target, session: Session) {
        let mut idle = self.idle();
        let returned = idle.values().flatten().map(|idle| idle.returned).max().unwrap_or_default() + 1;
        idle.entry(target.clone()).or_default().push(Idle { session, returned });
    }

    /// Closes the least recently used idle connections until another one fits into the budget. Every open connection that
    /// is not idle has a permit, and the caller has one for its own.
    async fn make_room(&self) {
        for session in self.take_surplus() {
            session.close().await;
        }
    }

    fn take_surplus(&self) -> Vec<Session> {
        let mut idle = self.idle();
        let mut surplus = Vec::new();
        let in_use = self.limits.per_server.max(1) - self.permits.available_permits();
        while idle.values().map(Vec::len).sum::<usize>() + in_use > self.limits.per_server.max(1) {
            let oldest = idle.iter().filter_map(|(target, sessions)| Some((sessions.first()?.returned, target.clone()))).min();
            let Some((_, target)) = oldest else { break };
            let Some(sessions) = idle.get_mut(&target) else { break };
            surplus.push(sessions.remove(0).session);
            if sessions.is_empty() {
                idle.remove(&target);
            }
        }
        surplus
    }

    /// Whether the server answers.
    pub(crate) async fn ping(&self, database: &str) -> Result<()> {
        let client = self.administer(database).await?;
        within_acquire_timeout(async { client.batch_execute("SELECT 1").await.map_err(from_postgres) }).await
    }

    /// Closes every idle connection to a database, before it is dropped or renamed.
    pub(crate) fn forget(&self, database: &str) {
        self.idle().retain(|target, _| target.database != database);
    }
}

/// Makes a database from the pristine template, unless it is there. The name is quoted already where it has to be.
pub(crate) async fn create_database(client: &Client, name: &str) -> Result<()> {
    match client.batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")).await {
        // Somebody else was faster: before, or at the same moment.
        Err(error) if matches!(error.code(), Some(&(SqlState::DUPLICATE_DATABASE | SqlState::UNIQUE_VIOLATION))) => Ok(()),
        made => made.map_err(from_postgres),
    }
}

async fn within_acquire_timeout<T>(connect: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(ACQUIRE_TIMEOUT, connect).await.map_err(|_| Error::unavailable("connecting took too long"))?
}

async fn check_identity(client: &Client, expected: TenantId) -> Result<()> {
    // Whatever else it may be, it is not the tenant's database: that is missing.
    let row = client.query_opt("SELECT tenant_id FROM tenant_identity", &[]).await.map_err(Error::unavailable)?;
    let row = row.ok_or_else(|| Error::unavailable("the database is nobody's"))?;
    let found: Value = row.try_get(0).map_err(Error::unavailable)?;
    if found == Value::from(expected) { Ok(()) } else { Err(Error::unavailable("the database is another tenant's")) }
}

/// One database on a server.
#[derive(Debug)]
pub(crate) struct PostgresDatabase {
    pub(crate) server: Arc<PostgresServer>,
    target: Target,
    permits: Arc<Semaphore>,
}

impl PostgresDatabase {
    pub(crate) fn new(server: Arc<PostgresServer>, name: String, identity: Option<TenantId>) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(server.limits.per_database.max(1)));
        Arc::new(Self { server, target: Target { database: name, identity }, permits })
    }

    /// Its name on the server.
    pub(crate) fn name(&self) -> &str {
        &self.target.database
    }

    /// Leases a connection: an idle one of this database, or a new one.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<PostgresConnection> {
        let acquire = async {
            // The database's own queue first, so that one database's crowd doesn't stand in the server's.
            let own = Arc::clone(&self.permits).acquire_owned().await;
            (own, Arc::clone(&self.server.permits).acquire_owned().await)
        };
        let (own, shared) = timeout(ACQUIRE_TIMEOUT, acquire).await.map_err(|_| Error::Busy("no connection became free in time"))?;
        let permits = [own.map_err(Error::internal)?, shared.map_err(Error::internal)?];
        let session = match self.server.take_idle(&self.target) {
            Some(session) => session,
            None => {
                self.server.make_room().await;
                // Boxed, for it is rare and large: every request's future would hold room for it.
                Box::pin(self.server.connect(&self.target)).await?
            }
        };
        let lease = Lease { session, database: Arc::clone(self), _permits: permits };
        Ok(PostgresConnection { lease: Some(lease), in_transaction: InTransaction::No, interrupted: false })
    }
}

struct Lease {
    session: Session,
    database: Arc<PostgresDatabase>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Lease {
    fn go_home(self) {
        if !self.session.client.is_closed() {
            self.database.server.give_back(&self.database.target, self.session);
        }
    }

    /// Ends what the server does for nobody. Until the connection is gone, with its transaction and its locks, it counts.
    async fn abandon(self) {
        let Session { client, mut closed, .. } = self.session;
        let cancel = client.cancel_token();
        drop(client);
        let close = async {
            // Statements that went out together are cancelled one by one.
            while timeout(CANCEL_INTERVAL, &mut closed).await.is_err() {
                self.database.server.cancel(&cancel).await;
            }
        };
        if timeout(ANSWER_TIMEOUT, close).await.is_err() {
            closed.abort();
        }
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
        self.with_session(async |session| {
            session.prepare(&statements).await?;
            let run_all = try_join_all(statements.iter().map(|statement| session.run(statement)));
            if begin {
                // Polled in this order, the two are sent in this order.
                let begin = async { session.client.batch_execute("BEGIN READ WRITE").await.map_err(from_postgres) };
                let ((), outcomes) = try_join(begin, run_all).await?;
                Ok(outcomes)
            } else {
                run_all.await
            }
        })
        .await
    }

    pub(crate) async fn commit(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.in_transaction, InTransaction::No) != InTransaction::Yes {
            return Ok(());
        }
        self.with_session(async |session| session.client.batch_execute("COMMIT").await.map_err(from_postgres)).await
    }

    async fn with_session<T>(&mut self, work: impl AsyncFnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let lease = self.lease.as_mut().filter(|_| !self.interrupted).ok_or_else(|| Error::internal("the connection was lost"))?;
        self.interrupted = true;
        let result = timeout(ANSWER_TIMEOUT, work(&mut lease.session)).await;
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
            lease.go_home();
            return;
        }
        // Dropped without a runtime, the connection is closed, and the server rolls back.
        let Ok(runtime) = Handle::try_current() else { return };
        if self.interrupted {
            runtime.spawn(lease.abandon());
        } else {
            runtime.spawn(async move {
                let rolled_back = timeout(ANSWER_TIMEOUT, lease.session.client.batch_execute("ROLLBACK")).await;
                if matches!(rolled_back, Ok(Ok(()))) {
                    lease.go_home();
                }
            });
        }
    }
}

impl Session {
    /// Closes the connection, and waits for it.
    async fn close(self) {
        drop(self.client);
        let _gone = timeout(ACQUIRE_TIMEOUT, self.closed).await;
    }

    async fn prepare(&mut self, statements: &[Statement]) -> Result<()> {
        for statement in statements {
            if !self.statements.contains_key(statement.sql) {
                let prepared = self.client.prepare(statement.sql).await.map_err(from_postgres)?;
                self.statements.insert(statement.sql, prepared);
            }
        }
        Ok(())
    }

    async fn run(&self, Statement { sql, params }: &Statement) -> Result<Outcome> {
        let prepared = self.statements.get(sql).ok_or_else(|| Error::internal("a statement was not prepared"))?;
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|value| value as _).collect();
        if prepared.columns().is_empty() {
            let affected = self.client.execute(prepared, &params).await.map_err(from_postgres)?;
            return Ok(Outcome { rows: Vec::new(), affected });
        }
        let found = self.client.query(prepared, &params).await.map_err(from_postgres)?;
        let rows = found.into_iter().map(|row| {
            let values = (0..row.len()).map(|n| row.try_get::<_, Value>(n).map_err(from_postgres));
            values.collect::<Result<_>>().map(Row::new)
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        Ok(Outcome { affected: rows.len() as u64, rows })
    }
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
        &SqlState::INVALID_CATALOG_NAME => Error::unavailable(error),
        // Connection exceptions, insufficient resources, operator intervention, system errors.
        code if ["08", "53", "57", "58"].iter().any(|class| code.code().starts_with(class)) => Error::unavailable(error),
        _ => Error::internal(error),
    }
}
