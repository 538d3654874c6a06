//! Statements and their outcomes.

use crate::value::{Row, Value};

/// A statement with its parameters. The text is static: values go in as parameters only.
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
    /// The rows that it returned.
    pub rows: Vec<Row>,
    /// The number of rows that it changed; meaningless when it returned rows.
    pub affected: u64,
}
