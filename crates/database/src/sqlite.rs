//! SQLite: one writer and several readers per file, on a small set of threads of our own.
//!
//! A statement hops to a thread together with its connection and comes back with the outcome, so SQLite's work and its
//! fsyncs don't hold up the async threads. A commit waits for the disk, so writes have threads of their own, and more of them.
//! A hop costs several times what it takes to find a row by its key, so a single read is first tried where it is asked for, and
//! hops when it is not done after a few microseconds.

use std::{
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use domain::TenantId;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, ToSql,
    config::DbConfig,
    hooks::{AuthAction, Authorization},
    types::{ToSqlOutput, ValueRef},
};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::{
    Error, Result, Row, Value,
    connection::{Outcome, Statement},
    error::Constraint,
    moves::MOVED,
};

/// How long a statement waits for a writer before it: another connection in this process, or another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long statements may take together before they are interrupted, as on PostgreSQL.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// After how many instructions of its virtual machine SQLite asks whether to go on: some 20 µs.
const INSTRUCTIONS_PER_CHECK: i32 = 1_000;
/// After how many instructions a read that was tried on an async thread moves to one of ours: some 20 µs. Finding a row by its
/// key takes a hundred.
const INSTRUCTIONS_HERE: i32 = 1_000;
/// How long such a read may take, which is longer only when it has to wait for the disk (or, for some milliseconds, for a
/// processor), and for how long a file whose pages are not in memory is then left to the threads.
const TOO_LONG_HERE: Duration = Duration::from_millis(10);
const SLOW_LASTS: Duration = Duration::from_millis(100);
/// How long readers take it that the file under a name is the one that it was. Nobody can tell whether a read began before the
/// file was exchanged or so little after; a write always looks.
const SAME_FILE: Duration = Duration::from_millis(250);
/// Read connections per file. More than there are read threads would only wait for each other.
const READERS_PER_FILE: usize = 4;
/// How many transactions share a commit at most.
const MOST_TOGETHER: usize = 64;
/// Prepared statements kept per connection: more than the models have.
const STATEMENTS_PER_CONNECTION: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// The threads that run SQLite. They end when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct SqliteThreads {
    reads: Sender<Job>,
    writes: Sender<Job>,
}

impl SqliteThreads {
    /// Starts `reads` threads for reading and `writes` threads for writing.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(reads: usize, writes: usize) -> Result<Self> {
        Ok(Self { reads: start_threads("read", reads)?, writes: start_threads("write", writes)? })
    }
}

fn start_threads(what: &str, count: usize) -> Result<Sender<Job>> {
    let (sender, receiver): (Sender<Job>, Receiver<Job>) = unbounded();
    for n in 0..count.max(1) {
        let jobs = receiver.clone();
        std::thread::Builder::new()
            .name(format!("sqlite-{what}-{n}"))
            .spawn(move || {
                for job in &jobs {
                    // Whoever waits for a job that panics is told; the thread goes on for the others.
                    let _panicked = catch_unwind(AssertUnwindSafe(job));
                }
            })
            .map_err(Error::unavailable)?;
    }
    Ok(sender)
}

/// Runs a job on one of the threads behind `sender` and waits for its result.
async fn on_thread<T: Send + 'static>(sender: &Sender<Job>, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (answer, result) = oneshot::channel();
    // When nobody waits any more, the result is dropped here, on the thread: a lease then rolls back and goes home.
    let job: Job = Box::new(move || drop(answer.send(job())));
    sender.send(job).map_err(|_| Error::unavailable("the SQLite threads have ended"))?;
    result.await.map_err(|_| Error::internal("an SQLite job panicked"))
}

