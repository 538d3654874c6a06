//! What surrounds every request: its id, its log line, and a net for panics.

use std::{panic::AssertUnwindSafe, time::Instant};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use domain::{Clock, TenantId};
use futures_util::FutureExt;
use tracing::Instrument;

use crate::{
    App,
    error::{ApiError, Denied},
    server::PeerAddr,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id (the client's own, when it sent a decent one), runs it inside a span of that id, turns a panic into the answer of
/// an internal error, and logs one line.
pub(crate) async fn observe(axum::extract::State(app): axum::extract::State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_decent(id)).cloned().unwrap_or_else(|| new_id(&*app.clock));
    let method = request.method().clone();
    let (credentials, uri) = (request.headers().get(&header::AUTHORIZATION).cloned(), request.uri().clone());
    // The route, not the path: ids and signatures stay out of the log.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let peer = request.extensions().get::<PeerAddr>().map(|peer| peer.0.ip());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    async move {
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let mut response = answered.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            ApiError::Panicked.into_response()
        });
        if let Some(Denied(code)) = response.extensions_mut().remove() {
            let token = credentials.as_ref().and_then(|credentials| credentials.to_str().ok()?.split_once(' '));
            let noted =
                app.services.note_denied(token.map(|(_, token)| token), tenant_in(uri.path()), &format!("{method} {route}"), code).await;
            if let Err(error) = noted {
                tracing::warn!(error = &error as &dyn std::error::Error, "a denied access could not be noted");
            }
        }
        let status = response.status().as_u16();
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(%method, route, status, micros, peer = peer.map(tracing::field::display), "answered");
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
    .instrument(span)
    .await
}

/// The tenant in a path, if there is one.
fn tenant_in(path: &str) -> Option<TenantId> {
    let (_, rest) = path.split_once("/tenants/").or_else(|| path.split_once("/files/"))?;
    rest.split('/').next()?.parse().ok()
}

/// Short, and of visible ASCII only: it goes into logs.
fn is_decent(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn new_id(clock: &dyn Clock) -> HeaderValue {
    HeaderValue::try_from(clock.new_uuid().to_string()).unwrap_or(HeaderValue::from_static("-"))
}
