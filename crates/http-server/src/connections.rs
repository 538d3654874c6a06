//! The open connections: accepting them, making room at the limit, and ending them at the shutdown.

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

use crate::{Limits, PeerAddr, ServeReport, activity::Activity, connection};

/// How long the accept loop waits at most before it looks again whether there is room.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The least time between two log lines about accepting.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The open connections, a task each, and what a new one needs.
pub(crate) struct Connections {
    app: Router,
    limits: Arc<Limits>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    activities: HashMap<task::Id, Arc<Activity>>,
    next_log: Instant,
}

impl Connections {
    pub(crate) fn new(app: Router, limits: Limits, shutdown: CancellationToken) -> Self {
        Self {
            // Prepares the router once, else every call would.
            app: app.with_state(()),
            limits: Arc::new(limits),
            shutdown,
            tasks: JoinSet::new(),
            activities: HashMap::new(),
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

    /// Opens the connection as soon as there is room, unless the shutdown begins first.
    async fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        while self.tasks.len() >= self.limits.max_connections {
            if self.may_log() {
                tracing::warn!(connections = self.tasks.len(), "at the limit of connections, newcomers wait");
            }
            self.make_room().await;
            if self.shutdown.is_cancelled() {
                return;
            }
        }
        self.open(stream, peer);
    }

    /// Logs that accepting failed, and frees what the next attempt may need.
    async fn recover(&mut self, error: &io::Error) {
        if self.may_log() {
            tracing::error!(%error, connections = self.tasks.len(), "can't accept connections");
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

    fn open(&mut self, stream: TcpStream, peer: SocketAddr) {
        let activity = Arc::new(Activity::new(self.shutdown.child_token()));
        let connection = connection::run(stream, PeerAddr(peer), self.app.clone(), Arc::clone(&self.limits), Arc::clone(&activity));
        let id = self.tasks.spawn(connection).id();
        self.activities.insert(id, activity);
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
        self.activities.remove(&id);
    }

    /// Asks the connection that has been idle for longest to close, and waits until any has ended or it is time to ask again:
    /// the one asked may just have begun a long request, and others may have become idle.
    async fn make_room(&mut self) {
        let idle = self.activities.values().filter_map(|activity| Some((activity.idle_since()?, activity)));
        if let Some((_, longest_idle)) = idle.min_by_key(|(since, _)| *since) {
            longest_idle.retire();
        }
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            Some(ended) = self.tasks.join_next_with_id() => self.remove(ended),
            () = sleep(ROOM_CHECK_INTERVAL) => {}
        }
    }

    /// Waits for the connections to end, which the shutdown has retired, and cuts those that outlast the grace.
    pub(crate) async fn finish(mut self) -> ServeReport {
        let _ = timeout(self.limits.shutdown_grace, self.tasks_ended()).await;
        let connections_cut = self.tasks.len();
        if connections_cut > 0 {
            tracing::warn!(connections_cut, "cut connections that outlasted the shutdown's grace");
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

/// Whether accepting failed for a reason that lies with one client, so that the next may do better right away.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}