/// An open database file.
#[derive(Debug)]
pub(crate) struct SqliteFile {
    path: PathBuf,
    identity: Option<TenantId>,
    threads: SqliteThreads,
    writer: Arc<AsyncMutex<Option<OpenFile>>>,
    readers: Mutex<Vec<OpenFile>>,
    /// Which file was last found under the path, and when.
    found: Mutex<Option<(Inode, Instant)>>,
    reader_permits: Arc<Semaphore>,
    /// Transactions that wait for the writer and need nothing answered before their commit.
    whole: Mutex<Vec<Whole>>,
}

/// A transaction of which everything is known.
#[derive(Debug)]
struct Whole {
    statements: Vec<Statement>,
    answer: oneshot::Sender<Result<()>>,
    /// By which whoever made it knows it again.
    mark: Arc<()>,
}

impl SqliteFile {
    /// A handle on the file, which must exist when it is first used. Opens nothing yet. When `identity` is given, every
    /// connection checks that the file is that tenant's.
    pub(crate) fn new(path: PathBuf, identity: Option<TenantId>, threads: SqliteThreads) -> Arc<Self> {
        Arc::new(Self {
            path,
            identity,
            threads,
            writer: Arc::default(),
            readers: Mutex::default(),
            found: Mutex::default(),
            reader_permits: Arc::new(Semaphore::new(READERS_PER_FILE)),
            whole: Mutex::default(),
        })
    }

    pub(crate) async fn read(self: &Arc<Self>) -> Result<SqliteConnection> {
        let permit = match Arc::clone(&self.reader_permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => timeout(BUSY_TIMEOUT, Arc::clone(&self.reader_permits).acquire_owned())
                .await
                .map_err(|_| Error::Busy("every reader of the database is in use"))?
                .map_err(Error::internal)?,
        };
        let inode = self.file_for_reading()?;
        let connection = match self.pooled_reader(inode) {
            Some(connection) => connection,
            None => self.open(Access::Read).await?,
        };
        let lease = Lease { connection: Some(connection), home: Home::Reader(Arc::clone(self), permit) };
        Ok(SqliteConnection { lease: Some(lease), unleased: None, threads: self.threads.reads.clone(), begun: Begun::No })
    }

    /// A connection for writing. It takes the writer, and waits for it, with the first statement.
    pub(crate) fn write(self: &Arc<Self>) -> SqliteConnection {
        SqliteConnection { lease: None, unleased: Some(Arc::clone(self)), threads: self.threads.writes.clone(), begun: Begun::No }
    }

    async fn lease_writer(self: &Arc<Self>) -> Result<Lease> {
        let mut writer = self.lock_writer().await?;
        let inode = Inode::of(&self.path)?;
        let connection = match writer.take_if(|open| open.inode == inode) {
            Some(connection) => connection,
            None => self.open(Access::Write).await?,
        };
        Ok(Lease { connection: Some(connection), home: Home::Writer(writer, Arc::clone(self)) })
    }

    /// Runs a transaction that needs nothing answered before its commit, together with others that wait for the writer, too: one
    /// commit, and so one wait for the disk, for all of them. One that fails takes nothing of the others with it.
    async fn commit_whole(self: &Arc<Self>, statements: Vec<Statement>) -> Result<()> {
        let (answer, mut result) = oneshot::channel();
        let lock = || self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = Arc::new(());
        lock().push(Whole { statements, answer, mark: Arc::clone(&ours) });
        tokio::select! {
            biased;
            result = &mut result => return result.map_err(|_| Error::internal("an SQLite job panicked"))?,
            lease = self.lease_writer() => match lease {
                Ok(lease) => {
                    let mut all = lock();
                    let together = all.len().min(MOST_TOGETHER);
                    let together: Vec<_> = all.drain(..together).collect();
                    let job: Job = Box::new(move || commit_together(lease, together));
                    self.threads.writes.send(job).map_err(|_| Error::unavailable("the SQLite threads have ended"))?;
                }
                Err(error) => {
                    let mut all = lock();
                    let before = all.len();
                    all.retain(|whole| !Arc::ptr_eq(&whole.mark, &ours));
                    // Unless somebody else is about to commit it.
                    if all.len() < before {
                        return Err(error);
                    }
                }
            }
        }
        result.await.map_err(|_| Error::internal("an SQLite job panicked"))?
    }

