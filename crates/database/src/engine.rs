//! The two engines behind one face: a database, and a connection to it.
//!
//! Futures are boxed here. The compiler generates the code of an async function again in every crate that awaits it; without the boxes,
//! each would contain both engines.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{
    error::{Error, Result},
    postgres::{PostgresConnection, PostgresDatabase, PostgresReader},
    schema::{Migrated, Schema},
    sqlite::{Access, SqliteConnection, SqliteFile, from_rusqlite, open_file},
    statement::{Outcome, Statement},
};

/// A database on one of the engines.
#[derive(Clone, Debug)]
pub(crate) enum EngineDatabase {
    Sqlite(Arc<SqliteFile>),
    Postgres(Arc<PostgresDatabase>),
}

impl EngineDatabase {
    /// A connection for reading outside of transactions.
    pub(crate) fn read(&self) -> BoxFuture<'_, Result<EngineConnection>> {
        Box::pin(async move {
            Ok(match self {
                Self::Sqlite(file) => EngineConnection::Sqlite(file.read().await?),
                Self::Postgres(database) => EngineConnection::PostgresReader(database.read().await?),
            })
        })
    }

    /// A connection in a transaction.
    pub(crate) fn begin(&self) -> BoxFuture<'_, Result<EngineConnection>> {
        Box::pin(async move {
            Ok(match self {
                Self::Sqlite(file) => {
                    let mut connection = file.write();
                    connection.begin();
                    EngineConnection::Sqlite(connection)
                }
                Self::Postgres(database) => {
                    let mut connection = database.write().await?;
                    connection.begin();
                    EngineConnection::Postgres(connection)
                }
            })
        })
    }

    /// Applies all pending migrations. The main database is created when it is missing.
    pub(crate) fn migrate(&self, schema: Schema) -> BoxFuture<'_, Result<Migrated>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(file) => file.migrate(schema).await,
                Self::Postgres(database) => database.migrate(schema).await,
            }
        })
    }

    /// Runs a script that brings its own transaction.
    pub(crate) fn execute(&self, script: String) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(file) => {
                    file.exclusively(move |path| open_file(path, Access::Write, None)?.execute_batch(&script).map_err(from_rusqlite)).await
                }
                Self::Postgres(database) => database.execute(&script).await,
            }
        })
    }
}

/// A connection on one of the engines.
#[derive(Debug)]
pub(crate) enum EngineConnection {
    Sqlite(SqliteConnection),
    Postgres(PostgresConnection),
    /// For reading only, outside of transactions.
    PostgresReader(PostgresReader),
}

impl EngineConnection {
    /// Runs statements in order, sent together. Stops at the first that fails.
    pub(crate) fn run(&mut self, statements: Vec<Statement>) -> BoxFuture<'_, Result<Vec<Outcome>>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(connection) => connection.run(statements).await,
                Self::Postgres(connection) => connection.run(statements).await,
                Self::PostgresReader(reader) => reader.run(&statements).await,
            }
        })
    }

    /// Runs the remaining statements and commits.
    pub(crate) fn commit(&mut self, statements: Vec<Statement>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(connection) => connection.commit(statements).await,
                Self::Postgres(connection) => connection.commit(statements).await,
                Self::PostgresReader(_) => Err(Error::internal("a reader has no transaction")),
            }
        })
    }
}
