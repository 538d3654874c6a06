//! An HTTP/1.1 server for an [`axum::Router`], with an accept loop that no slow, silent or greedy client can block permanently.
//!
//! TLS, HTTP/2 and limits per address are left to the proxy in front. This server handles what a proxy can't know or may not do.
//! Every wait for a client has a limit ([`Limits`]), so only a client that transfers bytes or a running handler keeps a connection
//! open. When a client disconnects, the server drops the handler's future at its next `.await`. Work that must be completed
//! regardless belongs in a separate task.

mod activity;
mod app;
mod body;
mod connection;
mod connections;
mod head;
mod limits;
mod socket;
mod watchdog;

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use app::App;
pub use body::BodyTooSlow;
use connections::Connections;
pub use head::is_valid_host;
pub use limits::Limits;

/// The address of the connection's peer, in the extensions of every request. Behind a proxy it is the proxy's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The outcome of [`serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeReport {
    /// Number of connections that were still open after [`Limits::shutdown_grace`] and were aborted.
    pub connections_cut: usize,
}

/// Serves `app` on `listener` until `shutdown` is cancelled.
///
/// A request that is no valid HTTP/1.1 does not reach the router: one that hyper cannot parse, one without a valid `Host`, with a
/// transfer coding other than `chunked`, or with a bare line feed in its head. [`App`] makes the response.
///
/// On shutdown the server closes the listener and idle connections at once. It finishes requests in flight and answers them with
/// `connection: close`. After [`Limits::shutdown_grace`] it aborts the remaining connections. Dropping the returned future aborts
/// all connections at once.
///
/// Accept errors (such as too few file descriptors) are logged and retried, never returned.
pub async fn serve(listener: TcpListener, app: impl Into<App>, limits: Limits, shutdown: CancellationToken) -> ServeReport {
    let mut connections = Connections::new(app.into(), limits, shutdown);
    connections.accept_until_shutdown(&listener).await;
    drop(listener);
    connections.finish().await
}