    /// A reader of this file. Those of another one are closed, on a thread, since that may wait for the disk.
    fn pooled_reader(&self, inode: Inode) -> Option<OpenFile> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(open) = readers.pop() {
            if open.inode == inode {
                return Some(open);
            }
            let _threads_have_ended = self.threads.writes.send(Box::new(move || drop(open)));
        }
        None
    }

    fn file_for_reading(&self) -> Result<Inode> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match *found {
            Some((inode, at)) if at.elapsed() < SAME_FILE => Ok(inode),
            _ => {
                let inode = Inode::of(&self.path)?;
                *found = Some((inode, Instant::now()));
                Ok(inode)
            }
        }
    }

    async fn open(&self, access: Access) -> Result<OpenFile> {
        let (path, identity) = (self.path.clone(), self.identity);
        let open = move || {
            // Before opening: should the file be exchanged in between, the connection is not used a second time.
            let inode = Inode::of(&path)?;
            Ok(OpenFile { connection: open_file(&path, access, identity)?, inode, is_slow_until: None })
        };
        let opened = on_thread(&self.threads.writes, open).await??;
        // Else readers would close it again as long as they take the file for the one that was there before.
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some((opened.inode, Instant::now()));
        Ok(opened)
    }

    /// Runs `job` on a write thread while no transaction of this handle holds the file: for what locks it over a connection of
    /// its own. Waiting for such a transaction inside SQLite would block the thread that the transaction goes on with.
    pub(crate) async fn exclusively<T: Send + 'static>(&self, job: impl FnOnce(&Path) -> Result<T> + Send + 'static) -> Result<T> {
        let writer = self.lock_writer().await?;
        let path = self.path.clone();
        on_thread(&self.threads.writes, move || {
            let result = job(&path);
            drop(writer);
            result
        })
        .await?
    }

    async fn lock_writer(&self) -> Result<OwnedMutexGuard<Option<OpenFile>>> {
        timeout(BUSY_TIMEOUT, Arc::clone(&self.writer).lock_owned())
            .await
            .map_err(|_| Error::Busy("another transaction holds the database"))
    }
}

impl SqliteThreads {
    /// Runs `job` on a write thread: for making and removing files.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        on_thread(&self.writes, job).await?
    }
}

impl Drop for SqliteFile {
    fn drop(&mut self) {
        // Closing a file's last connection moves its log into it, which waits for the disk.
        let readers = std::mem::take(self.readers.get_mut().unwrap_or_else(PoisonError::into_inner));
        let writer = Arc::clone(&self.writer);
        let _threads_have_ended = self.threads.writes.send(Box::new(move || drop((readers, writer))));
    }
}

/// A connection with the file that it is on, which need not be the one under that name any more: a file that was deleted
/// still takes in what is written to it, for nobody to see again.
#[derive(Debug)]
struct OpenFile {
    connection: Connection,
    inode: Inode,
    /// Until when reads hop to a thread, since the disk was asked and took its time.
    is_slow_until: Option<Instant>,
}

/// A file, whatever it is called: device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode(u64, u64);

impl Inode {
    /// The file of this name. Takes a microsecond, so it may run anywhere.
    fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::unavailable)?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Statements that change nothing; SQLite refuses others.
    Read,
    /// Everything.
    Write,
    /// Everything, and the file is made when it is not there.
    Create,
}

