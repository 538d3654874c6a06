//! Middleware around every request: request id, log line, and panic handling.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use domain::Clock;
use futures_util::FutureExt;
use http_server::PeerAddr;
use services::traced;
use tracing::Instrument;

use crate::{
    App, cors,
    error::{ApiError, Denied},
    extract::{bearer_token, tenant_in},
    limits::Report,
};

/// Browsers are to use TLS only, for a year (RFC 6797).
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id (the client's own, if it is valid) and runs it inside a span with that id. Turns a panic into an
/// internal error, and logs one line per request.
pub(crate) async fn observe(axum::extract::State(app): axum::extract::State<App>, mut request: Request, next: Next) -> Response {
    let report = app.limiters.as_ref().map(|_| Report::default());
    if let Some(report) = &report {
        request.extensions_mut().insert(report.clone());
    }
    let began = Instant::now();
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_valid_request_id(id)).cloned().unwrap_or_else(|| new_id(&*app.clock));
    let method = request.method().clone();
    let traceparent = request.headers().get("traceparent").and_then(traceparent);
    let (credentials, uri) = (request.headers().get(&header::AUTHORIZATION).cloned(), request.uri().clone());
    // The route, not the path: ids and signatures stay out of the log.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let preflight = cors::preflight_origin(&method, request.headers());
    let peer = request.extensions().get::<PeerAddr>().copied();
    let is_behind_tls = app.is_behind_tls(peer, request.headers());
    let peer = peer.map(|peer| peer.0.ip());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    async move {
        let respond = async {
            let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            let mut response = answered.unwrap_or_else(|_| {
                tracing::error!("a handler panicked");
                ApiError::Panicked.into_response()
            });
            if let Some(Denied(code)) = response.extensions_mut().remove() {
                audit_denied(&app, credentials, uri.path(), &format!("{method} {route}"), code).await;
            }
            response
        };
        let mut response = match traceparent {
            Some(traceparent) => traced(traceparent, respond).await,
            None => respond.await,
        };
        let status = response.status().as_u16();
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(%method, route, status, micros, peer = peer.map(tracing::field::display), "answered");
        if let Some(origin) = preflight {
            app.refused_origins.log(origin, response.headers());
        }
        if let Some(report) = report {
            report.add_headers(response.headers_mut());
        }
        response.headers_mut().insert(REQUEST_ID, id);
        protect(response.headers_mut());
        if is_behind_tls {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        response
    }
    .instrument(span)
    .await
}

/// Forbids browsers what no response needs, unless the handler has decided: to guess another type, to run or load anything, to show the
/// response in a frame, to tell other sites the URL, which may be a signed one.
fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// Answers requests that are no valid HTTP, and logs them as others.
pub(crate) fn rejection(clock: Arc<dyn Clock>) -> impl Fn(StatusCode, PeerAddr) -> http::Response<Bytes> {
    move |status, peer| {
        let id = new_id(&*clock);
        let _span = tracing::info_span!("request", id = id.to_str().unwrap_or_default()).entered();
        tracing::info!(status = status.as_u16(), peer = %peer.0.ip(), "rejected");
        let mut response = ApiError::Rejected(status).to_bytes();
        response.headers_mut().insert(REQUEST_ID, id);
        protect(response.headers_mut());
        response
    }
}

/// The value of a `traceparent` header, if it is valid by W3C Trace Context: `version-trace-parent-flags`, where neither the
/// trace nor the parent is all zeros.
fn traceparent(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let parts: Vec<_> = text.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return None };
    let is_hex = |part: &str, length| part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_some = |part: &str| part.bytes().any(|byte| byte != b'0');
    let is_valid = is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_some(trace) && is_hex(parent, 16) && is_some(parent);
    (is_valid && is_hex(flags, 2)).then(|| text.to_owned())
}

/// Records a denied request in the audit log.
async fn audit_denied(app: &App, credentials: Option<HeaderValue>, path: &str, operation: &str, code: &str) {
    let headers = credentials.map(|credentials| (header::AUTHORIZATION, credentials)).into_iter().collect();
    let Ok(token) = bearer_token(&headers) else { return };
    if let Err(error) = app.services.record_denial(token, tenant_in(path), operation, code).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot record a denied request in the audit log");
    }
}

/// Requires 1 to 128 visible ASCII characters, because the id goes into logs.
fn is_valid_request_id(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn new_id(clock: &dyn Clock) -> HeaderValue {
    HeaderValue::try_from(clock.new_uuid().to_string()).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_propagated() {
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
