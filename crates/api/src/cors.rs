//! Cross-origin requests: which pages of other web sites may call the API (Fetch standard, CORS protocol).

use std::{
    collections::HashSet,
    fmt,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
    response::Response,
};
use futures_util::future::Either;
use parking_lot::Mutex;
use tower::{Layer, Service};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::documents::tus;

/// How long a browser may cache the answer to a preflight request: the longest time that Chromium accepts.
const MAX_AGE: Duration = Duration::from_secs(7200);

/// The number of refused origins that are logged.
const MAX_LOGGED_ORIGINS: usize = 100;

/// The web sites whose pages may call the API.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// The origins of the sites.
    pub origins: Origins,
    /// Whether their pages may send cookies and HTTP authentication. Never together with [`Origins::Any`].
    pub allow_credentials: bool,
}

/// A set of origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// Pages on this machine, on any port: what a development server of a front end has.
    Loopback,
    /// These origins, as browsers send them; may be empty.
    Listed(Vec<String>),
}

impl Default for Origins {
    /// None.
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Loopback => f.write_str("any port of localhost"),
            Self::Listed(origins) => f.write_str(&origins.join(",")),
        }
    }
}

/// The layer that answers preflight requests and adds the headers of CORS; none if no origin is allowed.
///
/// Every request header is allowed, since tracing, upload and viewer libraries each add their own. What an origin may do is decided
/// by its token.
pub(crate) fn layer(cors: &Cors) -> Option<CrossOrigin> {
    let origins = match &cors.origins {
        Origins::Any => AllowOrigin::any(),
        Origins::Loopback => AllowOrigin::predicate(|origin, _| is_loopback(origin)),
        Origins::Listed(origins) if origins.is_empty() => return None,
        Origins::Listed(origins) => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok())),
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_credentials(cors.allow_credentials)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(MAX_AGE)
        .expose_headers(exposed_headers());
    Some(CrossOrigin(layer))
}

/// The CORS layer, for requests of pages only: by itself it answers every OPTIONS request, also those that are none of its business.
#[derive(Clone)]
pub(crate) struct CrossOrigin(CorsLayer);

impl<S: Clone> Layer<S> for CrossOrigin {
    type Service = CrossOriginService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CrossOriginService { of_pages: self.0.layer(inner.clone()), others: inner }
    }
}

#[derive(Clone)]
pub(crate) struct CrossOriginService<S> {
    of_pages: tower_http::cors::Cors<S>,
    others: S,
}

impl<S> Service<Request> for CrossOriginService<S>
where
    S: Service<Request, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<<tower_http::cors::Cors<S> as Service<Request>>::Future, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(self.of_pages.poll_ready(cx))?;
        self.others.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if request.method() == Method::OPTIONS && !request.headers().contains_key(header::ORIGIN) {
            Either::Right(self.others.call(request))
        } else {
            Either::Left(self.of_pages.call(request))
        }
    }
}

/// The response headers that scripts may read.
fn exposed_headers() -> Vec<HeaderName> {
    let standard = [
        header::ACCEPT_RANGES,
        header::CONTENT_DISPOSITION,
        header::CONTENT_LOCATION,
        header::CONTENT_RANGE,
        header::ETAG,
        header::LOCATION,
        header::RETRY_AFTER,
        header::WWW_AUTHENTICATE,
    ];
    let others = ["ratelimit", "ratelimit-policy", "x-request-id"].into_iter().chain(tus::RESPONSE_HEADERS);
    standard.into_iter().chain(others.map(HeaderName::from_static)).collect()
}

/// Whether this is the origin of a page on this machine.
fn is_loopback(origin: &HeaderValue) -> bool {
    let uri: Option<Uri> = origin.to_str().ok().and_then(|text| text.parse().ok());
    let Some((uri, host)) = uri.as_ref().and_then(|uri| Some((uri, uri.host()?.to_ascii_lowercase()))) else { return false };
    let is_local = host == "localhost" || host.ends_with(".localhost") || host == "[::1]" || is_ipv4_loopback(&host);
    is_local && matches!(uri.scheme_str(), Some("http" | "https"))
}

fn is_ipv4_loopback(host: &str) -> bool {
    host.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback())
}

/// The origin of a preflight request.
pub(crate) fn preflight_origin(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let is_preflight = *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    headers.get(header::ORIGIN).filter(|_| is_preflight).cloned()
}

/// The origins whose refusal was logged.
#[derive(Default)]
pub(crate) struct RefusedOrigins(Mutex<HashSet<HeaderValue>>);

impl RefusedOrigins {
    /// Logs a refused preflight request, once for each origin: the page's developer sees only that the browser blocked it.
    pub(crate) fn log(&self, origin: HeaderValue, response: &HeaderMap) {
        if response.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            return;
        }
        let mut logged = self.0.lock();
        if logged.len() < MAX_LOGGED_ORIGINS && !logged.contains(&origin) {
            tracing::warn!(?origin, "a page of this origin was refused; to allow it, add it to CORS_ORIGINS");
            logged.insert(origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_on_this_machine_are_local() {
        for local in [
            "http://localhost",
            "http://localhost:5173",
            "https://localhost:8443",
            "http://app.localhost:3000",
            "http://127.0.0.1:8080",
            "http://127.1.2.3",
            "http://[::1]:5173",
            "http://LOCALHOST:1",
        ] {
            assert!(is_loopback(&HeaderValue::from_static(local)), "{local}");
        }
        for other in [
            "null",
            "",
            "localhost",
            "http://localhost.evil.example",
            "http://evillocalhost",
            "http://127.0.0.1.evil.example",
            "http://128.0.0.1",
            "http://user@evil.example",
            "http://localhost@evil.example",
            "file://localhost",
            "http://[::2]",
        ] {
            assert!(!is_loopback(&HeaderValue::from_static(other)), "{other}");
        }
    }
}