/// Opens a file with the settings that durability and isolation rest on.
pub(crate) fn open_file(path: &Path, access: Access, identity: Option<TenantId>) -> Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if access == Access::Create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let mut connection = Connection::open_with_flags(path, flags).map_err(from_rusqlite)?;
    let mut set_up = || {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_PER_CONNECTION);
        // Otherwise SQLite may want to plan by a parameter's value, and prepares a cached statement anew for each one.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF;
             PRAGMA temp_store = MEMORY;
             PRAGMA journal_size_limit = 4194304;",
        )?;
        if access == Access::Read {
            connection.execute_batch("PRAGMA query_only = ON;")?;
        }
        // A statement of one tenant's can never name another's file.
        connection.authorizer(Some(|context: rusqlite::hooks::AuthContext<'_>| match context.action {
            AuthAction::Attach { .. } | AuthAction::Detach { .. } => Authorization::Deny,
            _ => Authorization::Allow,
        }))
    };
    set_up().map_err(from_rusqlite)?;
    if let Some(tenant_id) = identity {
        check_identity(&connection, tenant_id)?;
    }
    if access == Access::Read {
        limit(&mut connection).map_err(from_rusqlite)?;
    }
    Ok(connection)
}

pub(crate) fn check_identity(connection: &Connection, expected: TenantId) -> Result<()> {
    let found = connection.query_row("SELECT tenant_id FROM tenant_identity", [], |row| row.get::<_, Vec<u8>>(0));
    // Whatever else it may be, it is not the tenant's database: that is missing.
    if found.map_err(Error::unavailable)? == expected.uuid().as_bytes() {
        Ok(())
    } else {
        Err(Error::unavailable("the file is another tenant's database"))
    }
}

/// A connection that goes back where it came from.
#[derive(Debug)]
struct Lease {
    connection: Option<OpenFile>,
    home: Home,
}

#[derive(Debug)]
enum Home {
    Reader(Arc<SqliteFile>, #[expect(dead_code, reason = "held until the connection is back")] OwnedSemaphorePermit),
    Writer(
        OwnedMutexGuard<Option<OpenFile>>,
        #[expect(dead_code, reason = "the last one closes the file, after the connection is back")] Arc<SqliteFile>,
    ),
}

impl Lease {
    fn in_transaction(&self) -> bool {
        self.connection.as_ref().is_some_and(|open| !open.connection.is_autocommit())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(open) = self.connection.take() else { return };
        // What can't be rolled back is closed instead, which rolls back too.
        if !open.connection.is_autocommit() && open.connection.execute_batch("ROLLBACK").is_err() {
            return;
        }
        match &mut self.home {
            Home::Reader(file, _) => file.readers.lock().unwrap_or_else(PoisonError::into_inner).push(open),
            Home::Writer(slot, _) => **slot = Some(open),
        }
    }
}

/// A leased connection, seen from the async side.
#[derive(Debug)]
pub(crate) struct SqliteConnection {
    /// Absent while a statement runs, and for good when its future was dropped.
    lease: Option<Lease>,
    /// Whose writer is to be taken, until it is.
    unleased: Option<Arc<SqliteFile>>,
    threads: Sender<Job>,
    begun: Begun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    No,
    /// `BEGIN` goes out with the first statement: one hop less.
    WithFirstStatement,
    Yes,
}

impl SqliteConnection {
    pub(crate) fn begin(&mut self) {
        self.begun = Begun::WithFirstStatement;
    }

    pub(crate) async fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>> {
        if let [statement] = &statements[..]
            && let Some(outcome) = self.try_here(statement)
        {
            return Ok(vec![outcome?]);
        }
        let begin = self.begun == Begun::WithFirstStatement;
        let outcomes = self.with_connection(move |connection| run_statements(connection, begin, &statements)).await;
        if begin && outcomes.is_ok() {
            self.begun = Begun::Yes;
        }
        outcomes
    }

    /// Runs a read on this very thread, unless it takes long or has to wait: then there is no outcome, and it is to be run anew.
    fn try_here(&mut self, statement: &Statement) -> Option<Result<Outcome>> {
        let Lease { connection: Some(open), home: Home::Reader(..) } = self.lease.as_mut()? else { return None };
        let began = Instant::now();
        if open.is_slow_until.is_some_and(|until| began < until) {
            return None;
        }
        let outcome = run_statement(&open.connection, statement);
        open.is_slow_until = (began.elapsed() > TOO_LONG_HERE).then(|| began + SLOW_LASTS);
        match outcome {
            Err(Error::Busy(_)) => None,
            outcome => Some(outcome),
        }
    }

