//! A connection to the source or the target of a move, and reading its tables.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use domain::TenantPlace;
use futures_util::future::try_join_all;
use rusqlite::Connection;
use tokio_postgres::Client;

use super::{
    rows::{Summation, TableSum, normalized, typed_params},
    table::{BATCH, Part, Table},
    write_block::{lift_from_postgres, lift_from_sqlite},
};
use crate::{
    SqliteThreads,
    directory::Server,
    error::{Error, Result},
    postgres::{as_params, check_identity, from_postgres},
    schema::Schema,
    sqlite::{Access, from_rusqlite, open_file, run},
    value::{Row, Value},
};

/// A connection to one of the two databases.
pub(super) enum Side {
    Sqlite {
        /// Absent while a thread uses it.
        connection: Option<Connection>,
        threads: SqliteThreads,
    },
    Postgres {
        client: Client,
        statements: HashMap<String, tokio_postgres::Statement>,
    },
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Side").field("is_postgres", &self.is_postgres()).finish_non_exhaustive()
    }
}

impl Side {
    /// Connects to a tenant's database.
    pub(super) async fn open(server: &Server, location: &TenantPlace) -> Result<Self> {
        match server {
            Server::Sqlite(folder) => {
                let (path, tenant_id) = (folder.path_of(location), location.tenant_id);
                let connection = folder.threads.run(move || open_file(&path, Access::Write, Some(tenant_id))).await?;
                Ok(Self::Sqlite { connection: Some(connection), threads: folder.threads.clone() })
            }
            Server::Postgres(provisioner) => {
                let client = provisioner.server.administer(location.database.as_str()).await?;
                check_identity(&client, location.tenant_id).await?;
                Ok(Self::Postgres { client, statements: HashMap::new() })
            }
        }
    }

    fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// Runs several statements, each in the engine's own dialect.
    pub(super) async fn execute(&mut self, for_sqlite: &str, for_postgres: &str) -> Result<()> {
        match self {
            Self::Sqlite { connection, threads } => {
                let sql = for_sqlite.to_owned();
                on_thread(connection, threads, move |connection| connection.execute_batch(&sql).map_err(from_rusqlite)).await
            }
            Self::Postgres { client, .. } => client.batch_execute(for_postgres).await.map_err(from_postgres),
        }
    }

    /// Reads rows, as SQLite would store them.
    pub(super) async fn read(&mut self, sql: &str, params: Vec<Value>) -> Result<Vec<Vec<Value>>> {
        match self {
            Self::Sqlite { connection, threads } => {
                let sql = sql.to_owned();
                let rows = on_thread(connection, threads, move |connection| Ok(run(connection, &sql, &params)?.rows)).await?;
                Ok(rows.into_iter().map(Row::into_values).collect())
            }
            Self::Postgres { client, statements } => {
                let statement = prepared(client, statements, sql).await?;
                let params = typed_params(&statement, &params)?;
                let rows = client.query(&statement, &as_params(&params)).await.map_err(from_postgres)?;
                let values = |row: tokio_postgres::Row| {
                    (0..row.len()).map(|n| row.try_get(n).map(normalized).map_err(Error::internal)).collect::<Result<Vec<_>>>()
                };
                rows.into_iter().map(values).collect()
            }
        }
    }

    /// Runs a statement for each of the rows, which are as SQLite would store them.
    pub(super) async fn write(&mut self, sql: &str, rows: Vec<Vec<Value>>) -> Result<()> {
        match self {
            _ if rows.is_empty() => Ok(()),
            Self::Sqlite { connection, threads } => {
                let sql = sql.to_owned();
                let write = move |connection: &Connection| rows.iter().try_for_each(|row| run(connection, &sql, row).map(drop));
                on_thread(connection, threads, write).await
            }
            Self::Postgres { client, statements } => {
                let statement = &prepared(client, statements, sql).await?;
                let client = &*client;
                let write = async |row: Vec<Value>| {
                    let params = typed_params(statement, &row)?;
                    client.execute(statement, &as_params(&params)).await.map_err(from_postgres)
                };
                try_join_all(rows.into_iter().map(write)).await.map(drop)
            }
        }
    }

    /// Fails unless the database has exactly this program's schema, from which the tables are known.
    pub(super) async fn check_schema(&mut self) -> Result<()> {
        let found = self.read("SELECT version, checksum FROM schema_migrations ORDER BY version", Vec::new()).await?;
        let entry = |(version, checksum)| vec![Value::Int(version), Value::Text(checksum)];
        let expected: Vec<_> = Schema::TenantTemplate.expected().into_iter().map(entry).collect();
        if found == expected { Ok(()) } else { Err(Error::unavailable("the database has another schema than this program gives it")) }
    }

    /// Sums up a table.
    pub(super) async fn sum(&mut self, table: &Table) -> Result<TableSum> {
        let (mut rows, mut sum) = (Reader::new(table, Part::All), Summation::default());
        while let Some(row) = rows.next(self).await? {
            sum.add(&row);
        }
        Ok(sum.finish(table))
    }

    pub(super) async fn lift_write_block(&mut self) -> Result<()> {
        match self {
            Self::Sqlite { connection, threads } => on_thread(connection, threads, lift_from_sqlite).await,
            Self::Postgres { client, .. } => lift_from_postgres(client).await,
        }
    }
}

/// Reads a table in the order of its keys, one batch at a time.
pub(super) struct Reader<'a> {
    table: &'a Table,
    part: Part,
    rows: VecDeque<Vec<Value>>,
    /// The last key that was read.
    after: Option<Vec<Value>>,
    is_over: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(table: &'a Table, part: Part) -> Self {
        Self { table, part, rows: VecDeque::new(), after: None, is_over: false }
    }

    /// The next row, which stays the next.
    pub(super) async fn peek(&mut self, side: &mut Side) -> Result<Option<&Vec<Value>>> {
        if self.rows.is_empty() && !self.is_over {
            let sql = self.table.select(self.part, self.after.is_some(), side.is_postgres());
            self.rows = side.read(&sql, self.after.take().unwrap_or_default()).await?.into();
            self.is_over = self.rows.len() < BATCH;
            self.after = self.rows.back().map(|row| row[..self.table.key.len()].to_vec());
        }
        Ok(self.rows.front())
    }

    /// The next row.
    pub(super) async fn next(&mut self, side: &mut Side) -> Result<Option<Vec<Value>>> {
        self.peek(side).await?;
        Ok(self.rows.pop_front())
    }
}

/// Runs `work` on an SQLite thread.
async fn on_thread<T: Send + 'static>(
    slot: &mut Option<Connection>,
    threads: &SqliteThreads,
    work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
) -> Result<T> {
    let connection = slot.take().ok_or_else(|| Error::internal("the connection was lost"))?;
    let (connection, result) = threads
        .run(move || {
            let result = work(&connection);
            Ok((connection, result))
        })
        .await?;
    *slot = Some(connection);
    result
}

async fn prepared(
    client: &Client,
    statements: &mut HashMap<String, tokio_postgres::Statement>,
    sql: &str,
) -> Result<tokio_postgres::Statement> {
    if let Some(statement) = statements.get(sql) {
        return Ok(statement.clone());
    }
    let statement = client.prepare(sql).await.map_err(from_postgres)?;
    statements.insert(sql.to_owned(), statement.clone());
    Ok(statement)
}
