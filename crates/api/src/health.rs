//! Health pages and the root page.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
};
use domain::TenantId;
use futures_util::future::BoxFuture;
use serde::Serialize;
use services::{DependencyStatus, UserServices};
use utoipa::ToSchema;

use crate::{
    App,
    extract::{Authenticated, PathIds},
    operation_errors::{Errors, NotReady},
    query::TenantPath,
    response::{ApiResult, Response},
};

/// Asks something else than what the services rest on whether it is there.
pub type Probe = dyn Fn() -> BoxFuture<'static, DependencyStatus> + Send + Sync;

/// A part of the service.
#[derive(Serialize, ToSchema)]
pub(crate) struct HealthOut {
    /// Always `healthy`: a service that is not would not answer.
    #[schema(example = "healthy")]
    status: &'static str,
    /// Which part.
    #[schema(example = "tenantry")]
    service: &'static str,
}

const fn healthy(service: &'static str) -> Response<HealthOut> {
    Response::ok("Alive", HealthOut { status: "healthy", service })
}

/// Alive?
///
/// Whether the process answers; asks no dependency.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn health() -> Response<HealthOut> {
    healthy("tenantry")
}

/// Auth alive?
///
/// Asks nothing and nobody.
#[utoipa::path(get, path = "/api/auth/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn auth_health() -> Response<HealthOut> {
    healthy("auth")
}

/// Users alive?
///
/// Asks nothing and nobody.
#[utoipa::path(get, path = "/api/users/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn users_health() -> Response<HealthOut> {
    healthy("users")
}

/// Tenants alive?
///
/// Asks nothing and nobody.
#[utoipa::path(get, path = "/api/tenants/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Response<HealthOut>)))]
pub(crate) async fn tenants_health() -> Response<HealthOut> {
    healthy("tenants")
}

/// Documents of a tenant alive?
///
/// For members: asks the tenant's own database.
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
    /// `up` or `down`, by dependency.
    #[schema(value_type = BTreeMap<String, String>, example = json!({ "database": "up", "storage": "up" }))]
    dependencies: BTreeMap<String, &'static str>,
}

/// Ready?
///
/// Asks every dependency. 503 says which one is down. Kafka may be: events wait for it.
#[utoipa::path(get, path = "/health/ready", tag = "health", security(()),
    responses((status = 200, description = "Ready", body = Response<ReadinessOut>), Errors<NotReady>))]
pub(crate) async fn ready(State(app): State<App>, State(services): State<UserServices>) -> HttpResponse {
    let (checked, bus) = tokio::join!(services.readiness(), ask(app.settings.bus.as_deref()));
    readiness(&checked.iter().collect::<Vec<_>>(), bus.as_ref())
}

/// The bus, if it is one that may be down.
pub(crate) async fn ask(probe: Option<&Probe>) -> Option<DependencyStatus> {
    match probe {
        Some(probe) => Some(probe().await),
        None => None,
    }
}

/// The answer to who asks whether all that is needed is there, and how it is with what can be done without for a time.
pub(crate) fn readiness(needed: &[&DependencyStatus], spared: Option<&DependencyStatus>) -> HttpResponse {
    let all = || needed.iter().copied().chain(spared);
    for dependency in all() {
        if let Some(problem) = &dependency.problem {
            tracing::warn!(dependency = dependency.name, error = problem as &dyn std::error::Error, "a dependency is down");
        }
    }
    let all_up = needed.iter().all(|dependency| dependency.problem.is_none());
    let state = |problem: &Option<_>| if problem.is_none() { "up" } else { "down" };
    let dependencies = all().map(|dependency| (dependency.name.clone(), state(&dependency.problem))).collect();
    if all_up {
        return Response::ok("Ready", ReadinessOut { status: "ready", dependencies }).into_response();
    }
    crate::error::ApiError::NotReady(dependencies).into_response()
}

/// What this is and where things are.
#[derive(Serialize, ToSchema)]
pub(crate) struct RootOut {
    #[schema(example = "Tenantry")]
    name: &'static str,
    #[schema(example = "1.0.0")]
    version: &'static str,
    /// Paths by what is there.
    #[schema(value_type = BTreeMap<String, String>, example = json!({ "documentation": "/docs", "specification": "/openapi.json" }))]
    paths: BTreeMap<&'static str, &'static str>,
}

/// What this is
///
/// And where things are.
#[utoipa::path(get, path = "/", tag = "health", security(()), responses((status = 200, description = "Tenantry", body = Response<RootOut>)))]
pub(crate) async fn root() -> Response<RootOut> {
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
    Response::ok("Tenantry", RootOut { name: "Tenantry", version: env!("CARGO_PKG_VERSION"), paths: paths.into() })
}

/// The specification.
pub(crate) async fn specification() -> HttpResponse {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], crate::SPECIFICATION.clone()).into_response()
}
