//! Limits on how long statements may run, and where.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::error::from_rusqlite;
use crate::error::Result;

/// How long a statement waits for a writer before it: another connection in this process, or another process.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long statements may take together before they are interrupted, as on PostgreSQL.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// The number of instructions of its virtual machine after which SQLite asks whether to go on: some 20 µs.
const INSTRUCTIONS_PER_CHECK: i32 = 1_000;
/// The number of instructions after which a read that was tried on an async thread moves to an SQLite thread: some 20 µs. Finding
/// a row by its key takes a hundred.
const INLINE_INSTRUCTIONS: i32 = 1_000;

/// Limits the statements of a reader so that they may run on an async thread: they neither take long nor wait.
pub(super) fn limit(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    connection.progress_handler(INLINE_INSTRUCTIONS, Some(|| true))
}

/// Runs `job` on a reader without the limits of [`limit`].
pub(super) fn unlimited<T>(connection: &mut Connection, job: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
    connection.busy_timeout(BUSY_TIMEOUT).map_err(from_rusqlite)?;
    let result = job(connection);
    limit(connection).map_err(from_rusqlite)?;
    result
}

/// Runs `job` until it ends, takes too long, or `is_wanted` becomes false.
pub(super) fn interruptible<T>(
    connection: &mut Connection,
    is_wanted: Arc<AtomicBool>,
    job: impl FnOnce(&Connection) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let interrupt = move || !is_wanted.load(Ordering::Relaxed) || started.elapsed() > STATEMENT_TIMEOUT;
    connection.progress_handler(INSTRUCTIONS_PER_CHECK, Some(interrupt)).map_err(from_rusqlite)?;
    let result = job(connection);
    connection.progress_handler(0, None::<fn() -> bool>).map_err(from_rusqlite)?;
    result
}

/// Becomes false when it is dropped: held by the future that waits for a job, it stops the job when the future is dropped.
pub(super) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Default for Wanted {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
