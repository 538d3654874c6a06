//! One connection: hyper on the socket, and a watchdog with one timer for every wait that the client is to blame for.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use futures_util::FutureExt;
use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::unconstrained,
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    Limits, PeerAddr,
    body::{RequestBody, ResponseBody},
};

/// The least that hyper accepts for its buffers.
const MIN_BUFFER_BYTES: usize = 8 * 1024;

/// Serves a connection to its end.
pub(super) async fn run(stream: TcpStream, peer: PeerAddr, app: Router, limits: Arc<Limits>, activity: Arc<Activity>) {
    // Small answers must not wait for the acknowledgement of earlier ones (Nagle's algorithm).
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!(peer = %peer.0, %error, "connection was gone before it began");
    }
    let service = service_fn(|request: Request<Incoming>| {
        activity.request_begins();
        let (mut app, activity, limits) = (app.clone(), Arc::clone(&activity), Arc::clone(&limits));
        async move {
            let mut request = request.map(|body| RequestBody::wrap(body, limits, &activity));
            request.extensions_mut().insert(peer);
            app.call(request).await.map(|mut response| {
                if activity.body_left_unread() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response.map(|body| ResponseBody::new(body, activity))
            })
        }
    });
    let socket = Socket { stream, activity: Arc::clone(&activity), write_closed: false };
    let connection = http1::Builder::new()
        // hyper's own timer can't tell a slow header section from an idle connection, and is made anew for every request.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.buffer_bytes.max(MIN_BUFFER_BYTES))
        .serve_connection(TokioIo::new(socket), service);

    let mut connection = pin!(connection);
    let mut retired = pin!(activity.retire.cancelled().fuse());
    let mut watchdog = Watchdog::new(&limits, &activity);
    loop {
        tokio::select! {
            biased;
            () = &mut retired => connection.as_mut().graceful_shutdown(),
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %peer.0, %error, "connection failed");
                }
                return;
            }
            wait = poll_fn(|cx| watchdog.poll(cx)) => {
                return tracing::debug!(peer = %peer.0, ?wait, "client took too long, connection closed");
            }
        }
    }
}

/// What happens on a connection: told by its socket and its service, read by its watchdog and by the accept loop.
///
/// All but the accept loop run in the connection's own task, so nothing is ordered by these atomics.
pub(super) struct Activity {
    phase: AtomicU8,
    requests: AtomicU64,
    bytes_written: AtomicU64,
    write_blocked: AtomicBool,
    body_left_unread: AtomicBool,
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

/// Whom a connection is waiting for. Two waits are the same only if nothing happened in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The handler, which may take its time (and watches the request's body itself, see [`RequestBody`]).
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
    pub(super) fn new(retire: CancellationToken) -> Self {
        Self {
            phase: AtomicU8::new(HEADER),
            requests: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            write_blocked: AtomicBool::new(false),
            body_left_unread: AtomicBool::new(false),
            idle_since: AtomicU64::new(NOT_IDLE),
            retire,
        }
    }

    /// Since when the connection has been idle between two requests, unless it is busy or on its way out.
    pub(super) fn idle_since(&self) -> Option<u64> {
        Some(self.idle_since.load(Relaxed)).filter(|since| *since != NOT_IDLE && !self.retire.is_cancelled())
    }

    /// Closes the connection, once it is idle.
    pub(super) fn retire(&self) {
        self.retire.cancel();
    }

    fn request_begins(&self) {
        self.phase.store(REQUEST, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.body_left_unread.store(false, Relaxed);
    }

    /// The handler let go of the request's body before its end.
    pub(super) fn leave_body_unread(&self) {
        self.body_left_unread.store(true, Relaxed);
    }

    fn body_left_unread(&self) -> bool {
        self.body_left_unread.load(Relaxed)
    }

    /// Whether the client may still be sending a body, or a header section that was refused.
    fn may_have_more_to_come(&self) -> bool {
        self.body_left_unread() || self.phase.load(Relaxed) == HEADER && !self.retire.is_cancelled()
    }

    /// The response was handed over as a whole.
    pub(super) fn response_ends(&self) {
        self.phase.store(IDLE, Relaxed);
    }

    fn bytes_read(&self) {
        if self.phase.load(Relaxed) == IDLE {
            self.phase.store(HEADER, Relaxed);
        }
    }

    fn wait(&self) -> Wait {
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

/// Ends a wait for the client that takes too long. Looks at what happened after each turn of the connection's task, so a
/// request costs it two glances at the clock and no timer of its own.
struct Watchdog<'a> {
    limits: &'a Limits,
    activity: &'a Activity,
    wait: Wait,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer counts: it is left to run out when there is nothing to limit, which is cheaper than stopping it.
    armed: bool,
}

impl<'a> Watchdog<'a> {
    fn new(limits: &'a Limits, activity: &'a Activity) -> Self {
        Self { limits, activity, wait: Wait::Handler, timer: Box::pin(sleep(Duration::ZERO)), armed: false }
    }

    /// Ready with the wait that took too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let wait = self.activity.wait();
        if wait != self.wait {
            self.begin(wait);
        }
        if !self.armed {
            return Poll::Pending;
        }
        // A client that keeps the task busy uses up its budget, without which the timer would never look at the clock.
        pin!(unconstrained(self.timer.as_mut())).poll(cx).map(|()| wait)
    }

    fn begin(&mut self, wait: Wait) {
        let now = Instant::now();
        let limit = match wait {
            Wait::Handler => None,
            Wait::Header { .. } => Some(self.limits.header_timeout),
            Wait::NextRequest { .. } => Some(self.limits.idle_timeout),
            Wait::Reader { .. } => Some(self.limits.write_timeout),
            Wait::Linger => Some(self.limits.linger_timeout),
        };
        let deadline = limit.and_then(|limit| now.checked_add(limit));
        if let Some(deadline) = deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.armed = deadline.is_some();
        self.wait = wait;
        let idle_since = match wait {
            Wait::NextRequest { .. } => u64::try_from(now.duration_since(*EPOCH).as_micros()).unwrap_or(NOT_IDLE),
            _ => NOT_IDLE,
        };
        self.activity.idle_since.store(idle_since, Relaxed);
    }
}

/// The socket, which notes what moves through it.
struct Socket {
    stream: TcpStream,
    activity: Arc<Activity>,
    write_closed: bool,
}

impl Socket {
    fn note_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.write_blocked.store(written.is_pending(), Relaxed);
        if let Poll::Ready(Ok(bytes)) = written {
            self.activity.bytes_written.fetch_add(bytes as u64, Relaxed);
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_read();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Says that nothing more will be written and, if the client may still be sending what nobody reads, discards what comes
    /// until it closes too or the watchdog has seen enough.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.write_closed = true;
        }
        if self.activity.may_have_more_to_come() {
            self.activity.phase.store(LINGER, Relaxed);
            let mut discarded = [0; 512];
            loop {
                let mut buffer = ReadBuf::new(&mut discarded);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
                if buffer.filled().is_empty() {
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
