//! Rows in a form that is the same on both engines: as SQLite would store them.

use std::cmp::Ordering;

use domain::Timestamp;
use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::table::Table;
use crate::{
    error::{Error, Result},
    value::Value,
};

/// The content of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSum {
    /// The table.
    pub table: String,
    /// The number of its rows.
    pub rows: u64,
    /// The SHA-256 of all rows in the order of their keys, the same on both engines.
    pub sha256: [u8; 32],
}

/// Compares the keys of two rows, in the order in which both engines return them.
pub(super) fn compare(a: &[Value], b: &[Value]) -> Ordering {
    let one = |(a, b): (&Value, &Value)| match (a, b) {
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        _ => Ordering::Equal,
    };
    a.iter().zip(b).map(one).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// Computes a [`TableSum`].
#[derive(Default)]
pub(super) struct Summation {
    rows: u64,
    sha256: Sha256,
}

impl Summation {
    pub(super) fn add(&mut self, row: &[Value]) {
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
                // Rows never contain these: see `normalized`.
                Value::Bool(_) | Value::Uuid(_) | Value::Time(_) => {}
            }
        }
    }

    pub(super) fn finish(self, table: &Table) -> TableSum {
        TableSum { table: table.name.clone(), rows: self.rows, sha256: self.sha256.finalize().into() }
    }
}

/// A value as SQLite stores it: equal values of both engines are then equal.
pub(super) fn normalized(value: Value) -> Value {
    match value {
        Value::Bool(b) => Value::Int(i64::from(b)),
        Value::Uuid(uuid) => Value::Bytes(uuid.as_bytes().to_vec()),
        Value::Time(at) => Value::Int(at.micros()),
        other => other,
    }
}

/// The parameters of a statement, as PostgreSQL stores them.
pub(super) fn typed_params(statement: &tokio_postgres::Statement, values: &[Value]) -> Result<Vec<Value>> {
    values.iter().zip(statement.params()).map(|(value, ty)| typed(value, ty)).collect()
}

/// A value as PostgreSQL stores it in a column of this type.
fn typed(value: &Value, ty: &Type) -> Result<Value> {
    Ok(match (value, ty) {
        (Value::Int(n), &Type::BOOL) => Value::Bool(*n != 0),
        (Value::Int(micros), &Type::TIMESTAMPTZ) => Value::Time(Timestamp::from_micros(*micros)),
        (Value::Bytes(bytes), &Type::UUID) => Value::Uuid(Uuid::from_slice(bytes).map_err(Error::internal)?),
        (other, _) => other.clone(),
    })
}
