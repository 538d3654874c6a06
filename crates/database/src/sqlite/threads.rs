//! The threads that run SQLite, so that its work and its fsyncs don't block the async threads. A commit waits for the disk, so
//! writes have threads of their own, and more of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The threads that run SQLite. They end when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct SqliteThreads {
    pub(super) reads: Threads,
    pub(super) writes: Threads,
}

impl SqliteThreads {
    /// Starts `reads` threads for reading and `writes` threads for writing.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(reads: usize, writes: usize) -> Result<Self> {
        Ok(Self { reads: Threads::start("read", reads)?, writes: Threads::start("write", writes)? })
    }

    /// Runs `job` on a write thread and waits for its result.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.writes.run(job).await?
    }
}

/// Threads with one queue of jobs.
#[derive(Clone, Debug)]
pub(super) struct Threads(Sender<Job>);

impl Threads {
    fn start(purpose: &str, count: usize) -> Result<Self> {
        let (sender, receiver): (Sender<Job>, Receiver<Job>) = unbounded();
        for n in 0..count.max(1) {
            let jobs = receiver.clone();
            std::thread::Builder::new()
                .name(format!("sqlite-{purpose}-{n}"))
                .spawn(move || {
                    for job in &jobs {
                        // The caller of a job that panics gets an error; the thread goes on with the next job.
                        let _panicked = catch_unwind(AssertUnwindSafe(job));
                    }
                })
                .map_err(Error::unavailable)?;
        }
        Ok(Self(sender))
    }

    /// Runs a job and waits for its result.
    pub(super) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (sender, result) = oneshot::channel();
        // When the caller has gone, the result is dropped here, on the thread: a lease then rolls back and returns to its pool.
        self.start_job(move || drop(sender.send(job())))?;
        result.await.map_err(|_| Error::internal("an SQLite job panicked"))
    }

    /// Queues a job whose result comes another way.
    pub(super) fn start_job(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.0.send(Box::new(job)).map_err(|_| Error::unavailable("the SQLite threads have ended"))
    }

    /// Drops a value on a thread, because that may wait for the disk.
    pub(super) fn drop_there(&self, value: impl Send + 'static) {
        // Once the threads have ended, it is dropped here.
        let _threads_have_ended = self.start_job(move || drop(value));
    }
}