    /// Runs what is left to do, and commits.
    pub(crate) async fn commit(&mut self, statements: Vec<Statement>) -> Result<()> {
        if self.begun == Begun::Yes {
            let job = move |connection: &Connection| {
                run_statements(connection, false, &statements)?;
                connection.execute_batch("COMMIT").map_err(from_rusqlite)
            };
            return self.with_connection(job).await;
        }
        match self.unleased.take() {
            Some(file) if !statements.is_empty() => file.commit_whole(statements).await,
            _ => Ok(()),
        }
    }

    async fn with_connection<T: Send + 'static>(&mut self, job: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let mut lease = match (self.lease.take(), &self.unleased) {
            (Some(lease), _) => lease,
            (None, Some(file)) => file.lease_writer().await?,
            (None, None) => return Err(Error::internal("the connection was lost")),
        };
        self.unleased = None;
        let wanted = Wanted::default();
        let still_wanted = Arc::clone(&wanted.0);
        let (lease, result) = on_thread(&self.threads, move || {
            let result = match (&mut lease.connection, &lease.home) {
                (Some(open), Home::Writer(..)) => interruptible(&mut open.connection, still_wanted, job),
                (Some(open), Home::Reader(..)) => {
                    unlimited(&mut open.connection, |connection| interruptible(connection, still_wanted, job))
                }
                (None, _) => Err(Error::internal("the connection was lost")),
            };
            (lease, result)
        })
        .await?;
        self.lease = Some(lease);
        result
    }
}

/// Tells a job when the future that waits for it is dropped.
struct Wanted(Arc<AtomicBool>);

