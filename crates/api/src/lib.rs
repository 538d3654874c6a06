//! The REST API: one file per resource, wire types beside their handlers. The table of contents is `routes.rs`.

mod accounts;
mod documents;
mod error;
mod events;
mod extract;
mod health;
pub mod metrics;
mod middleware;
mod openapi;
mod operation_errors;
mod query;
mod response;
mod routes;
mod schemas;
mod tenants;

use std::{
    ops::Deref,
    sync::{Arc, LazyLock},
};

pub use axum::Router;
use axum::{
    extract::FromRef,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::{from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing,
};
use bytes::Bytes;
use domain::Clock;
use services::{DemoBus, UserServices};
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

pub use crate::health::Probe;
use crate::{
    documents::{files, objects, tus},
    error::ApiError,
    routes::{routes, upload_routes},
};

/// The largest body that is read into memory, in bytes: every body except uploads.
pub(crate) const MAX_JSON_BYTES: usize = 64 * 1024;

/// Settings of the HTTP layer.
#[derive(Clone, Default)]
pub struct Settings {
    /// The public URL of the API, without a trailing slash. Absent: derived from the request's `Host` header.
    pub public_url: Option<String>,
    /// Allowed CORS origins; `*` for any.
    pub cors_origins: Vec<String>,
    /// Whether browsers may send credentials from these origins.
    pub cors_allow_credentials: bool,
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

    /// The configured public URL, or else the URL of the request's `Host` header.
    fn base_url(&self, headers: &HeaderMap) -> String {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(|host| format!("http://{host}"));
        self.settings.public_url.clone().or(host).unwrap_or_default()
    }
}

/// The specification as served to clients. Built at the first request, so that startup does not wait for it.
pub(crate) static SPECIFICATION: LazyLock<Bytes> = LazyLock::new(|| specification().into());

/// The OpenAPI 3.1 specification of the API, checked in as `openapi.json`.
#[must_use]
pub fn specification() -> String {
    let specification =
        routes().merge(upload_routes(0)).routes(routes!(objects::download_object)).routes(routes!(objects::upload_part)).into_openapi();
    format!("{:#}\n", openapi::complete(&specification))
}

/// Builds the API's router on top of the services.
pub fn router(services: UserServices, clock: Arc<dyn Clock>, settings: Settings) -> Router {
    let cors = cors(&settings);
    let upload_limit = services.settings().max_upload_bytes;
    let app = App(Arc::new(Shared { services, clock, settings }));
    let (router, _) = routes().merge(upload_routes(upload_limit)).split_for_parts();
    let swagger = SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"));
    let swagger = Router::from(swagger).layer(map_response(as_api_error));
    let router = router
        // The paths of the original plan.
        .route("/api/files/{tenant_id}/files", routing::get(files::list_files))
        .route("/api/files/{tenant_id}/files/{file_id}", routing::get(files::get_file).delete(files::delete_file))
        // Axum and OpenAPI use different syntax for wildcard path segments.
        .route("/api/objects/{*key}", routing::get(objects::download_object))
        .route("/api/objects/parts/{tenant_id}/{upload_id}/{number}", routing::put(objects::upload_part))
        .route("/openapi.json", routing::get(health::specification))
        .merge(swagger)
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::NoMethod);
    // A layer costs every request something, so it is added only when needed.
    let router = match cors {
        Some(cors) => router.layer(cors).layer(from_fn_with_state(app.clone(), tus::add_tus_to_cors)),
        None => router,
    };
    router.layer(from_fn_with_state(app.clone(), middleware::observe)).with_state(app)
}

/// Gives the client errors of Swagger UI's handlers the API's error form.
async fn as_api_error(response: Response) -> Response {
    if response.status().is_client_error() { ApiError::NoRoute.into_response() } else { response }
}

/// The CORS layer, if any origins are allowed.
fn cors(settings: &Settings) -> Option<CorsLayer> {
    if settings.cors_origins.is_empty() {
        return None;
    }
    let origins = if settings.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(settings.cors_origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_credentials(settings.cors_allow_credentials)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(
            [header::AUTHORIZATION, header::CONTENT_TYPE, header::RANGE, header::IF_NONE_MATCH, header::IF_MATCH]
                .into_iter()
                .chain(
                    ["idempotency-key", "traceparent", "x-request-id"].into_iter().chain(tus::REQUEST_HEADERS).map(HeaderName::from_static),
                )
                .collect::<Vec<_>>(),
        )
        .expose_headers(
            [header::ETAG, header::CONTENT_RANGE, header::RETRY_AFTER, header::LOCATION, header::CONTENT_LOCATION]
                .into_iter()
                .chain(["x-request-id"].into_iter().chain(tus::RESPONSE_HEADERS).map(HeaderName::from_static))
                .collect::<Vec<_>>(),
        );
    Some(layer)
}
