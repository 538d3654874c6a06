//! Moving a tenant's database to another server, also to one of the other engine: a copy that follows its source while work in the
//! source goes on, then once more while writes are locked out, and is then compared with the source row by row.
//!
//! The tables come from the schema itself, so a future table is moved without a change here.
//!
//! From the bottom up: `table`, `rows`, `write_block`, `side` (one of the two databases), `sync` (source to target). A module calls
//! only those before it.

mod rows;
mod side;
mod sync;
mod table;
mod write_block;

use std::time::Duration;

use domain::TenantPlace;

pub use self::rows::TableSum;
use self::{
    side::Side,
    sync::{copy_changed, delete_gone},
    table::{Table, tables},
};
use crate::{
    directory::TenantDatabases,
    error::{Error, Result},
    value::Value,
};

/// The copying of one tenant's database to another location. Dropped at any time, it leaves the source as it was, unless the source
/// was [write-blocked](Transfer::write_block).
#[derive(Debug)]
pub struct Transfer {
    tables: Vec<Table>,
    source: Side,
    target: Side,
}

impl TenantDatabases {
    /// Begins to copy a tenant's database to another location, where it was [created](TenantDatabases::create) before.
    ///
    /// # Errors
    /// When one of the two is down, another tenant's, or has another schema than this program gives.
    pub async fn transfer(&self, source: &TenantPlace, target: &TenantPlace) -> Result<Transfer> {
        let tables = tables()?;
        let (mut source, mut target) = (self.side(source).await?, self.side(target).await?);
        source.check_schema().await?;
        target.check_schema().await?;
        Ok(Transfer { tables, source, target })
    }

    /// Permits writes again to a database that was [write-blocked](Transfer::write_block). Waits for a transfer that is about to
    /// write-block it, but for no reader. Without effect on a database that is not write-blocked.
    ///
    /// # Errors
    /// When it is down, or held by other transactions for too long.
    pub async fn lift_write_block(&self, location: &TenantPlace) -> Result<()> {
        self.side(location).await?.lift_write_block().await
    }

    /// The version of a database's schema, as the database itself records it.
    ///
    /// # Errors
    /// When it is down or another tenant's.
    pub async fn schema_version_of(&self, location: &TenantPlace) -> Result<i64> {
        let rows = self.side(location).await?.read("SELECT max(version) FROM schema_migrations", Vec::new()).await?;
        match rows.first().and_then(|row| row.first()) {
            Some(Value::Int(version)) => Ok(*version),
            _ => Ok(0),
        }
    }

    async fn side(&self, location: &TenantPlace) -> Result<Side> {
        Side::open(self.server(location)?, location).await
    }
}

impl Transfer {
    /// Brings the target to the current state of the source, while work in the source goes on. Returns how many rows it changed,
    /// and reports them to `progress` meanwhile.
    ///
    /// # Errors
    /// When one of the two is down.
    pub async fn copy(&mut self, progress: &(dyn Fn(u64) + Sync)) -> Result<u64> {
        self.source.execute("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let (changed, _) = self.synchronize(progress).await?;
        self.source.execute("ROLLBACK", "ROLLBACK").await?;
        Ok(changed)
    }

    /// Locks writers out of the source until this transfer ends; on PostgreSQL until the source is idle for `idle_limit` at the
    /// latest.
    ///
    /// # Errors
    /// When it is down, held by other transactions for too long, or its schema has changed.
    pub async fn lock_source(&mut self, idle_limit: Duration) -> Result<()> {
        self.source.execute("BEGIN IMMEDIATE", &write_block::lock(&self.tables, idle_limit)).await?;
        self.source.check_schema().await
    }

    /// Brings the target to the state of the [locked](Transfer::lock_source) source, reads it back, and compares the two.
    ///
    /// # Errors
    /// When one of the two is down, or they are not equal.
    pub async fn complete(&mut self) -> Result<(u64, Vec<TableSum>)> {
        let (changed, sums) = self.synchronize(&|_| {}).await?;
        for (table, sum) in self.tables.iter().zip(&sums) {
            let found = self.target.sum(table).await?;
            if found != *sum {
                let TableSum { table, rows, .. } = sum;
                return Err(Error::internal(format!("the copy of {table} differs from the original: {} rows against {rows}", found.rows)));
            }
        }
        Ok((changed, sums))
    }

    /// Blocks writes to the source for good: later writers fail that do not know of the move.
    ///
    /// # Errors
    /// When the source is down. Whether it is write-blocked is then unknown: see [`TenantDatabases::lift_write_block`].
    pub async fn write_block(mut self) -> Result<()> {
        let (for_sqlite, for_postgres) = write_block::create(&self.tables);
        self.source.execute(&format!("{for_sqlite} COMMIT"), &format!("{for_postgres} COMMIT")).await
    }

    /// Makes the target equal to what the source's transaction sees. Returns the sums of the source's tables.
    async fn synchronize(&mut self, progress: &(dyn Fn(u64) + Sync)) -> Result<(u64, Vec<TableSum>)> {
        self.target.execute("BEGIN IMMEDIATE", "BEGIN READ WRITE").await?;
        let (mut changed, mut sums) = (0, Vec::new());
        // Referenced rows are deleted after, and added before, those that refer to them.
        for table in self.tables.iter().rev() {
            changed += delete_gone(&mut self.source, &mut self.target, table).await?;
        }
        for table in &self.tables {
            let before = changed;
            let report = |rows| progress(before + rows);
            let (copied, sum) = copy_changed(&mut self.source, &mut self.target, table, &report).await?;
            changed += copied;
            sums.push(sum);
        }
        self.target.execute("COMMIT", "COMMIT").await?;
        Ok((changed, sums))
    }
}
