//! Health endpoints and the service index.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::TenantId;
use futures_util::future::BoxFuture;
use serde::Serialize;
use services::{DependencyStatus, UserServices};
use utoipa::ToSchema;

use crate::{
    App, SPECIFICATION,
    error::ApiError,
    extract::{Authenticated, PathIds},
    operation_errors::{Errors, NotReady},
    preconditions,
    query::TenantPath,
    response::{ApiResult, Response},
};

/// A health check of a dependency outside the services.
pub type Probe = dyn Fn() -> BoxFuture<'static, DependencyStatus> + Send + Sync;

/// The health of a part of the service.
#[derive(Serialize, ToSchema)]
pub(crate) struct HealthOut {
    /// Always `healthy`: an unhealthy service does not answer.
    #[schema(example = "healthy")]
    status: &'static str,
    /// The name of the part.
    #[schema(example = "tenantry")]
    service: &'static str,
}

const fn healthy(service: &'static str) -> Response<HealthOut> {
    Response::ok("Alive", HealthOut { status: "healthy", service })
}

/// Liveness
///
/// Whether the process answers. Checks no dependency.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn health() -> Response<HealthOut> {
    healthy("tenantry")
}

/// Liveness of auth
///
/// Checks no dependency.
#[utoipa::path(get, path = "/api/auth/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn auth_health() -> Response<HealthOut> {
    healthy("auth")
}

/// Liveness of users
///
/// Checks no dependency.
#[utoipa::path(get, path = "/api/users/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn users_health() -> Response<HealthOut> {
    healthy("users")
}

/// Liveness of tenants
///
/// Checks no dependency.
#[utoipa::path(get, path = "/api/tenants/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn tenants_health() -> Response<HealthOut> {
    healthy("tenants")
}

/// Liveness of a tenant's documents
///
/// For members. Checks the tenant's database.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/health", tag = "health", params(TenantPath),
    responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn documents_health(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
) -> ApiResult<HealthOut> {
    services.check_tenant(&caller, tenant_id).await?;
    Ok(healthy("documents"))
}

/// Whether every dependency answers.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReadinessOut {
    /// `ready` or `unavailable`.
    #[schema(example = "ready")]
    status: &'static str,
    /// The state of each dependency: `up` or `down`.
    #[schema(value_type = BTreeMap<String, String>, example = json!({ "database": "up", "storage": "up" }))]
    dependencies: BTreeMap<String, &'static str>,
}

/// Readiness
///
/// Checks every dependency. A 503 response names those that are down. Kafka may be down without a 503: events wait in the outbox.
#[utoipa::path(get, path = "/health/ready", tag = "health", security(()),
    responses((status = 200, description = "Ready", body = Response<ReadinessOut>), Errors<NotReady>))]
pub(crate) async fn ready(State(app): State<App>, State(services): State<UserServices>) -> HttpResponse {
    let (checked, bus) = tokio::join!(services.readiness(), check_bus(app.settings.bus.as_deref()));
    readiness(&checked.iter().collect::<Vec<_>>(), bus.as_ref())
}

/// Checks the bus, if it is one that may be down.
pub(crate) async fn check_bus(probe: Option<&Probe>) -> Option<DependencyStatus> {
    match probe {
        Some(probe) => Some(probe().await),
        None => None,
    }
}

/// The readiness response: 503 if a `required` dependency is down. The `optional` one is only listed.
pub(crate) fn readiness(required: &[&DependencyStatus], optional: Option<&DependencyStatus>) -> HttpResponse {
    let all = || required.iter().copied().chain(optional);
    for dependency in all() {
        if let Some(problem) = &dependency.problem {
            tracing::warn!(dependency = dependency.name, error = problem as &dyn std::error::Error, "a dependency is down");
        }
    }
    let all_up = required.iter().all(|dependency| dependency.problem.is_none());
    let state = |problem: &Option<_>| if problem.is_none() { "up" } else { "down" };
    let dependencies = all().map(|dependency| (dependency.name.clone(), state(&dependency.problem))).collect();
    if all_up {
        return Response::ok("Ready", ReadinessOut { status: "ready", dependencies }).into_response();
    }
    ApiError::NotReady(dependencies).into_response()
}

/// The service's name, version and paths.
#[derive(Serialize, ToSchema)]
pub(crate) struct RootOut {
    #[schema(example = "Tenantry")]
    name: &'static str,
    #[schema(example = "1.0.0")]
    version: &'static str,
    /// Paths by name.
    #[schema(value_type = BTreeMap<String, String>, example = json!({ "documentation": "/docs", "specification": "/openapi.json" }))]
    paths: BTreeMap<&'static str, &'static str>,
}

/// Service index
///
/// The service's name, its version and the paths of its parts.
#[utoipa::path(get, path = "/", tag = "health", security(()), responses((status = 200, description = "Tenantry", body = Response<RootOut>)))]
pub(crate) async fn root(State(app): State<App>) -> Response<RootOut> {
    let paths = [
        ("documentation", "/docs"),
        ("specification", "/openapi.json"),
        ("health", "/health"),
        ("readiness", "/health/ready"),
        ("auth", "/api/auth"),
        ("users", "/api/users"),
        ("tenants", "/api/tenants"),
        ("documents", "/api/tenants/{tenant_id}/documents"),
        ("files", "/api/tenants/{tenant_id}/files"),
        ("demo", "/api/demo/kafka"),
    ];
    let is_served = |(name, _): &(&str, _)| match *name {
        "documentation" | "specification" => !app.settings.hide_docs,
        "demo" => app.settings.demo.is_some(),
        _ => true,
    };
    let paths = paths.into_iter().filter(is_served).collect();
    Response::ok("Tenantry", RootOut { name: "Tenantry", version: env!("CARGO_PKG_VERSION"), paths })
}

/// Serves the OpenAPI specification.
pub(crate) async fn specification(headers: HeaderMap) -> Result<HttpResponse, ApiError> {
    let (text, etag) = &*SPECIFICATION;
    preconditions::conditional(&headers, etag, || ([(header::CONTENT_TYPE, "application/json")], text.clone()))
}
