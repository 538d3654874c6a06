//! An HTTP/1.1 server for an [`axum::Router`]: an accept loop that no client, however slow, silent or greedy, can hold up for
//! good.
//!
//! TLS, HTTP/2 and limits per address are the business of the proxy in front. This server defends what a proxy can't know or may
//! not do: every wait for a client has a limit ([`Limits`]), so only a client that moves bytes or a handler at work holds a
//! connection. A client that disconnects takes its request with it: the handler's future is dropped at its next `.await`, so
//! what must be finished regardless belongs in a task of its own.

mod activity;
mod body;
mod connection;
mod connections;
mod limits;
mod socket;
mod watchdog;

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use body::BodyTooSlow;
use connections::Connections;
pub use limits::Limits;

/// The address of the connection's other end, in the extensions of every request. Behind a proxy it is the proxy's.
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
/// Then the server closes the listener and idle connections at once, finishes requests in flight and answers them with
/// `connection: close`, and after [`Limits::shutdown_grace`] cuts what is left. Dropping the returned future cuts everything at
/// once.
///
/// Errors of accepting (such as too few file descriptors) are logged and waited out, never returned.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, shutdown: CancellationToken) -> ServeReport {
    let mut connections = Connections::new(app, limits, shutdown);
    connections.accept_until_shutdown(&listener).await;
    drop(listener);
    connections.finish().await
}