impl Default for Wanted {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Lets a reader's statements take and wait for so little that they may run on an async thread.
fn limit(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    connection.progress_handler(INSTRUCTIONS_HERE, Some(|| true))
}

/// Runs `job` on a reader without those limits.
fn unlimited<T>(connection: &mut Connection, job: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
    connection.busy_timeout(BUSY_TIMEOUT).map_err(from_rusqlite)?;
    let result = job(connection);
    limit(connection).map_err(from_rusqlite)?;
    result
}

/// Runs `job` until it ends, takes too long, or nobody waits for it any more.
fn interruptible<T>(connection: &mut Connection, wanted: Arc<AtomicBool>, job: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let interrupt = move || !wanted.load(Ordering::Relaxed) || started.elapsed() > STATEMENT_TIMEOUT;
    connection.progress_handler(INSTRUCTIONS_PER_CHECK, Some(interrupt)).map_err(from_rusqlite)?;
    let result = job(connection);
    connection.progress_handler(0, None::<fn() -> bool>).map_err(from_rusqlite)?;
    result
}

impl Drop for SqliteConnection {
    fn drop(&mut self) {
        // Rolling back is SQLite's work and belongs on a thread; without a transaction there is none to do.
        if let Some(lease) = self.lease.take_if(|lease| lease.in_transaction()) {
            let _threads_have_ended = self.threads.send(Box::new(move || drop(lease)));
        }
    }
}

/// Runs transactions in one, each in a savepoint of its own unless there is but one, and answers what became of them.
fn commit_together(mut lease: Lease, mut all: Vec<Whole>) {
    // Whom nobody waits for any more was told to have failed, or to have been cut off before it began.
    all.retain(|whole| !whole.answer.is_closed());
    let job = |connection: &Connection| {
        connection.execute_batch("BEGIN IMMEDIATE").map_err(from_rusqlite)?;
        let outcomes = match &all[..] {
            // A savepoint copies each page before its first change. What fails alone, all of it is rolled back with the lease.
            [only] => {
                run_statements(connection, false, &only.statements)?;
                vec![Ok(())]
            }
            all => all.iter().map(|whole| run_in_savepoint(connection, &whole.statements)).collect::<Result<_>>()?,
        };
        connection.execute_batch("COMMIT").map_err(from_rusqlite)?;
        Ok(outcomes)
    };
    let outcomes = match &mut lease.connection {
        Some(open) if !all.is_empty() => interruptible(&mut open.connection, Arc::new(AtomicBool::new(true)), job),
        _ => Ok(Vec::new()),
    };
    // The next may write while these are told.
    drop(lease);
    match outcomes {
        Ok(outcomes) => all.into_iter().zip(outcomes).for_each(|(whole, outcome)| drop(whole.answer.send(outcome))),
        Err(error) => all.into_iter().for_each(|whole| drop(whole.answer.send(Err(error.again())))),
    }
}

/// Answers what became of the statements, all or none of which are done.
///
/// # Errors
/// When whatever was done before them in this transaction is undone, too.
fn run_in_savepoint(connection: &Connection, statements: &[Statement]) -> Result<Result<()>> {
    connection.execute_batch("SAVEPOINT whole").map_err(from_rusqlite)?;
    let outcome = run_statements(connection, false, statements).map(drop);
    // Some failures (of the disk above all) undo all of it. Then this fails, too.
    let end = if outcome.is_ok() { "RELEASE whole" } else { "ROLLBACK TO whole; RELEASE whole" };
    connection.execute_batch(end).map_err(|error| outcome.as_ref().err().map_or_else(|| from_rusqlite(error), Error::again))?;
    Ok(outcome)
}

fn run_statements(connection: &Connection, begin: bool, statements: &[Statement]) -> Result<Vec<Outcome>> {
    if begin {
        connection.execute_batch("BEGIN IMMEDIATE").map_err(from_rusqlite)?;
    }
    statements.iter().map(|statement| run_statement(connection, statement)).collect()
}

fn run_statement(connection: &Connection, Statement { sql, params }: &Statement) -> Result<Outcome> {
    run(connection, sql, params)
}

/// Runs one statement with the values of `$1`, `$2`, …
pub(crate) fn run(connection: &Connection, sql: &str, params: &[Value]) -> Result<Outcome> {
    // A write transaction holds the whole file already.
    let sql = sql.strip_suffix(" SKIP LOCKED").unwrap_or(sql);
    let sql = sql.strip_suffix(" FOR UPDATE").unwrap_or(sql);
    let mut statement = connection.prepare_cached(sql).map_err(from_rusqlite)?;
    for position in 1..=statement.parameter_count() {
        if let [only] = params
            && position == 1
        {
            statement.raw_bind_parameter(1, only).map_err(from_rusqlite)?;
            continue;
        }
        // SQLite numbers `$2` by where it first occurs, not by its name.
        let number = statement.parameter_name(position).and_then(|name| name.strip_prefix('$')?.parse::<usize>().ok());
        let value = number.and_then(|n| params.get(n.checked_sub(1)?));
        let value = value.ok_or_else(|| Error::internal(format!("a statement has no value for parameter {position}: {sql}")))?;
        statement.raw_bind_parameter(position, value).map_err(from_rusqlite)?;
    }
    let columns = statement.column_count();
    if columns == 0 {
        let affected = statement.raw_execute().map_err(from_rusqlite)?;
        return Ok(Outcome { rows: Vec::new(), affected: affected as u64 });
    }
    let mut found = Vec::new();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(from_rusqlite)? {
        let values = (0..columns).map(|n| row.get_ref(n).map_err(from_rusqlite).and_then(from_value_ref));
        found.push(Row::new(values.collect::<Result<_>>()?));
    }
    Ok(Outcome { affected: found.len() as u64, rows: found })
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Bool(b) => ValueRef::Integer(i64::from(*b)),
            Self::Int(n) => ValueRef::Integer(*n),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
            Self::Uuid(uuid) => ValueRef::Blob(uuid.as_bytes()),
            Self::Time(at) => ValueRef::Integer(at.micros()),
        }))
    }
}

