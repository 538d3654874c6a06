//! The tables that are moved, and the statements on them.

use std::fmt::Write;

use rusqlite::Connection;

use crate::{
    error::{Error, Result},
    schema::Schema,
    sqlite::{from_rusqlite, migrate, run},
    value::Value,
};

/// How many rows of each of the two databases are in memory at once.
pub(super) const BATCH: usize = 500;
/// The tables that every database gets when it is created: the schema's own, and the identity.
const NOT_MOVED: [&str; 2] = ["schema_migrations", "tenant_identity"];

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) key: Vec<Column>,
    /// All columns, those of the key first.
    columns: Vec<String>,
}

/// A column of a key.
#[derive(Debug)]
pub(super) struct Column {
    name: String,
    is_text: bool,
}

/// The part of a row to read.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Key,
    All,
}

impl Table {
    /// Reads a batch of rows in the order of their keys: the first ones, or those after a key.
    pub(super) fn select(&self, part: Part, is_after: bool, is_postgres: bool) -> String {
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

    /// Adds a row, or replaces the row of the same key.
    pub(super) fn upsert(&self) -> String {
        let (key, others) = self.columns.split_at(self.key.len());
        let set: Vec<_> = others.iter().map(|column| format!("{0} = excluded.{0}", quoted(column))).collect();
        let otherwise = if set.is_empty() { "DO NOTHING".to_owned() } else { format!("DO UPDATE SET {}", set.join(", ")) };
        let (name, columns, values) = (quoted(&self.name), list(&self.columns), parameters(self.columns.len()));
        format!("INSERT INTO {name} ({columns}) VALUES ({values}) ON CONFLICT ({}) {otherwise}", list(key))
    }

    /// Deletes the row of a key.
    pub(super) fn delete(&self) -> String {
        let key = (1..).zip(&self.key).map(|(n, column)| format!("{} = ${n}", quoted(&column.name)));
        format!("DELETE FROM {} WHERE {}", quoted(&self.name), key.collect::<Vec<_>>().join(" AND "))
    }
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
}

fn parameters(count: usize) -> String {
    (1..=count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

/// The tables of this program's schema, each after those that it refers to.
pub(super) fn tables() -> Result<Vec<Table>> {
    let connection = Connection::open_in_memory().map_err(from_rusqlite)?;
    migrate(&connection, Schema::TenantTemplate)?;
    let names = texts(&connection, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND $1 = ''", "")?;
    let mut left: Vec<_> = names.into_iter().filter(|name| !NOT_MOVED.contains(&name.as_str())).collect();
    let mut tables: Vec<Table> = Vec::new();
    while !left.is_empty() {
        let count = left.len();
        for name in std::mem::take(&mut left) {
            let parents = texts(&connection, "SELECT \"table\" FROM pragma_foreign_key_list($1)", &name)?;
            if parents.iter().all(|parent| *parent == name || tables.iter().any(|table| table.name == *parent)) {
                tables.push(table(&connection, name)?);
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

fn table(connection: &Connection, name: String) -> Result<Table> {
    let key = texts(connection, "SELECT name FROM pragma_table_info($1) WHERE pk > 0 ORDER BY pk", &name)?;
    let text = texts(connection, "SELECT name FROM pragma_table_info($1) WHERE type = 'TEXT'", &name)?;
    let rest = texts(connection, "SELECT name FROM pragma_table_info($1) WHERE pk = 0 ORDER BY cid", &name)?;
    let columns = key.iter().cloned().chain(rest).collect();
    let key = key.into_iter().map(|name| Column { is_text: text.contains(&name), name }).collect();
    Ok(Table { name, key, columns })
}

fn texts(connection: &Connection, sql: &str, parameter: &str) -> Result<Vec<String>> {
    let rows = run(connection, sql, &[Value::Text(parameter.to_owned())])?.rows;
    rows.into_iter().map(|mut row| row.take()).collect()
}
