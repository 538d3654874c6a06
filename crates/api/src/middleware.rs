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
use http_server::PeerAddr;
use percent_encoding::percent_decode_str;
use services::traced;
use tracing::Instrument;

use crate::{
    App,
    error::{ApiError, Denied},
    extract::bearer_token,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id (the client's own, when it sent a decent one), runs it inside a span of that id, turns a panic into the answer of
/// an internal error, and logs one line.
pub(crate) async fn observe(axum::extract::State(app): axum::extract::State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_decent(id)).cloned().unwrap_or_else(|| new_id(&*app.clock));
    let method = request.method().clone();
    let traceparent = request.headers().get("traceparent").and_then(traceparent);
    let (credentials, uri) = (request.headers().get(&header::AUTHORIZATION).cloned(), request.uri().clone());
    // The route, not the path: ids and signatures stay out of the log.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let peer = request.extensions().get::<PeerAddr>().map(|peer| peer.0.ip());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    async move {
        let answering = async {
            let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            let mut response = answered.unwrap_or_else(|_| {
                tracing::error!("a handler panicked");
                ApiError::Panicked.into_response()
            });
            if let Some(Denied(code)) = response.extensions_mut().remove() {
                note_denied(&app, credentials, uri.path(), &format!("{method} {route}"), code).await;
            }
            response
        };
        let mut response = match traceparent {
            Some(traceparent) => traced(traceparent, answering).await,
            None => answering.await,
        };
        let status = response.status().as_u16();
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(%method, route, status, micros, peer = peer.map(tracing::field::display), "answered");
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
    .instrument(span)
    .await
}

/// What the header says of the request's trace, if it says it as W3C Trace Context has it: `version-trace-parent-flags`, of which
/// neither the trace nor the parent is all zeros.
fn traceparent(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let parts: Vec<_> = text.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return None };
    let is_hex = |part: &str, length| part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_some = |part: &str| part.bytes().any(|byte| byte != b'0');
    let is_valid = is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_some(trace) && is_hex(parent, 16) && is_some(parent);
    (is_valid && is_hex(flags, 2)).then(|| text.to_owned())
}

/// Has the audit log note that somebody wanted what they may not.
async fn note_denied(app: &App, credentials: Option<HeaderValue>, path: &str, wanted: &str, code: &str) {
    let headers = credentials.map(|credentials| (header::AUTHORIZATION, credentials)).into_iter().collect();
    let Ok(token) = bearer_token(&headers) else { return };
    if let Err(error) = app.services.record_denial(token, tenant_in(path), wanted, code).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "a denied access could not be noted");
    }
}

/// The tenant in a path, if there is one.
fn tenant_in(path: &str) -> Option<TenantId> {
    let (_, rest) = path.split_once("/tenants/").or_else(|| path.split_once("/files/"))?;
    percent_decode_str(rest.split('/').next()?).decode_utf8().ok()?.parse().ok()
}

/// Short, and of visible ASCII only: it goes into logs.
fn is_decent(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn new_id(clock: &dyn Clock) -> HeaderValue {
    HeaderValue::try_from(clock.new_uuid().to_string()).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_carried_along() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&HeaderValue::from_static(valid)).as_deref(), Some(valid));
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
        ] {
            assert_eq!(traceparent(&HeaderValue::from_static(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn a_tenant_is_found_in_a_path() {
        let id = "01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a";
        for path in [format!("/api/tenants/{id}"), format!("/api/tenants/{id}/audit"), format!("/api/files/{id}/files")] {
            assert_eq!(tenant_in(&path).map(|id| id.to_string()).as_deref(), Some(id), "{path}");
        }
        assert_eq!(tenant_in(&format!("/api/tenants/%30{}", &id[1..])).map(|id| id.to_string()).as_deref(), Some(id));
        assert_eq!(tenant_in("/api/tenants/none/audit"), None);
        assert_eq!(tenant_in("/health"), None);
    }
}
