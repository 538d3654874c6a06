//! The open connections: accepts them, makes room at the limit, and ends them at shutdown.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{self, AbortHandle, JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{App, Limits, PeerAddr, ServeReport, activity::Activity, connection};

/// How often the accept loop checks for room while it waits for a connection to end.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a connection has before it may be closed for another one.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// The minimum time between two log lines about accepting.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// An open connection.
struct Open {
    activity: Arc<Activity>,
    task: AbortHandle,
    /// Whose connection it is; none if that has no limit.
    client: Option<IpAddr>,
}

/// The open connections, a task each, and the configuration of new ones.
pub(crate) struct Connections {
    app: App,
    limits: Arc<Limits>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    open: HashMap<task::Id, Open>,
    /// The number of open connections of each client.
    clients: HashMap<IpAddr, usize>,
    next_log: Instant,
}

impl Connections {
    pub(crate) fn new(app: App, limits: Limits, shutdown: CancellationToken) -> Self {
        Self {
            app,
            limits: Arc::new(limits),
            shutdown,
            tasks: JoinSet::new(),
            open: HashMap::new(),
            clients: HashMap::new(),
            next_log: Instant::now(),
        }
    }

    /// Accepts connections and opens them while there is room, until the shutdown begins.
    pub(crate) async fn accept_until_shutdown(&mut self, listener: &TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.remove(ended);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer).await,
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => self.recover(&error).await,
            }
        }
    }

    /// Opens the connection as soon as there is room, unless the shutdown begins first or its client has too many.
    async fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        let client = Some(client(peer.ip())).filter(|_| !self.app.is_proxy(peer.ip().to_canonical()));
        let has_most =
            client.is_some_and(|client| self.clients.get(&client).is_some_and(|open| *open >= self.limits.max_connections_per_client));
        if has_most && !self.evict(|open| open.client == client) {
            if self.may_log() {
                tracing::warn!(peer = %peer, "connection refused: the client's connections are all in use");
            }
            return;
        }
        while self.tasks.len() >= self.limits.max_connections {
            if self.may_log() {
                tracing::warn!(connections = self.tasks.len(), "connection limit reached, new connections wait");
            }
            self.make_room().await;
            if self.shutdown.is_cancelled() {
                return;
            }
        }
        self.open(stream, peer, client);
    }

    /// Closes the connection with the least use among those that `includes`: one that is idle, or else one whose client transfers
    /// least. Returns whether there is one.
    fn evict(&mut self, includes: impl Fn(&Open) -> bool) -> bool {
        let use_of = |open: &Open| open.activity.idle_since().map(|_| 0).or_else(|| open.activity.client_rate(EVICTION_GRACE));
        let candidates = self.open.iter().filter(|(_, open)| includes(open));
        let least = candidates.filter_map(|(id, open)| Some((use_of(open)?, *id))).min();
        let Some((rate, id)) = least else { return false };
        tracing::debug!(rate, "connection closed to make room");
        match self.forget(id) {
            // It may just be beginning a request.
            Some(open) if open.activity.idle_since().is_some() => open.activity.retire(),
            Some(open) => open.task.abort(),
            None => {}
        }
        true
    }

    /// Removes a connection that has ended or is about to.
    fn forget(&mut self, id: task::Id) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if let Some(client) = open.client
            && let Some(count) = self.clients.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&client);
            }
        }
        Some(open)
    }

    /// Logs that accepting failed, and frees a connection so that the next attempt may succeed.
    async fn recover(&mut self, error: &io::Error) {
        if self.may_log() {
            tracing::error!(%error, connections = self.tasks.len(), "cannot accept connections");
        }
        self.make_room().await;
    }

    /// Whether a log line about accepting is due; if so, the next is not for [`LOG_INTERVAL`].
    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.next_log <= now;
        if is_due {
            self.next_log = now + LOG_INTERVAL;
        }
        is_due
    }

    fn open(&mut self, stream: TcpStream, peer: SocketAddr, client: Option<IpAddr>) {
        let activity = Arc::new(Activity::new(self.shutdown.child_token()));
        let connection = connection::run(stream, PeerAddr(peer), self.app.clone(), Arc::clone(&self.limits), Arc::clone(&activity));
        let task = self.tasks.spawn(connection);
        if let Some(client) = client {
            *self.clients.entry(client).or_default() += 1;
        }
        self.open.insert(task.id(), Open { activity, task, client });
    }

    fn remove(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked");
                }
                error.id()
            }
        };
        self.forget(id);
    }

    /// Retires the connection that has been idle for longest, or else closes the one whose client transfers least. Waits until any
    /// connection has ended or [`ROOM_CHECK_INTERVAL`] is over: the retired one may just have begun a long request, and others may have
    /// become idle.
    async fn make_room(&mut self) {
        let idle = self.open.values().filter_map(|open| Some((open.activity.idle_since()?, open)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((_, longest_idle)) => longest_idle.activity.retire(),
            None => {
                self.evict(|_| true);
            }
        }
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            Some(ended) = self.tasks.join_next_with_id() => self.remove(ended),
            () = sleep(ROOM_CHECK_INTERVAL) => {}
        }
    }

    /// Waits for the connections to end, which the shutdown has retired, and aborts those that exceed the grace period.
    pub(crate) async fn finish(mut self) -> ServeReport {
        let _ = timeout(self.limits.shutdown_grace, self.tasks_ended()).await;
        let connections_cut = self.tasks.len();
        if connections_cut > 0 {
            tracing::warn!(connections_cut, "aborted connections that exceeded the shutdown grace period");
        }
        self.tasks.shutdown().await;
        ServeReport { connections_cut }
    }

    async fn tasks_ended(&mut self) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.remove(ended);
        }
    }
}

/// Whether accepting failed because of one client, so that the next attempt may succeed at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}

/// The client that an address stands for: an IPv6 client often has a whole /64 network.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}
