//! Moving a tenant's database to another server, also to one of the other engine: a copy that is brought up to the original
//! while work in that goes on, then once more while nobody can write, and is compared with it row by row.
//!
//! Which tables there are is asked of the schema itself, so a table of tomorrow is moved without a word here.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    fmt::Write,
    time::Duration,
};

use domain::TenantPlace;
use futures_util::future::try_join_all;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

use crate::{
    Error, Result, SqliteThreads, Value,
    directory::{Located, TenantDatabases},
    migrations::{ADVISORY_LOCK, Schema, migrate_sqlite_connection, tenant_checksums},
    postgres::{check_identity, from_postgres},
    sqlite::{Access, from_rusqlite, open_file, run},
};

/// What whoever still writes to a database that has moved is told.
pub(crate) const MOVED: &str = "the tenant's database has moved to another server";
/// How many rows are in memory at once, of each of the two databases.
const BATCH: usize = 500;
/// What the triggers of a seal are called, or how their names begin, and PostgreSQL's function.
const SEAL: &str = "tenantry_moved";
/// What every database is made with: the schema's own, and the identity.
const NOT_MOVED: [&str; 2] = ["schema_migrations", "tenant_identity"];
/// New rows are kept back until all that have changed are written, as long as they are no more than this: a unique value may
/// pass from one of those to a new one.
const HELD_BACK: usize = 10_000;

/// What a table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSum {
    /// The table.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
    /// The SHA-256 of all of them in the order of their keys, the same on both engines.
    pub sha256: [u8; 32],
}

/// The copying of one tenant's database to another place. Dropped at any time, the original is as it was, unless it was
/// [sealed](Transfer::seal).
#[derive(Debug)]
pub struct Transfer {
    tables: Vec<Table>,
    original: Side,
    copy: Side,
}

impl TenantDatabases {
    /// Begins to copy a tenant's database to another place, where it was [made](TenantDatabases::create) before.
    ///
    /// # Errors
    /// When one of the two is down, another tenant's, or has another schema than this program gives.
    pub async fn transfer(&self, from: &TenantPlace, to: &TenantPlace) -> Result<Transfer> {
        let tables = tables()?;
        let (mut original, mut copy) = (self.side(from).await?, self.side(to).await?);
        original.check_schema().await?;
        copy.check_schema().await?;
        Ok(Transfer { tables, original, copy })
    }

    /// Lets everybody write again to a database that was [sealed](Transfer::seal). Waits for a transfer that is about to
    /// seal it, but for no reader. One that is open stays so.
    ///
    /// # Errors
    /// When it is down, or held by others for too long.
    pub async fn unseal(&self, place: &TenantPlace) -> Result<()> {
        self.side(place).await?.unseal().await
    }

    /// The version of a database's schema, as the database itself has it.
    ///
    /// # Errors
    /// When it is down or another tenant's.
    pub async fn schema_version_of(&self, place: &TenantPlace) -> Result<i64> {
        let rows = self.side(place).await?.read("SELECT max(version) FROM schema_migrations", Vec::new()).await?;
        match rows.first().and_then(|row| row.first()) {
            Some(Value::Int(version)) => Ok(*version),
            _ => Ok(0),
        }
    }

    async fn side(&self, place: &TenantPlace) -> Result<Side> {
        match self.locate(place)? {
            Located::Sqlite { path, threads } => {
                let tenant_id = place.tenant_id;
                let connection = threads.run(move || open_file(&path, Access::Write, Some(tenant_id))).await?;
                Ok(Side::Sqlite { connection: Some(connection), threads })
            }
            Located::Postgres { server, database } => {
                let client = server.administer(&database).await?;
                check_identity(&client, place.tenant_id).await?;
                Ok(Side::Postgres { client, statements: HashMap::new() })
            }
        }
    }
}

