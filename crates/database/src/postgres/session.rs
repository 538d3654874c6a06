//! Pooled connections with their prepared statements.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::{
    connector::Session,
    error::{from_postgres, is_stale_plan},
    value::as_params,
};
use crate::{
    error::{Error, Result},
    statement::{Outcome, Statement},
    value::{Row, Value},
};

/// A connection of the pool.
pub(super) struct PooledSession {
    pub(super) session: Session,
    /// By address and length of their text, which is static: hashing the text itself would take as long as encoding its parameters.
    statements: Mutex<HashMap<(usize, usize), tokio_postgres::Statement>>,
}

impl PooledSession {
    pub(super) fn new(session: Session) -> Self {
        Self { session, statements: Mutex::default() }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.session.client.is_closed()
    }

    /// Runs statements in the engine's own words, without parameters.
    pub(super) async fn execute(&self, sql: &str) -> Result<()> {
        self.session.client.batch_execute(sql).await.map_err(from_postgres)
    }

    /// Prepares the statements that are not prepared yet.
    pub(super) async fn prepare(&self, statements: &[Statement]) -> Result<()> {
        for Statement { sql, .. } in statements {
            if !self.statements.lock().contains_key(&address(sql)) {
                let prepared = self.session.client.prepare(sql).await.map_err(from_postgres)?;
                self.statements.lock().insert(address(sql), prepared);
            }
        }
        Ok(())
    }

    /// Runs a prepared statement.
    pub(super) async fn run(&self, Statement { sql, params }: &Statement) -> Result<Outcome> {
        let prepared = self.statements.lock().get(&address(sql)).cloned();
        let prepared = &prepared.ok_or_else(|| Error::internal("a statement was not prepared"))?;
        let params = as_params(params);
        if prepared.columns().is_empty() {
            let affected = self.session.client.execute(prepared, &params).await.map_err(|error| self.failed(error))?;
            return Ok(Outcome { rows: Vec::new(), affected });
        }
        let found = self.session.client.query(prepared, &params).await.map_err(|error| self.failed(error))?;
        let rows = found.into_iter().map(|row| {
            let values = (0..row.len()).map(|n| row.try_get::<_, Value>(n).map_err(from_postgres));
            values.collect::<Result<_>>().map(Row::new)
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        Ok(Outcome { affected: rows.len() as u64, rows })
    }

    fn failed(&self, error: tokio_postgres::Error) -> Error {
        if error.as_db_error().is_some_and(is_stale_plan) {
            self.statements.lock().clear();
        }
        from_postgres(error)
    }
}

fn address(text: &'static str) -> (usize, usize) {
    (text.as_ptr().addr(), text.len())
}
