//! Connections and transactions, the same on both engines.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use domain::TenantId;

use crate::{
    engine::EngineConnection,
    error::{Error, Result},
    statement::{Outcome, Statement},
    value::{Row, Value},
};

/// The kind of a database: [`Main`] or [`Tenant`].
pub trait Scope: Send + Sync + 'static {
    /// Identifies a database among those of its kind.
    type Identity: Copy + fmt::Debug + Send + Sync;
}

/// The main database: users, tenants, memberships, sessions.
#[derive(Debug)]
pub enum Main {}

/// A tenant's database: files and documents.
#[derive(Debug)]
pub enum Tenant {}

impl Scope for Main {
    type Identity = ();
}

impl Scope for Tenant {
    type Identity = TenantId;
}

/// A transaction of the main database.
pub type MainTx = Tx<Main>;

/// A transaction of one tenant's database.
pub type TenantTx = Tx<Tenant>;

/// A connection on lease. Outside a transaction it can only read, and statements do not see a common snapshot.
///
/// It returns to its pool when dropped; if it is dropped during a statement, it is closed.
#[derive(Debug)]
pub struct Connection<S> {
    engine: EngineConnection,
    transaction: Transaction,
    /// Sent before the next statement, or with the commit.
    deferred: Vec<Statement>,
    after_commit: Hooks,
    scope: PhantomData<fn() -> S>,
}

/// Callbacks to run after a commit. Dropped during a commit, they run as well, because the outcome is unknown.
#[derive(Default)]
struct Hooks {
    hooks: Vec<Box<dyn FnOnce() + Send + Sync>>,
    is_committing: bool,
}

impl Drop for Hooks {
    fn drop(&mut self) {
        if self.is_committing {
            self.hooks.drain(..).for_each(|hook| hook());
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hooks", self.hooks.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transaction {
    None,
    /// Every statement so far succeeded.
    Intact,
    /// A statement failed, or its future was dropped and its outcome is unknown. PostgreSQL answers the commit of such a
    /// transaction with success and rolls it back; SQLite may have rolled it back already and would run later statements outside
    /// of it.
    Broken,
}

impl<S: Scope> Connection<S> {
    pub(crate) fn new(engine: EngineConnection) -> Self {
        Self { engine, transaction: Transaction::None, deferred: Vec::new(), after_commit: Hooks::default(), scope: PhantomData }
    }

    /// Runs statements in order, sent together: one trip to a PostgreSQL server, one change to an SQLite thread. Stops at the
    /// first that fails.
    ///
    /// # Errors
    /// The error of the first statement that failed. A transaction in which one failed or was cancelled accepts no more.
    pub async fn batch(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>> {
        let before = self.transaction;
        match before {
            Transaction::None => {}
            // Until all succeeded: this future may be dropped at the next await.
            Transaction::Intact => self.transaction = Transaction::Broken,
            Transaction::Broken => return Err(Error::internal("an earlier statement of this transaction failed")),
        }
        let deferred = self.deferred.len();
        let all = if deferred == 0 { statements } else { self.deferred.drain(..).chain(statements).collect() };
        let mut outcomes = self.engine.run(all).await?;
        self.transaction = before;
        Ok(outcomes.split_off(deferred))
    }

    /// Runs a statement that returns rows.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn query(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Vec<Row>> {
        Ok(self.one(sql, params).await?.rows)
    }

    /// Runs a statement that returns at most one row.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn query_opt(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Runs a statement that returns exactly one row.
    ///
    /// # Errors
    /// When the statement fails or returns none.
    pub async fn query_one(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Row> {
        self.query_opt(sql, params).await?.ok_or_else(|| Error::internal("a statement returned no row"))
    }

    async fn one(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Outcome> {
        let mut outcomes = self.batch(vec![Statement::new(sql, params)]).await?;
        outcomes.pop().ok_or_else(|| Error::internal("a statement had no outcome"))
    }
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub struct Tx<S>(Connection<S>);

impl<S: Scope> Tx<S> {
    /// A transaction on a connection that has begun one.
    pub(crate) fn new(engine: EngineConnection) -> Self {
        Self(Connection { transaction: Transaction::Intact, ..Connection::new(engine) })
    }

    /// Runs a statement that changes rows, and returns their number.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn execute(&mut self, sql: &'static str, params: Vec<Value>) -> Result<u64> {
        Ok(self.0.one(sql, params).await?.affected)
    }

    /// Adds a statement whose outcome is not needed. It is sent with the next statement or with the commit, which saves a trip; if
    /// it fails, that fails.
    pub fn defer(&mut self, sql: &'static str, params: Vec<Value>) {
        self.0.deferred.push(Statement::new(sql, params));
    }

    /// Registers a callback to run after the commit. It must not take long. It also runs when the outcome of the commit is
    /// unknown, but not when the transaction was not committed.
    pub fn after_commit(&mut self, hook: impl FnOnce() + Send + Sync + 'static) {
        self.0.after_commit.hooks.push(Box::new(hook));
    }

    /// Makes the transaction durable. When this returns, its changes survive a crash.
    ///
    /// # Errors
    /// When a deferred statement fails, or the database could not commit. The changes are then undone, unless the connection was
    /// lost during the commit: then the outcome is unknown.
    pub async fn commit(mut self) -> Result<()> {
        if self.0.transaction == Transaction::Broken {
            return Err(Error::internal("a transaction in which a statement failed can't be committed"));
        }
        let deferred = std::mem::take(&mut self.0.deferred);
        self.0.after_commit.is_committing = true;
        let committed = self.0.engine.commit(deferred).await;
        self.0.after_commit.is_committing = matches!(committed, Ok(()) | Err(Error::Unavailable(_)));
        committed
    }
}

impl<S> Deref for Tx<S> {
    type Target = Connection<S>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<S> DerefMut for Tx<S> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