fn from_value_ref(value: ValueRef<'_>) -> Result<Value> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => Value::Int(n),
        ValueRef::Text(text) => Value::Text(str::from_utf8(text).map_err(Error::internal)?.to_owned()),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(_) => return Err(Error::internal("a column holds a floating-point number")),
    })
}

/// Names the error. SQLite tells only columns of a violated constraint: see [`Constraint`].
pub(crate) fn from_rusqlite(error: rusqlite::Error) -> Error {
    let rusqlite::Error::SqliteFailure(failure, message) = &error else { return Error::internal(error) };
    match failure.code {
        ErrorCode::ConstraintViolation => match failure.extended_code {
            rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE => {
                Error::Violated(Constraint::Unique(unique_name(message.as_deref().unwrap_or_default())))
            }
            rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY | rusqlite::ffi::SQLITE_CONSTRAINT_ROWID => {
                Error::Violated(Constraint::Unique(primary_key_name(message.as_deref().unwrap_or_default())))
            }
            rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER if message.as_deref() == Some(MOVED) => Error::unavailable(MOVED),
            rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY | rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER => {
                Error::Violated(Constraint::ForeignKey)
            }
            rusqlite::ffi::SQLITE_CONSTRAINT_CHECK | rusqlite::ffi::SQLITE_CONSTRAINT_NOTNULL => Error::Violated(Constraint::Check),
            // A value of another type than the column's above all: a bug, on PostgreSQL too.
            _ => Error::internal(error),
        },
        ErrorCode::OperationInterrupted => Error::Busy("a statement took too long"),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy("another process holds the database"),
        ErrorCode::CannotOpen
        | ErrorCode::DiskFull
        | ErrorCode::SystemIoFailure
        | ErrorCode::ReadOnly
        | ErrorCode::PermissionDenied
        | ErrorCode::OutOfMemory => Error::unavailable(error),
        _ => Error::internal(error),
    }
}

/// `UNIQUE constraint failed: files.sha256, files.file_size` → `files_sha256_file_size_key`.
fn unique_name(message: &str) -> String {
    let columns = message.rsplit(": ").next().unwrap_or_default();
    let table = columns.split('.').next().unwrap_or_default();
    let names = columns.split(", ").filter_map(|column| column.split('.').nth(1));
    names.fold(table.to_owned(), |name, column| name + "_" + column) + "_key"
}

/// `UNIQUE constraint failed: uploads.object_key` → `uploads_pkey`.
fn primary_key_name(message: &str) -> String {
    let table = message.rsplit(": ").next().and_then(|columns| columns.split('.').next());
    format!("{}_pkey", table.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::migrations::{Schema, migrate_sqlite_connection};

    /// How often SQLite prepared a cached statement anew while it ran with parameters of several values.
    fn prepared_again(connection: &Connection) -> i32 {
        const SQL: &str = "SELECT f.id FROM documents d JOIN files f ON f.id = d.file_id WHERE d.id = $1";
        for value in 0..5 {
            run_statement(connection, &Statement::new(SQL, vec![Value::Bytes(vec![value; 16])])).unwrap();
        }
        connection.prepare_cached(SQL).unwrap().get_status(StatementStatus::RePrepare)
    }

    #[test]
    fn cached_statements_are_prepared_once() {
        let directory = tempfile::tempdir().unwrap();
        let connection = open_file(&directory.path().join("tenant.sqlite3"), Access::Create, None).unwrap();
        migrate_sqlite_connection(&connection, Schema::TenantTemplate).unwrap();
        assert_eq!(prepared_again(&connection), 0);
        // The control: it is the setting that makes the difference.
        connection.flush_prepared_statement_cache();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, false).unwrap();
        assert!(prepared_again(&connection) >= 4);
    }

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
