//! A bounded worker pool: few threads of low priority, a bounded and fair queue, and no threads when idle.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use argon2::Block;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tracing::Span;

use super::fair_queue::{FairQueue, Source};

/// The memory that a thread hashes in. The thread keeps it from job to job, because filling fresh pages costs a large part of the time
/// of a hash.
pub(super) type Memory = Vec<Block>;

/// Work that waits. Without memory, it has been turned away: the queue was full.
type Job = Box<dyn FnOnce(Option<&mut Memory>) + Send>;

/// Runs work on its own threads. Dropping the pool ends them.
pub(super) struct WorkerPool {
    shared: Arc<Shared>,
}

/// The bounds of a pool.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Jobs that run at once, at least 1.
    pub(super) threads: usize,
    /// Jobs that wait, at least 1.
    pub(super) queue: usize,
    /// How long a thread waits for work before it ends.
    pub(super) idle: Duration,
}

impl WorkerPool {
    /// A pool without threads: the first work starts them.
    pub(super) fn new(limits: Limits) -> Self {
        let state = State { queue: FairQueue::new(limits.queue), threads: 0, idle: 0, last_duration: Duration::ZERO, closed: false };
        Self { shared: Arc::new(Shared { limits, state: Mutex::new(state), wake: Condvar::new() }) }
    }

    /// Runs the work, when it is the source's turn, and returns its result. Skips work that has not begun when its caller goes away.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full and this source has most in it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        source: Source,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> domain::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let span = Span::current();
        self.submit(
            source,
            Box::new(move |memory| {
                if !sender.is_closed() {
                    // The caller may have gone away meanwhile.
                    let _ = sender.send(memory.map(|memory| span.in_scope(|| work(memory))));
                }
            }),
        )?;
        receiver.await.map_err(domain::Error::internal)?.ok_or_else(|| self.overloaded())
    }

    fn submit(&self, source: Source, job: Job) -> domain::Result<()> {
        let mut state = self.shared.state.lock();
        if state.queue.len() >= state.idle && state.threads < self.shared.limits.threads {
            self.start_thread(&mut state)?;
        }
        let turned_away = state.queue.push(source, job);
        drop(state);
        self.shared.wake.notify_one();
        if let Some(job) = turned_away {
            job(None);
        }
        Ok(())
    }

    fn overloaded(&self) -> domain::Error {
        let retry_after = self.shared.time_to_drain(&self.shared.state.lock());
        domain::Error::Overloaded { what: "password hashing", retry_after }
    }

    fn start_thread(&self, state: &mut State) -> domain::Result<()> {
        let shared = Arc::clone(&self.shared);
        match thread::Builder::new().name(format!("tenantry-hash-{}", state.threads + 1)).spawn(move || shared.work()) {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads == 0 => return Err(domain::Error::internal(error)),
            Err(error) => tracing::warn!(%error, "cannot start another hashing thread"),
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.shared.state.lock().threads
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.shared.state.lock().idle
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

struct Shared {
    limits: Limits,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    queue: FairQueue<Job>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    /// The duration of the last job.
    last_duration: Duration,
    closed: bool,
}

impl Shared {
    /// Runs jobs until the thread is idle for too long, or the pool is dropped.
    fn work(&self) {
        lower_priority();
        let mut memory = Memory::new();
        while let Some(job) = self.next_job() {
            let started = Instant::now();
            // A job that panics drops its sender, so its caller gets an error; the thread continues with the other jobs.
            if catch_unwind(AssertUnwindSafe(|| job(Some(&mut memory)))).is_err() {
                tracing::error!("hashing a password panicked");
            }
            self.state.lock().last_duration = started.elapsed();
        }
    }

    /// The next job, or nothing when the thread must end. An ending thread is subtracted before the lock is released, so that the next
    /// job starts a new thread instead of waiting for this one.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        state.idle += 1;
        self.wake.wait_while_for(&mut state, |state| state.queue.is_empty() && !state.closed, self.limits.idle);
        state.idle -= 1;
        let job = state.queue.pop();
        if job.is_none() {
            state.threads -= 1;
        }
        job
    }

    /// The expected time until the queue is empty, at least a second.
    fn time_to_drain(&self, state: &State) -> Duration {
        let rounds = u32::try_from(state.queue.len().div_ceil(self.limits.threads)).unwrap_or(u32::MAX);
        state.last_duration.saturating_mul(rounds).max(Duration::from_secs(1))
    }
}

/// Gives all other threads of the process precedence when the cores are busy.
fn lower_priority() {
    // Only on Linux each thread has its own nice value; elsewhere this would slow down the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!(%error, "a hashing thread runs at normal priority");
    }
}