impl Transfer {
    /// Brings the copy to the state that the original has now, while work in the original goes on. Answers how many rows it
    /// changed, and tells `watch` of them meanwhile.
    ///
    /// # Errors
    /// When one of the two is down.
    pub async fn copy(&mut self, watch: &(dyn Fn(u64) + Sync)) -> Result<u64> {
        self.original.execute("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let (changed, _) = self.bring_up(watch).await?;
        self.original.execute("ROLLBACK", "ROLLBACK").await?;
        Ok(changed)
    }

    /// Keeps everybody from writing to the original, until this transfer ends; on PostgreSQL no longer than this time in which
    /// nothing is asked of the original.
    ///
    /// # Errors
    /// When it is down, held by others for too long, or its schema has changed.
    pub async fn close(&mut self, at_most: Duration) -> Result<()> {
        // The advisory lock is what migrations and whoever unseals wait for.
        let closing = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '5s';
             SET LOCAL idle_in_transaction_session_timeout = {}; SELECT pg_advisory_xact_lock({ADVISORY_LOCK}); {}",
            at_most.as_millis(),
            lock(&self.tables)
        );
        self.original.execute("BEGIN IMMEDIATE", &closing).await?;
        self.original.check_schema().await
    }

    /// Brings the copy to the state of the [closed](Transfer::close) original, reads it back, and compares the two.
    ///
    /// # Errors
    /// When one of the two is down, or they are not equal.
    pub async fn complete(&mut self) -> Result<(u64, Vec<TableSum>)> {
        let (changed, sums) = self.bring_up(&|_| {}).await?;
        for sum in &sums {
            let table = self.tables.iter().find(|table| table.name == sum.table);
            let found = self.copy.sum(table.ok_or_else(|| Error::internal("a table was forgotten"))?).await?;
            if found != *sum {
                let TableSum { table, rows, .. } = sum;
                return Err(Error::internal(format!("the copy of {table} differs from the original: {} rows against {rows}", found.rows)));
            }
        }
        Ok((changed, sums))
    }

    /// Closes the original for writing for good: whoever begins to write from now on, knowing no better, is refused.
    ///
    /// # Errors
    /// When the original is down. Whether it was closed is then not known: see [`TenantDatabases::unseal`].
    pub async fn seal(mut self) -> Result<()> {
        let (for_sqlite, for_postgres) = seal(&self.tables);
        self.original.execute(&format!("{for_sqlite} COMMIT"), &format!("{for_postgres} COMMIT")).await
    }

    /// Makes the copy equal to what the original's transaction sees.
    async fn bring_up(&mut self, watch: &(dyn Fn(u64) + Sync)) -> Result<(u64, Vec<TableSum>)> {
        self.copy.execute("BEGIN IMMEDIATE", "BEGIN READ WRITE").await?;
        let (mut changed, mut sums) = (0, Vec::new());
        // What others refer to goes last, and comes first.
        for table in self.tables.iter().rev() {
            changed += delete_gone(&mut self.original, &mut self.copy, table).await?;
        }
        for table in &self.tables {
            let before = changed;
            let (copied, sum) = copy_changed(&mut self.original, &mut self.copy, table, &|rows| watch(before + rows)).await?;
            changed += copied;
            sums.push(sum);
        }
        self.copy.execute("COMMIT", "COMMIT").await?;
        Ok((changed, sums))
    }
}

/// Deletes from the copy what the original does not have any more.
async fn delete_gone(original: &mut Side, copy: &mut Side, table: &Table) -> Result<u64> {
    let (mut kept, mut there) = (Reader::new(table, Part::Key), Reader::new(table, Part::Key));
    let (mut gone, mut count) = (Vec::new(), 0);
    while let Some(key) = there.next(copy).await? {
        while kept.peek(original).await?.is_some_and(|other| order(other, &key) == Ordering::Less) {
            kept.next(original).await?;
        }
        if kept.peek(original).await? != Some(&key) {
            gone.push(key);
            count += 1;
        }
        if gone.len() == BATCH {
            copy.write(&table.delete(), std::mem::take(&mut gone)).await?;
        }
    }
    copy.write(&table.delete(), gone).await?;
    Ok(count)
}

