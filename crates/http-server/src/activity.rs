//! What happens on a connection: recorded by its socket, bodies and service; read by its watchdog and the accept loop.

use std::sync::{
    LazyLock,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// What happens on a connection.
///
/// All but the accept loop run in the connection's own task, so nothing is ordered by these atomics.
pub(crate) struct Activity {
    phase: AtomicU8,
    requests: AtomicU64,
    bytes_written: AtomicU64,
    write_blocked: AtomicBool,
    body_unread: AtomicBool,
    /// Microseconds since [`EPOCH`], or [`NOT_IDLE`].
    idle_since: AtomicU64,
    retire: CancellationToken,
}

/// An arbitrary moment, to count from in an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
const NOT_IDLE: u64 = u64::MAX;

/// The phases of [`Activity`].
const HEADER: u8 = 0;
const REQUEST: u8 = 1;
const IDLE: u8 = 2;
const LINGER: u8 = 3;

/// What a connection is waiting for. Two waits are equal only if nothing happened in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The handler, which may take its time (and watches the request's body itself, see [`RequestBody`](crate::body::RequestBody)).
    Handler,
    /// The client, to complete the header section of the request after so many.
    Header { requests: u64 },
    /// The client, to begin another request after so many.
    NextRequest { requests: u64 },
    /// The client, to take more of what was written than so many bytes.
    Reader { bytes_written: u64 },
    /// The client, to see that the connection is closed.
    Linger,
}

impl Activity {
    /// A connection that was just accepted, and closes as soon as it is idle once `retire` is cancelled.
    pub(crate) fn new(retire: CancellationToken) -> Self {
        Self {
            phase: AtomicU8::new(HEADER),
            requests: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            write_blocked: AtomicBool::new(false),
            body_unread: AtomicBool::new(false),
            idle_since: AtomicU64::new(NOT_IDLE),
            retire,
        }
    }

    /// Since when the connection has been idle between two requests, unless it is busy or retired.
    pub(crate) fn idle_since(&self) -> Option<u64> {
        Some(self.idle_since.load(Relaxed)).filter(|since| *since != NOT_IDLE && !self.retire.is_cancelled())
    }

    /// Records that the connection is idle since `now`.
    pub(crate) fn set_idle_since(&self, now: Instant) {
        let micros = u64::try_from(now.duration_since(*EPOCH).as_micros()).unwrap_or(NOT_IDLE);
        self.idle_since.store(micros, Relaxed);
    }

    /// Records that the connection is not idle.
    pub(crate) fn set_busy(&self) {
        self.idle_since.store(NOT_IDLE, Relaxed);
    }

    /// Closes the connection, once it is idle.
    pub(crate) fn retire(&self) {
        self.retire.cancel();
    }

    /// Ready when the connection is to close, once it is idle.
    pub(crate) fn retired(&self) -> WaitForCancellationFuture<'_> {
        self.retire.cancelled()
    }

    /// Records that a request's header section has arrived.
    pub(crate) fn begin_request(&self) {
        self.phase.store(REQUEST, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.body_unread.store(false, Relaxed);
    }

    /// Records that the handler dropped the request's body before its end.
    pub(crate) fn leave_body_unread(&self) {
        self.body_unread.store(true, Relaxed);
    }

    /// Whether the handler dropped the request's body before its end.
    pub(crate) fn is_body_unread(&self) -> bool {
        self.body_unread.load(Relaxed)
    }

    /// Records that the whole response was handed to hyper.
    pub(crate) fn end_response(&self) {
        self.phase.store(IDLE, Relaxed);
    }

    /// Records that bytes arrived.
    pub(crate) fn bytes_read(&self) {
        if self.phase.load(Relaxed) == IDLE {
            self.phase.store(HEADER, Relaxed);
        }
    }

    /// Records that the socket took bytes, none if it would block.
    pub(crate) fn bytes_written(&self, bytes: usize, would_block: bool) {
        self.write_blocked.store(would_block, Relaxed);
        self.bytes_written.fetch_add(bytes as u64, Relaxed);
    }

    /// Whether the client may still be sending a body, or a header section that was refused.
    pub(crate) fn may_have_more_to_come(&self) -> bool {
        self.is_body_unread() || self.phase.load(Relaxed) == HEADER && !self.retire.is_cancelled()
    }

    /// Records that the connection only discards what the client still sends.
    pub(crate) fn begin_linger(&self) {
        self.phase.store(LINGER, Relaxed);
    }

    /// What the connection is waiting for.
    pub(crate) fn wait(&self) -> Wait {
        if self.write_blocked.load(Relaxed) {
            return Wait::Reader { bytes_written: self.bytes_written.load(Relaxed) };
        }
        let requests = self.requests.load(Relaxed);
        match self.phase.load(Relaxed) {
            HEADER => Wait::Header { requests },
            IDLE => Wait::NextRequest { requests },
            LINGER => Wait::Linger,
            _ => Wait::Handler,
        }
    }
}
