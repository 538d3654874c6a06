//! Statements and transactions, the same on both engines.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use crate::{
    Error, Result, Row, Value,
    postgres::{PostgresConnection, PostgresReader},
    sqlite::SqliteConnection,
};

/// Which kind of database a connection belongs to.
pub trait Scope: Send + Sync + 'static {}

/// The main database: users, tenants, memberships, sessions.
#[derive(Debug)]
pub enum Main {}

/// A tenant's database: files and documents.
#[derive(Debug)]
pub enum Tenant {}

impl Scope for Main {}
impl Scope for Tenant {}

/// A transaction of the main database.
pub type MainTx = Tx<Main>;

/// A transaction of one tenant's database.
pub type TenantTx = Tx<Tenant>;

/// A statement with its parameters, for [`Connection::batch`]. The text is static: values go in as parameters only.
#[derive(Debug)]
pub struct Statement {
    pub(crate) sql: &'static str,
    pub(crate) params: Vec<Value>,
}

impl Statement {
    /// A statement with the values of `$1`, `$2`, …
    #[must_use]
    pub const fn new(sql: &'static str, params: Vec<Value>) -> Self {
        Self { sql, params }
    }
}

/// What a statement did.
#[derive(Debug)]
pub struct Outcome {
    /// The rows that it answered.
    pub rows: Vec<Row>,
    /// How many rows it changed; without meaning when it answered rows.
    pub affected: u64,
}

/// A connection on lease. Outside a transaction it can only read, each statement for itself.
///
/// It goes back to its pool when dropped; when a statement was cut off in the middle (its future was dropped), it is closed.
#[derive(Debug)]
pub struct Connection<S> {
    engine: Engine,
    transaction: Transaction,
    /// What goes out before the next statement, or with the commit.
    deferred: Vec<Statement>,
    after_commit: Hooks,
    scope: PhantomData<fn() -> S>,
}

/// What is done after a commit. Dropped in the middle of one, it is done, too: nobody can know then.
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
    Whole,
    /// A statement failed, or its future was dropped and nobody knows. PostgreSQL answers the commit of such a transaction
    /// with success and rolls it back; SQLite may have rolled it back already and would run what follows outside of it.
    Broken,
}

#[derive(Debug)]
pub(crate) enum Engine {
    Sqlite(SqliteConnection),
    Postgres(PostgresConnection),
    /// For reading only, outside of transactions.
    PostgresReader(PostgresReader),
}

impl<S: Scope> Connection<S> {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, transaction: Transaction::None, deferred: Vec::new(), after_commit: Hooks::default(), scope: PhantomData }
    }

    /// Runs statements in order, sent together: one trip to a PostgreSQL server, one hop to an SQLite thread. Stops at the
    /// first that fails.
    ///
    /// # Errors
    /// That of the first statement that failed. A transaction in which one failed, or was cut off, takes no more.
    pub async fn batch(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>> {
        let before = self.transaction;
        match before {
            Transaction::None => {}
            // Until all succeeded: this future may be dropped at the next await.
            Transaction::Whole => self.transaction = Transaction::Broken,
            Transaction::Broken => return Err(Error::internal("a statement of this transaction has failed before")),
        }
        let deferred = self.deferred.len();
        let all = if deferred == 0 { statements } else { self.deferred.drain(..).chain(statements).collect() };
        let mut outcomes = match &mut self.engine {
            Engine::Sqlite(connection) => connection.run(all).await,
            Engine::Postgres(connection) => connection.run(all).await,
            Engine::PostgresReader(reader) => reader.run(&all).await,
        }?;
        self.transaction = before;
        Ok(outcomes.split_off(deferred))
    }

    /// Runs a statement that answers rows.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn query(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Vec<Row>> {
        Ok(self.one(sql, params).await?.rows)
    }

    /// Runs a statement that answers one row or none.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn query_opt(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Runs a statement that answers exactly one row.
    ///
    /// # Errors
    /// When the statement fails or answers none.
    pub async fn query_one(&mut self, sql: &'static str, params: Vec<Value>) -> Result<Row> {
        self.query_opt(sql, params).await?.ok_or_else(|| Error::internal("a statement answered no row"))
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
    pub(crate) fn begin(mut engine: Engine) -> Self {
        match &mut engine {
            Engine::Sqlite(connection) => connection.begin(),
            Engine::Postgres(connection) => connection.begin(),
            Engine::PostgresReader(_) => {}
        }
        Self(Connection { transaction: Transaction::Whole, ..Connection::new(engine) })
    }

    /// Runs a statement that changes rows, and tells how many.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn execute(&mut self, sql: &'static str, params: Vec<Value>) -> Result<u64> {
        Ok(self.0.one(sql, params).await?.affected)
    }

    /// Adds a statement whose outcome nobody asks for. It goes out together with the next one, or with the commit, which spares a
    /// hop or a trip; if it fails, that fails.
    pub fn defer(&mut self, sql: &'static str, params: Vec<Value>) {
        self.0.deferred.push(Statement::new(sql, params));
    }

    /// Has something done after the commit. It must not take long. It is done, too, when nobody can know whether the transaction was
    /// committed, but not when it was not.
    pub fn after_commit(&mut self, hook: impl FnOnce() + Send + Sync + 'static) {
        self.0.after_commit.hooks.push(Box::new(hook));
    }

    /// Makes everything durable that the transaction did. When this returns, it survives a crash.
    ///
    /// # Errors
    /// When a deferred statement fails, or the database could not commit. What it did is then undone, unless the connection was
    /// lost in the middle of the commit: then nobody here can know.
    pub async fn commit(mut self) -> Result<()> {
        if self.0.transaction == Transaction::Broken {
            return Err(Error::internal("a transaction in which a statement failed can't be committed"));
        }
        let deferred = std::mem::take(&mut self.0.deferred);
        self.0.after_commit.is_committing = true;
        let committed = match &mut self.0.engine {
            Engine::Sqlite(connection) => connection.commit(deferred).await,
            Engine::Postgres(connection) => connection.commit(deferred).await,
            Engine::PostgresReader(_) => Err(Error::internal("a reader has no transaction")),
        };
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
