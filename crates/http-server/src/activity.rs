//! The activity of a connection: recorded by its socket, bodies and service; read by its watchdog and the accept loop.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// The activity of a connection.
///
/// All users except the accept loop run in the connection's own task, so these atomics need no ordering.
pub(crate) struct Activity {
    phase: AtomicU8,
    requests: AtomicU64,
    bytes_written: AtomicU64,
    write_blocked: AtomicBool,
    body_unread: AtomicBool,
    /// Whether a handler waits for the next bytes of a request's body.
    body_awaited: AtomicBool,
    /// Bytes read and written.
    transferred: AtomicU64,
    opened_at: Instant,
    /// Microseconds since [`EPOCH`], or [`NOT_IDLE`].
    idle_since: AtomicU64,
    retire: CancellationToken,
}

/// An arbitrary reference time for counting microseconds in an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
const NOT_IDLE: u64 = u64::MAX;

/// The phases of [`Activity`].
const HEADER: u8 = 0;
const REQUEST: u8 = 1;
const IDLE: u8 = 2;
const LINGER: u8 = 3;

/// What a connection is waiting for. Two waits are equal only if the connection made no progress in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The handler, which has no limit; [`RequestBody`](crate::body::RequestBody) limits its waits for the request's body.
    Handler,
    /// The client, to complete the header section of the request after `requests` earlier ones.
    Header { requests: u64 },
    /// The client, to begin another request after `requests` earlier ones.
    NextRequest { requests: u64 },
    /// The client, to read more than the first `bytes_written` bytes.
    Reader { bytes_written: u64 },
    /// The client, to close its side of the connection.
    Linger,
}

impl Activity {
    /// The activity of a newly accepted connection. Once `retire` is cancelled, the connection closes as soon as it is idle.
    pub(crate) fn new(retire: CancellationToken) -> Self {
        Self {
            phase: AtomicU8::new(HEADER),
            requests: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            write_blocked: AtomicBool::new(false),
            body_unread: AtomicBool::new(false),
            body_awaited: AtomicBool::new(false),
            transferred: AtomicU64::new(0),
            opened_at: Instant::now(),
            idle_since: AtomicU64::new(NOT_IDLE),
            retire,
        }
    }

    /// When the connection became idle between two requests, unless it is busy or retired.
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

    /// Closes the connection as soon as it is idle.
    pub(crate) fn retire(&self) {
        self.retire.cancel();
    }

    /// Completes when the connection is retired.
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

    /// The number of requests before the one whose header section arrives; none while no header section does.
    pub(crate) fn reading_head(&self) -> Option<u64> {
        (self.phase.load(Relaxed) == HEADER).then(|| self.requests.load(Relaxed))
    }

    /// Records whether a handler waits for the body.
    pub(crate) fn await_body(&self, awaited: bool) {
        self.body_awaited.store(awaited, Relaxed);
    }

    /// The bytes per second that were transferred since the connection was opened, if it waits for its client within a request and is
    /// older than `grace`.
    pub(crate) fn client_rate(&self, grace: Duration) -> Option<u64> {
        let waits = self.body_awaited.load(Relaxed) || !matches!(self.wait(), Wait::Handler | Wait::NextRequest { .. });
        let age = self.opened_at.elapsed();
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1);
        (waits && age > grace).then(|| self.transferred.load(Relaxed).saturating_mul(1000) / millis)
    }

    /// Records that bytes arrived.
    pub(crate) fn bytes_read(&self, bytes: usize) {
        self.transferred.fetch_add(bytes as u64, Relaxed);
        if self.phase.load(Relaxed) == IDLE {
            self.phase.store(HEADER, Relaxed);
        }
    }

    /// Records a write to the socket: zero bytes if it would block.
    pub(crate) fn bytes_written(&self, bytes: usize, would_block: bool) {
        self.write_blocked.store(would_block, Relaxed);
        self.bytes_written.fetch_add(bytes as u64, Relaxed);
        self.transferred.fetch_add(bytes as u64, Relaxed);
    }

    /// Whether the client may still be sending a body, or a rejected header section.
    pub(crate) fn may_have_more_to_come(&self) -> bool {
        self.is_body_unread() || self.phase.load(Relaxed) == HEADER && !self.retire.is_cancelled()
    }

    /// Records that the connection only discards what the client still sends (lingers).
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
