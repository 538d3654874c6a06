//! The REST API: one file per resource, wire types beside their handlers. The table of contents is `routes.rs`.

mod accounts;
mod client;
mod cors;
mod documents;
mod error;
mod events;
mod extract;
mod health;
mod limits;
pub mod metrics;
mod middleware;
mod openapi;
mod operation_errors;
mod preconditions;
mod query;
mod response;
mod routes;
mod schemas;
mod tenants;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::{Arc, LazyLock, atomic::AtomicBool},
};

pub use axum::Router;
use axum::{
    extract::{FromRef, Request},
    http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri, Version, header},
    middleware::{from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing,
};
use bytes::Bytes;
use domain::Clock;
use services::{DemoBus, UserServices};
use tower::util::MapRequest;
use tower_http::compression::{
    CompressionLayer,
    predicate::{Predicate, SizeAbove},
};
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

pub use crate::{
    client::TrustedProxies,
    cors::{Cors, Origins},
    health::Probe,
    limits::{Rate, RateLimits},
};
use crate::{
    cors::RefusedOrigins,
    documents::{files, objects, tus},
    error::ApiError,
    limits::Limiters,
    routes::routes,
};

/// The largest body that is read into memory, in bytes: every body except uploads.
pub(crate) const MAX_JSON_BYTES: usize = 64 * 1024;

/// The smallest JSON response that is compressed. Tokens are in smaller ones only, so that their length tells nothing of them.
const MIN_COMPRESSED_BYTES: u64 = 16 * 1024;

/// Settings of the HTTP layer.
#[derive(Clone, Default)]
pub struct Settings {
    /// The public URL of the API, without a trailing slash. Absent: derived from the request.
    pub public_url: Option<String>,
    /// Whether `/docs` and `/openapi.json` are left out.
    pub hide_docs: bool,
    /// The limits of requests. Absent: none.
    pub rate_limits: Option<RateLimits>,
    /// The proxies in front of the API.
    pub trusted_proxies: TrustedProxies,
    /// The web sites whose pages may call the API.
    pub cors: Cors,
    /// Health check of the event bus, where the bus is another process.
    pub bus: Option<Arc<Probe>>,
    /// The bus of the demo routes. Absent: the demo routes answer 404.
    pub demo: Option<Arc<dyn DemoBus>>,
}

/// State shared by all handlers. Cloned several times for each request, so it is one pointer.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    services: UserServices,
    clock: Arc<dyn Clock>,
    settings: Settings,
    refused_origins: RefusedOrigins,
    limiters: Option<Limiters>,
    /// Whether the log has said that there is a proxy which is not trusted.
    warned_of_proxy: AtomicBool,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl FromRef<App> for UserServices {
    fn from_ref(app: &App) -> Self {
        app.services.clone()
    }
}

impl App {
    /// The configured public URL, without a trailing slash; empty if none is configured.
    fn public_url(&self) -> String {
        self.settings.public_url.clone().unwrap_or_default()
    }
}

/// The specification as served to clients, and its entity tag. Built at the first request, so that startup does not wait for it.
pub(crate) static SPECIFICATION: LazyLock<(Bytes, String)> = LazyLock::new(|| {
    let text = specification();
    // Weak, since it also identifies the compressed form.
    let etag = format!("W/\"{:x}\"", hash(&text));
    (text.into(), etag)
});

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The OpenAPI 3.1 specification of the API, checked in as `openapi.json`.
#[must_use]
pub fn specification() -> String {
    let specification = routes().routes(routes!(objects::download_object)).routes(routes!(objects::upload_part)).into_openapi();
    format!("{:#}\n", openapi::complete(&specification))
}

/// Builds the API on top of the services.
pub fn app(services: UserServices, clock: Arc<dyn Clock>, settings: Settings) -> http_server::App {
    let (rejection, proxies) = (middleware::rejection(Arc::clone(&clock)), settings.trusted_proxies.clone());
    let path = settings.public_url.as_deref().and_then(path_of).unwrap_or_default();
    let router = router(services, clock, settings);
    let router = if path.is_empty() { router } else { below(path, router) };
    http_server::App::new(router, rejection).with_proxies(move |address| proxies.contains(address))
}

/// The path of a URL, without a trailing slash.
fn path_of(url: &str) -> Option<String> {
    Some(url.parse::<Uri>().ok()?.path().trim_end_matches('/').to_owned())
}

/// The router, also below a path: a proxy may forward it or remove it.
fn below(path: String, router: Router) -> Router {
    let remove = move |mut request: Request| {
        let rest = request.uri().path_and_query().and_then(|whole| whole.as_str().strip_prefix(&path));
        let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with(['/', '?'])).map(|rest| rest.trim_start_matches('/'));
        if let Some(uri) = rest.and_then(|rest| format!("/{rest}").parse().ok()) {
            *request.uri_mut() = uri;
        }
        request
    };
    Router::new().fallback_service(MapRequest::new(router, remove))
}

fn router(services: UserServices, clock: Arc<dyn Clock>, settings: Settings) -> Router {
    let cors = cors::layer(&settings.cors);
    let limiters = settings.rate_limits.as_ref().map(Limiters::new);
    let app = App(Arc::new(Shared {
        services,
        clock,
        settings,
        refused_origins: RefusedOrigins::default(),
        limiters,
        warned_of_proxy: AtomicBool::default(),
    }));
    let hide_docs = app.settings.hide_docs;
    let (router, _) = routes().split_for_parts();
    // Not the objects: they are sent as they are stored, in ranges, too.
    let compression = CompressionLayer::new().gzip(true).compress_when(SizeAbove::new(MIN_COMPRESSED_BYTES).and(is_json));
    let router = if hide_docs { router } else { router.route("/openapi.json", routing::get(health::specification)) };
    let router = router.layer(compression);
    // Relative URLs, so that the page also works below the path of a public URL.
    let swagger = utoipa_swagger_ui::Config::from("../openapi.json").validator_url("none").persist_authorization(true);
    let swagger = Router::from(SwaggerUi::new("/docs").config(swagger)).layer(map_response(adapt_swagger));
    let router = router
        // The paths of the original plan.
        .route("/api/files/{tenant_id}/files", routing::get(files::list_files))
        .route("/api/files/{tenant_id}/files/{file_id}", routing::get(files::get_file).delete(files::delete_file))
        // Axum and OpenAPI use different syntax for wildcard path segments.
        .route("/api/objects/{*key}", routing::get(objects::download_object))
        .route("/api/objects/parts/{tenant_id}/{upload_id}/{number}", routing::put(objects::upload_part))
        .merge(if hide_docs { Router::new() } else { swagger })
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::NoMethod);
    // A layer costs every request something, so it is added only when needed.
    let router = match cors {
        Some(cors) => router.layer(cors).layer(from_fn_with_state(app.clone(), tus::add_tus_to_cors)),
        None => router,
    };
    router.layer(from_fn_with_state(app.clone(), middleware::observe)).with_state(app)
}

/// Whether a response is JSON, for the compression layer.
fn is_json(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json")
}

/// Gives the client errors of Swagger UI's handlers the API's error form, and makes its redirect relative.
async fn adapt_swagger(mut response: Response) -> Response {
    if response.status().is_client_error() {
        return ApiError::NoRoute.into_response();
    }
    // The page loads its own scripts and styles, and calls the server that its user chooses.
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("frame-ancestors 'none'"));
    if response.headers().contains_key(header::LOCATION) {
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("docs/"));
    }
    response
}
