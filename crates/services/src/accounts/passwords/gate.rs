//! The gate before the hashing threads: few threads of low priority, a bounded queue, and nothing left when idle.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use argon2::Block;
use tokio::sync::oneshot;
use tracing::Span;

/// What a thread hashes in. It stays with the thread from job to job, since filling fresh pages costs as much as a good
/// part of the hashing, and is freed with the thread.
pub(super) type Memory = Vec<Block>;

type Job = Box<dyn FnOnce(&mut Memory) + Send>;

/// Runs work on threads of its own. Dropping it ends them.
pub(super) struct Gate {
    shared: Arc<Shared>,
}

/// How much a gate lets through.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Jobs that run at once, at least 1.
    pub(super) threads: usize,
    /// Jobs that wait, at least 1.
    pub(super) queue: usize,
    /// How long a thread without work stays.
    pub(super) idle: Duration,
}

impl Gate {
    /// A gate without threads: they come with the work.
    pub(super) fn new(limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { limits, state: Mutex::default(), wake: Condvar::new() }) }
    }

    /// Runs the work and answers its result. Work whose caller has gone away before it began is skipped.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut Memory) -> T + Send + 'static) -> domain::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let span = Span::current();
        self.submit(Box::new(move |memory| {
            if !sender.is_closed() {
                // The caller may still go away meanwhile; then nobody wants the result.
                let _ = sender.send(span.in_scope(|| work(memory)));
            }
        }))?;
        receiver.await.map_err(domain::Error::internal)
    }

    fn submit(&self, job: Job) -> domain::Result<()> {
        let mut state = self.shared.lock();
        let limits = self.shared.limits;
        let waiting = state.queue.len();
        if waiting >= limits.queue {
            return Err(domain::Error::Overloaded { what: "password hashing", retry_after: self.shared.time_to_drain(&state) });
        }
        if waiting >= state.idle && state.threads < limits.threads {
            self.start_thread(&mut state)?;
        }
        state.queue.push_back(job);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn start_thread(&self, state: &mut State) -> domain::Result<()> {
        let shared = Arc::clone(&self.shared);
        match thread::Builder::new().name(format!("tenantry-hash-{}", state.threads + 1)).spawn(move || shared.work()) {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads == 0 => return Err(domain::Error::internal(error)),
            Err(error) => tracing::warn!(%error, "no further hashing thread could be started"),
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.shared.lock().threads
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.shared.lock().idle
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

struct Shared {
    limits: Limits,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    /// How long the last job took.
    last_took: Duration,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn work(&self) {
        lower_priority();
        let mut memory = Memory::new();
        while let Some(job) = self.next_job() {
            let begun = Instant::now();
            // A job that panicked has dropped its sender, so its caller hears of it; the thread is needed by the others.
            if catch_unwind(AssertUnwindSafe(|| job(&mut memory))).is_err() {
                tracing::error!("hashing a password panicked");
            }
            self.lock().last_took = begun.elapsed();
        }
    }

    /// The next job, or nothing when the thread shall end. It is off the books before the lock is: a job that comes a moment
    /// later starts a thread and does not wait for this one.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle += 1;
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, self.limits.idle, |state| state.queue.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        let job = state.queue.pop_front();
        if job.is_none() {
            state.threads -= 1;
        }
        job
    }

    /// When the queue will probably have been worked off, at least a second.
    fn time_to_drain(&self, state: &State) -> Duration {
        let rounds = u32::try_from(state.queue.len().div_ceil(self.limits.threads)).unwrap_or(u32::MAX);
        state.last_took.saturating_mul(rounds).max(Duration::from_secs(1))
    }
}

/// Lets every other thread of the process go first when the cores are busy.
fn lower_priority() {
    // Only Linux gives each thread a nice value of its own; elsewhere this would slow down the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!(%error, "a hashing thread runs at normal priority");
    }
}