/// Copies what the copy lacks or has otherwise, and sums up the original.
async fn copy_changed(original: &mut Side, copy: &mut Side, table: &Table, watch: &(dyn Fn(u64) + Sync)) -> Result<(u64, TableSum)> {
    let (mut rows, mut there) = (Reader::new(table, Part::All), Reader::new(table, Part::All));
    let (mut changed, mut new, mut count, mut sum) = (Vec::new(), Vec::new(), 0, Summing::default());
    while let Some(row) = rows.next(original).await? {
        sum.add(&row);
        let key = &row[..table.key.len()];
        while there.peek(copy).await?.is_some_and(|other| order(other, key) == Ordering::Less) {
            there.next(copy).await?;
        }
        let mut limit = HELD_BACK;
        match there.peek(copy).await? {
            Some(other) if *other == row => continue,
            Some(other) if order(other, key) == Ordering::Equal => changed.push(row),
            Some(_) => new.push(row),
            None => {
                // After the last row of the copy there is nothing to wait for.
                limit = BATCH;
                new.push(row);
            }
        }
        count += 1;
        if changed.len() >= BATCH || new.len() >= limit {
            copy.write(&table.upsert(), std::mem::take(&mut changed)).await?;
        }
        if new.len() >= limit {
            copy.write(&table.upsert(), std::mem::take(&mut new)).await?;
            watch(count);
        }
    }
    copy.write(&table.upsert(), changed).await?;
    copy.write(&table.upsert(), new).await?;
    watch(count);
    Ok((count, sum.end(table)))
}

