//! The HTTP/1.1 server: an accept loop that no client, however slow, silent or greedy, can hold up for good.
//!
//! TLS, HTTP/2 and limits per address are the business of the proxy in front. What is defended here is what a proxy can't
//! know or may not do: every wait for a client has a limit ([`Limits`]), so a connection is held only by a client that moves
//! bytes or by a handler at work. A client that disconnects takes its request with it: the handler's future is dropped at its
//! next `.await`, so what must be finished regardless belongs in a task of its own.

mod body;
mod connection;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{self, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use body::BodyTooSlow;
use connection::Activity;

/// How long the accept loop waits at most before it looks again whether there is room.
const ROOM_CHECK: Duration = Duration::from_millis(100);

/// How often trouble with accepting is logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What a client may take, of time and of room. `Duration::MAX` is no limit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at a time. Each takes a file descriptor, so keep it below `RLIMIT_NOFILE` with room for files and
    /// databases. Default 10,000.
    ///
    /// At the limit newcomers wait in the listener's backlog, and none is refused. While one waits, the connection that has
    /// been idle between requests for longest is closed to let it in, so idle connections never lock anyone out; connections
    /// at work do, until one is done.
    pub max_connections: usize,
    /// From the acceptance of a connection, or from the first byte of a later request, to the end of the request's header
    /// section. Default 10 s.
    pub header_timeout: Duration,
    /// From the end of a response to the first byte of the next request. Longer than the idle time-out of the usual proxies
    /// (60 s), so that it is they who close and no request meets a closing connection. Default 75 s.
    pub idle_timeout: Duration,
    /// Bytes in a request's header section, request line included; also in a chunked body's trailers. More is answered 431
    /// (RFC 6585 §5), as are more than 100 fields. Default 32 KiB.
    pub max_header_bytes: usize,
    /// Bytes buffered per connection and direction, at least 8 KiB. Default 128 KiB.
    pub buffer_bytes: usize,
    /// Time without a byte of a request body that the handler is waiting for, after which reading it fails with
    /// [`BodyTooSlow`]. Default 30 s.
    pub body_idle_timeout: Duration,
    /// Time that a handler may spend waiting for a request body in all, before what [`Self::body_min_rate`] adds. Default 30 s.
    pub body_grace: Duration,
    /// Bytes per second that a request body must bring on average: as many bytes add a second to [`Self::body_grace`], and when
    /// that is used up reading fails with [`BodyTooSlow`]. Zero is no limit. Default 1 KiB/s.
    pub body_min_rate: u64,
    /// Time in which the client takes nothing of a response that is waiting to be sent, after which it is disconnected. The
    /// kernel's buffers count as taken, and report progress in steps of up to a third of their size. Default 30 s.
    pub write_timeout: Duration,
    /// How long, after a response to a request whose body was not read to its end, further bytes of that body are discarded
    /// before the connection closes. Closing at once would reset the connection, and with it a response that the client has
    /// not read yet (RFC 9112 §9.6). Default 5 s.
    pub linger_timeout: Duration,
    /// How long requests in flight may take after the shutdown began. Default 30 s.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: 32 * 1024,
            buffer_bytes: 128 * 1024,
            body_idle_timeout: Duration::from_secs(30),
            body_grace: Duration::from_secs(30),
            body_min_rate: 1024,
            write_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Who is at the other end of the connection: in the extensions of every request. Behind a proxy that is the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeReport {
    /// Connections that were still open when [`Limits::shutdown_grace`] was over, and were cut.
    pub connections_cut: usize,
}

/// Serves `app` on `listener` until `shutdown` is cancelled.
///
/// Then the listener is closed at once, idle connections are closed, requests in flight are finished and answered with
/// `connection: close`, and after [`Limits::shutdown_grace`] what is left is cut. Dropping the returned future cuts everything
/// at once.
///
/// Errors of accepting (such as too few file descriptors) are logged and waited out, never returned.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, shutdown: CancellationToken) -> ServeReport {
    let limits = Arc::new(limits);
    let app = app.with_state(());
    let mut connections = Connections::default();
    let mut next_log = Instant::now();
    'accepting: loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.tasks.join_next_with_id() => {
                connections.forget(ended);
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(newcomer) => newcomer,
                Err(error) if concerns_one_connection(&error) => continue,
                Err(error) => {
                    if next_log <= Instant::now() {
                        next_log = Instant::now() + LOG_INTERVAL;
                        tracing::error!(%error, connections = connections.tasks.len(), "can't accept connections");
                    }
                    connections.make_room(&shutdown).await;
                    continue;
                }
            },
        };
        while connections.tasks.len() >= limits.max_connections {
            if next_log <= Instant::now() {
                next_log = Instant::now() + LOG_INTERVAL;
                tracing::warn!(connections = connections.tasks.len(), "at the limit of connections, newcomers wait");
            }
            connections.make_room(&shutdown).await;
            if shutdown.is_cancelled() {
                break 'accepting;
            }
        }
        connections.open(stream, peer, &app, &limits, &shutdown);
    }
    drop(listener);
    connections.finish(limits.shutdown_grace).await
}

/// Whether accepting failed for a reason that lies with one client, so that the next may do better right away.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}

/// The open connections, a task each.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    activities: HashMap<task::Id, Arc<Activity>>,
}

impl Connections {
    fn open(&mut self, stream: TcpStream, peer: SocketAddr, app: &Router, limits: &Arc<Limits>, shutdown: &CancellationToken) {
        let activity = Arc::new(Activity::new(shutdown.child_token()));
        let connection = connection::run(stream, PeerAddr(peer), app.clone(), Arc::clone(limits), Arc::clone(&activity));
        let id = self.tasks.spawn(connection).id();
        self.activities.insert(id, activity);
    }

    fn forget(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked");
                }
                error.id()
            }
        };
        self.activities.remove(&id);
    }

    /// Asks the connection that has been idle for longest to close, and waits until any has ended or it is time to ask again:
    /// the one asked may just have begun a long request, and others may have become idle.
    async fn make_room(&mut self, shutdown: &CancellationToken) {
        let idle = self.activities.values().filter_map(|activity| Some((activity.idle_since()?, activity)));
        if let Some((_, longest_idle)) = idle.min_by_key(|(since, _)| *since) {
            longest_idle.retire();
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
            () = sleep(ROOM_CHECK) => {}
        }
    }

    /// Waits for the connections to end, which have all been told to, and cuts those that don't.
    async fn finish(mut self, grace: Duration) -> ServeReport {
        let all_ended = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.forget(ended);
            }
        };
        let _ = timeout(grace, all_ended).await;
        let connections_cut = self.tasks.len();
        if connections_cut > 0 {
            tracing::warn!(connections_cut, "cut connections that outlasted the shutdown's grace");
        }
        self.tasks.shutdown().await;
        ServeReport { connections_cut }
    }
}
