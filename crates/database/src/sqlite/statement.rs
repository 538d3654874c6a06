//! Running statements on an SQLite connection.

use rusqlite::{
    Connection, ToSql,
    types::{ToSqlOutput, ValueRef},
};

use super::error::from_rusqlite;
use crate::{
    error::{Error, Result},
    statement::{Outcome, Statement},
    value::{Row, Value},
};

/// Runs statements in order, after a `BEGIN` if asked. Stops at the first that fails.
pub(super) fn run_all(connection: &Connection, begin: bool, statements: &[Statement]) -> Result<Vec<Outcome>> {
    if begin {
        connection.execute_batch("BEGIN IMMEDIATE").map_err(from_rusqlite)?;
    }
    statements.iter().map(|Statement { sql, params }| run(connection, sql, params)).collect()
}

/// Runs one statement with the values of `$1`, `$2`, …
pub(crate) fn run(connection: &Connection, sql: &str, params: &[Value]) -> Result<Outcome> {
    // A write transaction already holds the whole file.
    let sql = sql.strip_suffix(" SKIP LOCKED").unwrap_or(sql);
    let sql = sql.strip_suffix(" FOR UPDATE").unwrap_or(sql);
    let mut statement = connection.prepare_cached(sql).map_err(from_rusqlite)?;
    bind(&mut statement, sql, params)?;
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

fn bind(statement: &mut rusqlite::Statement<'_>, sql: &str, params: &[Value]) -> Result<()> {
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
    Ok(())
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