/// The order of two rows' keys, which both engines give them in.
fn order(a: &[Value], b: &[Value]) -> Ordering {
    let one = |(a, b): (&Value, &Value)| match (a, b) {
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        _ => Ordering::Equal,
    };
    a.iter().zip(b).map(one).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

#[derive(Default)]
struct Summing {
    rows: u64,
    sha256: Sha256,
}

impl Summing {
    fn add(&mut self, row: &[Value]) {
        self.rows += 1;
        for value in row {
            let mut hash = |tag: u8, bytes: &[u8]| {
                self.sha256.update([tag]);
                self.sha256.update((bytes.len() as u64).to_be_bytes());
                self.sha256.update(bytes);
            };
            match value {
                Value::Null => hash(0, &[]),
                Value::Int(n) => hash(1, &n.to_be_bytes()),
                Value::Text(text) => hash(2, text.as_bytes()),
                Value::Bytes(bytes) => hash(3, bytes),
                // Not among what is read: see `plain`.
                Value::Bool(_) | Value::Uuid(_) | Value::Time(_) => {}
            }
        }
    }

    fn end(self, table: &Table) -> TableSum {
        TableSum { table: table.name.clone(), rows: self.rows, sha256: self.sha256.finalize().into() }
    }
}

/// A value as SQLite stores it: what is the same in both engines is then equal.
fn plain(value: Value) -> Value {
    match value {
        Value::Bool(b) => Value::Int(i64::from(b)),
        Value::Uuid(uuid) => Value::Bytes(uuid.as_bytes().to_vec()),
        Value::Time(at) => Value::Int(at.micros()),
        other => other,
    }
}

/// A value as PostgreSQL stores it in a column of this type.
fn typed(value: &Value, ty: &Type) -> Result<Value> {
    Ok(match (value, ty) {
        (Value::Int(n), &Type::BOOL) => Value::Bool(*n != 0),
        (Value::Int(micros), &Type::TIMESTAMPTZ) => Value::Time(domain::Timestamp::from_micros(*micros)),
        (Value::Bytes(bytes), &Type::UUID) => Value::Uuid(uuid::Uuid::from_slice(bytes).map_err(Error::internal)?),
        (other, _) => other.clone(),
    })
}

/// The parameters of a statement, as PostgreSQL stores them.
fn typed_for(statement: &tokio_postgres::Statement, values: &[Value]) -> Result<Vec<Value>> {
    values.iter().zip(statement.params()).map(|(value, ty)| typed(value, ty)).collect()
}

/// A table that is moved.
#[derive(Debug)]
struct Table {
    name: String,
    key: Vec<Column>,
    /// All of them, those of the key first.
    columns: Vec<String>,
}

#[derive(Debug)]
struct Column {
    name: String,
    is_text: bool,
}

/// How much of a row.
#[derive(Clone, Copy)]
enum Part {
    Key,
    All,
}

impl Table {
    /// Asks for rows in the order of their keys: the first ones, or those after a key.
    fn select(&self, part: Part, is_after: bool, is_postgres: bool) -> String {
        let columns = match part {
            Part::Key => &self.columns[..self.key.len()],
            Part::All => &self.columns[..],
        };
        // SQLite compares text by its bytes.
        let key = |column: &Column| quoted(&column.name) + if column.is_text && is_postgres { " COLLATE \"C\"" } else { "" };
        let key: Vec<_> = self.key.iter().map(key).collect();
        let mut sql = format!("SELECT {} FROM {}", list(columns), quoted(&self.name));
        if is_after {
            let _never_fails = write!(sql, " WHERE ({}) > ({})", key.join(", "), parameters(key.len()));
        }
        sql + &format!(" ORDER BY {} LIMIT {BATCH}", key.join(", "))
    }

    fn upsert(&self) -> String {
        let (key, others) = self.columns.split_at(self.key.len());
        let set: Vec<_> = others.iter().map(|column| format!("{0} = excluded.{0}", quoted(column))).collect();
        let otherwise = if set.is_empty() { "DO NOTHING".to_owned() } else { format!("DO UPDATE SET {}", set.join(", ")) };
        let (name, columns, values) = (quoted(&self.name), list(&self.columns), parameters(self.columns.len()));
        format!("INSERT INTO {name} ({columns}) VALUES ({values}) ON CONFLICT ({}) {otherwise}", list(key))
    }

    fn delete(&self) -> String {
        let key = (1..).zip(&self.key).map(|(n, column)| format!("{} = ${n}", quoted(&column.name)));
        format!("DELETE FROM {} WHERE {}", quoted(&self.name), key.collect::<Vec<_>>().join(" AND "))
    }
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
}

fn parameters(count: usize) -> String {
    (1..=count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

/// The tables of this program's schema, those that others refer to before those.
fn tables() -> Result<Vec<Table>> {
    let connection = Connection::open_in_memory().map_err(from_rusqlite)?;
    migrate_sqlite_connection(&connection, Schema::TenantTemplate)?;
    let texts = |sql: &str, table: &str| -> Result<Vec<String>> {
        let rows = run(&connection, sql, &[Value::Text(table.to_owned())])?.rows;
        rows.into_iter().map(|mut row| row.take()).collect()
    };
    let names = texts("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND $1 = ''", "")?;
    let mut left: Vec<_> = names.into_iter().filter(|name| !NOT_MOVED.contains(&name.as_str())).collect();
    let mut tables: Vec<Table> = Vec::new();
    while !left.is_empty() {
        let count = left.len();
        for name in std::mem::take(&mut left) {
            let parents = texts("SELECT \"table\" FROM pragma_foreign_key_list($1)", &name)?;
            if parents.iter().all(|parent| *parent == name || tables.iter().any(|table| table.name == *parent)) {
                let key = texts("SELECT name FROM pragma_table_info($1) WHERE pk > 0 ORDER BY pk", &name)?;
                let text = texts("SELECT name FROM pragma_table_info($1) WHERE type = 'TEXT'", &name)?;
                let rest = texts("SELECT name FROM pragma_table_info($1) WHERE pk = 0 ORDER BY cid", &name)?;
                let columns = key.iter().cloned().chain(rest).collect();
                let key = key.into_iter().map(|name| Column { is_text: text.contains(&name), name }).collect();
                tables.push(Table { name, key, columns });
            } else {
                left.push(name);
            }
        }
        if left.len() == count {
            return Err(Error::internal("tables refer to each other in a circle"));
        }
    }
    Ok(tables)
}

/// Waits for all who write, and lets nobody begin to.
fn lock(tables: &[Table]) -> String {
    let names: Vec<_> = tables.iter().map(|table| quoted(&table.name)).collect();
    format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE;", names.join(", "))
}

/// What refuses every write: for SQLite, for PostgreSQL.
fn seal(tables: &[Table]) -> (String, String) {
    let refuse = MOVED.replace('\'', "''");
    // Class 57, operator intervention, and nothing that PostgreSQL says itself.
    let raise = format!("RAISE EXCEPTION '{refuse}' USING ERRCODE = '57M01';");
    let (mut for_sqlite, mut for_postgres) = (String::new(), seal_function(&raise));
    for Table { name, .. } in tables {
        let table = quoted(name);
        for_postgres += &format!(
            "CREATE OR REPLACE TRIGGER {SEAL} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} EXECUTE FUNCTION {SEAL}();"
        );
        for event in ["INSERT", "UPDATE", "DELETE"] {
            let trigger = quoted(&format!("{SEAL}_{name}_{event}"));
            for_sqlite +=
                &format!("CREATE TRIGGER IF NOT EXISTS {trigger} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '{refuse}'); END;");
        }
    }
    (for_sqlite, for_postgres)
}

/// What PostgreSQL runs before each statement that writes.
fn seal_function(what: &str) -> String {
    format!("CREATE OR REPLACE FUNCTION {SEAL}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what} RETURN NULL; END $$;")
}

/// Takes away whatever seal a database bears, of which version of the program ever.
fn unseal_sqlite(connection: &Connection) -> Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE").map_err(from_rusqlite)?;
    let triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, length($1)) = $1";
    for mut row in run(connection, triggers, &[Value::Text(SEAL.to_owned())])?.rows {
        let name: String = row.take()?;
        connection.execute_batch(&format!("DROP TRIGGER {}", quoted(&name))).map_err(from_rusqlite)?;
    }
    connection.execute_batch("COMMIT").map_err(from_rusqlite)
}

/// As [`unseal_sqlite`]. Dropping a trigger waits for all readers, and all who come later wait behind it. So first the triggers
/// are made harmless, which waits for nobody but a transfer that is about to seal; then they are dropped, if that can be had
/// at once.
async fn unseal_postgres(client: &Client) -> Result<()> {
    let lock = format!("BEGIN READ WRITE; SELECT pg_advisory_xact_lock({ADVISORY_LOCK})");
    client.batch_execute(&lock).await.map_err(from_postgres)?;
    let sealed = client.query_opt("SELECT 1 FROM pg_proc WHERE oid = to_regproc($1)", &[&SEAL]).await.map_err(from_postgres)?;
    let disarm = if sealed.is_some() { seal_function("") } else { String::new() };
    client.batch_execute(&format!("{disarm} COMMIT")).await.map_err(from_postgres)?;
    let tidy = format!("BEGIN READ WRITE; SET LOCAL lock_timeout = '100ms'; DROP FUNCTION IF EXISTS {SEAL}() CASCADE; COMMIT");
    match client.batch_execute(&tidy).await.map_err(from_postgres) {
        Err(Error::Busy(_)) => client.batch_execute("ROLLBACK").await.map_err(from_postgres),
        tidied => tidied,
    }
}

/// Reads a table in the order of its keys, not much of it at a time.
struct Reader<'a> {
    table: &'a Table,
    part: Part,
    rows: VecDeque<Vec<Value>>,
    /// The last key that was read.
    after: Option<Vec<Value>>,
    is_over: bool,
}

