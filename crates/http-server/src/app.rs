//! What a server serves.

use std::{fmt, net::IpAddr, sync::Arc};

use axum::Router;
use bytes::Bytes;
use http::{Response, StatusCode};

use crate::PeerAddr;

/// Makes the response to a request that does not reach the router.
type Rejection = Arc<dyn Fn(StatusCode, PeerAddr) -> Response<Bytes> + Send + Sync>;

/// A router, and the form of the responses to requests that do not reach it because they are no valid HTTP/1.1.
#[derive(Clone)]
pub struct App {
    pub(crate) router: Router,
    rejection: Rejection,
    is_proxy: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

impl App {
    /// Answers rejected requests with `rejection`. It gets the status: 400, 414, 431 or 501. It runs on the connection's task, so it
    /// must not block.
    #[must_use]
    pub fn new(router: Router, rejection: impl Fn(StatusCode, PeerAddr) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        // Prepares the router once; otherwise every call would.
        Self { router: router.with_state(()), rejection: Arc::new(rejection), is_proxy: Arc::new(|_| false) }
    }

    /// Names the addresses of proxies, whose connections are those of many clients.
    #[must_use]
    pub fn with_proxies(mut self, is_proxy: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.is_proxy = Arc::new(is_proxy);
        self
    }

    pub(crate) fn is_proxy(&self, address: IpAddr) -> bool {
        (self.is_proxy)(address)
    }

    pub(crate) fn reject(&self, status: StatusCode, peer: PeerAddr) -> Response<Bytes> {
        let mut response = (self.rejection)(status, peer);
        *response.status_mut() = status;
        response
    }
}

/// Answers rejected requests with their status and no body.
impl From<Router> for App {
    fn from(router: Router) -> Self {
        Self::new(router, |_, _| Response::default())
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}
