//! One connection: hyper on the socket, with a watchdog.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc};

use axum::body::Body;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::{
    App, Limits, PeerAddr,
    activity::Activity,
    body::{RequestBody, ResponseBody},
    head,
    socket::Socket,
    watchdog::Watchdog,
};

/// The minimum buffer size that hyper accepts.
const MIN_BUFFER_BYTES: usize = 8 * 1024;

/// Serves a connection to its end.
pub(crate) async fn run(stream: TcpStream, peer: PeerAddr, app: App, limits: Arc<Limits>, activity: Arc<Activity>) {
    // Small responses must not wait for the acknowledgement of earlier ones (Nagle's algorithm).
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!(peer = %peer.0, %error, "connection closed before it was served");
    }
    let service = service_fn(|request| {
        activity.begin_request();
        respond(app.clone(), request, peer, Arc::clone(&limits), Arc::clone(&activity))
    });
    let socket = TokioIo::new(Socket::new(stream, peer, app.clone(), Arc::clone(&activity)));
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
                return tracing::debug!(peer = %peer.0, ?wait, "client timed out, connection closed");
            }
        }
    }
}

/// Configures HTTP/1.1 with the limits.
fn protocol(limits: &Limits) -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        // hyper's own timer can't tell a slow header section from an idle connection, and hyper creates one for every request.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.buffer_bytes.max(MIN_BUFFER_BYTES));
    protocol
}

/// Calls the app with a request, with bodies that report to `activity`.
async fn respond(
    app: App,
    request: Request<Incoming>,
    peer: PeerAddr,
    limits: Arc<Limits>,
    activity: Arc<Activity>,
) -> Result<Response<ResponseBody>, Infallible> {
    let problem = head::problem(&request);
    let mut request = request.map(|body| RequestBody::wrap(body, limits, &activity));
    request.extensions_mut().insert(peer);
    let mut response = match problem {
        Some(status) => reject(&app, status, peer, &request),
        None => app.router.clone().call(request).await?,
    };
    if activity.is_body_unread() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| ResponseBody::new(body, activity)))
}

/// Answers a request that must not reach the router, and closes the connection: what follows on it can't be trusted.
fn reject(app: &App, status: StatusCode, peer: PeerAddr, rejected: &Request<Body>) -> Response<Body> {
    let mut response = app.reject(status, peer);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    if rejected.method() == Method::HEAD { response.map(|_| Body::empty()) } else { response.map(Body::from) }
}