impl<'a> Reader<'a> {
    fn new(table: &'a Table, part: Part) -> Self {
        Self { table, part, rows: VecDeque::new(), after: None, is_over: false }
    }

    async fn peek(&mut self, side: &mut Side) -> Result<Option<&Vec<Value>>> {
        if self.rows.is_empty() && !self.is_over {
            let sql = self.table.select(self.part, self.after.is_some(), side.is_postgres());
            self.rows = side.read(&sql, self.after.take().unwrap_or_default()).await?.into();
            self.is_over = self.rows.len() < BATCH;
            self.after = self.rows.back().map(|row| row[..self.table.key.len()].to_vec());
        }
        Ok(self.rows.front())
    }

    async fn next(&mut self, side: &mut Side) -> Result<Option<Vec<Value>>> {
        self.peek(side).await?;
        Ok(self.rows.pop_front())
    }
}

/// A connection to one of the two databases.
enum Side {
    Sqlite {
        /// Absent while a thread has it.
        connection: Option<Connection>,
        threads: SqliteThreads,
    },
    Postgres {
        client: Client,
        statements: HashMap<String, tokio_postgres::Statement>,
    },
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Side").field("is_postgres", &self.is_postgres()).finish_non_exhaustive()
    }
}

impl Side {
    fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// Runs several statements in the engine's own words.
    async fn execute(&mut self, for_sqlite: &str, for_postgres: &str) -> Result<()> {
        match self {
            Self::Sqlite { connection, threads } => {
                let sql = for_sqlite.to_owned();
                on_thread(connection, threads, move |connection| connection.execute_batch(&sql).map_err(from_rusqlite)).await
            }
            Self::Postgres { client, .. } => client.batch_execute(for_postgres).await.map_err(from_postgres),
        }
    }

