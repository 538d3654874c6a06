//! One connection: hyper on the socket, and a watchdog beside it.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc};

use axum::Router;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::{
    Limits, PeerAddr,
    activity::Activity,
    body::{RequestBody, ResponseBody},
    socket::Socket,
    watchdog::Watchdog,
};

/// The least that hyper accepts for its buffers.
const MIN_BUFFER_BYTES: usize = 8 * 1024;

/// Serves a connection to its end.
pub(crate) async fn run(stream: TcpStream, peer: PeerAddr, app: Router, limits: Arc<Limits>, activity: Arc<Activity>) {
    // Small answers must not wait for the acknowledgement of earlier ones (Nagle's algorithm).
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!(peer = %peer.0, %error, "connection was gone before it began");
    }
    let service = service_fn(|request| {
        activity.begin_request();
        answer(app.clone(), request, peer, Arc::clone(&limits), Arc::clone(&activity))
    });
    let socket = TokioIo::new(Socket::new(stream, Arc::clone(&activity)));
    let mut connection = pin!(protocol(&limits).serve_connection(socket, service));
    let mut retired = pin!(activity.retired().fuse());
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

/// HTTP/1.1 within the limits.
fn protocol(limits: &Limits) -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        // hyper's own timer can't tell a slow header section from an idle connection, and is made anew for every request.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.buffer_bytes.max(MIN_BUFFER_BYTES));
    protocol
}

/// Has the app answer a request, with bodies that report to `activity`.
async fn answer(
    mut app: Router,
    request: Request<Incoming>,
    peer: PeerAddr,
    limits: Arc<Limits>,
    activity: Arc<Activity>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut request = request.map(|body| RequestBody::wrap(body, limits, &activity));
    request.extensions_mut().insert(peer);
    let mut response = app.call(request).await?;
    if activity.is_body_unread() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| ResponseBody::new(body, activity)))
}
