//! The floor of the HTTP figures: a server on the same HTTP library that always sends the same response.

use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, header::CONTENT_TYPE, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Responds to every request with a JSON text of `body_bytes`, until the process is killed.
pub(crate) fn serve(address: SocketAddr, body_bytes: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let body = Bytes::from(format!("\"{}\"", "x".repeat(body_bytes.saturating_sub(2))));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let body = body.clone();
            let service = service_fn(move |_| {
                let response = Response::builder().header(CONTENT_TYPE, "application/json").body(Full::new(body.clone()));
                async { response }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}