    /// Reads rows, as SQLite would store them.
    async fn read(&mut self, sql: &str, params: Vec<Value>) -> Result<Vec<Vec<Value>>> {
        match self {
            Self::Sqlite { connection, threads } => {
                let sql = sql.to_owned();
                let rows = on_thread(connection, threads, move |connection| Ok(run(connection, &sql, &params)?.rows)).await?;
                Ok(rows.into_iter().map(crate::Row::into_values).collect())
            }
            Self::Postgres { client, statements } => {
                let statement = prepared(client, statements, sql).await?;
                let params = typed_for(&statement, &params)?;
                let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|value| value as _).collect();
                let rows = client.query(&statement, &params).await.map_err(from_postgres)?;
                let values = |row: tokio_postgres::Row| {
                    (0..row.len()).map(|n| row.try_get(n).map(plain).map_err(Error::internal)).collect::<Result<Vec<_>>>()
                };
                rows.into_iter().map(values).collect()
            }
        }
    }

    /// Runs a statement for each of the rows, which are as SQLite would store them.
    async fn write(&mut self, sql: &str, rows: Vec<Vec<Value>>) -> Result<()> {
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
                    let params = typed_for(statement, &row)?;
                    let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|value| value as _).collect();
                    client.execute(statement, &params).await.map_err(from_postgres)
                };
                try_join_all(rows.into_iter().map(write)).await.map(drop)
            }
        }
    }

    /// Fails unless the database has exactly this program's schema, which is what tells its tables.
    async fn check_schema(&mut self) -> Result<()> {
        let found = self.read("SELECT version, checksum FROM schema_migrations ORDER BY version", Vec::new()).await?;
        let expected: Vec<_> = tenant_checksums().map(|(version, checksum)| vec![Value::Int(version), Value::Text(checksum)]).collect();
        if found == expected { Ok(()) } else { Err(Error::unavailable("the database has another schema than this program gives it")) }
    }

    async fn sum(&mut self, table: &Table) -> Result<TableSum> {
        let (mut rows, mut sum) = (Reader::new(table, Part::All), Summing::default());
        while let Some(row) = rows.next(self).await? {
            sum.add(&row);
        }
        Ok(sum.end(table))
    }

    async fn unseal(&mut self) -> Result<()> {
        match self {
            Self::Sqlite { connection, threads } => on_thread(connection, threads, unseal_sqlite).await,
            Self::Postgres { client, .. } => unseal_postgres(client).await,
        }
    }
}

/// Runs `work` on a thread of SQLite's.
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
