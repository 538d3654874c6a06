//! Health pages and the root page.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use domain::TenantId;
use serde::Serialize;
use services::{DependencyStatus, Services};
use utoipa::ToSchema;

use crate::{
    App,
    answer::{Answer, ApiResult},
    extract::{Ids, LoggedIn},
    metrics::Probe,
    query::TenantPath,
};

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

const fn healthy(service: &'static str) -> Answer<HealthOut> {
    Answer::ok("Alive", HealthOut { status: "healthy", service })
}

/// Alive?
///
/// Whether the process answers; asks no dependency.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Answer<HealthOut>)))]
pub(crate) async fn health() -> Answer<HealthOut> {
    healthy("tenantry")
}

/// Auth alive?
///
/// Asks nothing and nobody.
#[utoipa::path(get, path = "/api/auth/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Answer<HealthOut>)))]
pub(crate) async fn auth_health() -> Answer<HealthOut> {
    healthy("auth")
}

/// Users alive?
///
/// Asks nothing and nobody.
#[utoipa::path(get, path = "/api/users/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Answer<HealthOut>)))]
pub(crate) async fn users_health() -> Answer<HealthOut> {
    healthy("users")
}

/// Tenants alive?
///
/// Asks nothing and nobody.
#[utoipa::path(get, path = "/api/tenants/health", tag = "health", security(()), responses((status = 200, description = "Alive", body = Answer<HealthOut>)))]
pub(crate) async fn tenants_health() -> Answer<HealthOut> {
    healthy("tenants")
}

/// Documents of a tenant alive?
///
/// For members: asks the tenant's own database.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/documents/health", tag = "health", params(TenantPath),
    responses((status = 200, description = "Alive", body = Answer<HealthOut>)))]
pub(crate) async fn documents_health(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
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
    responses((status = 200, description = "Ready", body = Answer<ReadinessOut>)))]
pub(crate) async fn ready(State(app): State<App>, State(services): State<Services>) -> Response {
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
pub(crate) fn readiness(needed: &[&DependencyStatus], spared: Option<&DependencyStatus>) -> Response {
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
        return Answer::ok("Ready", ReadinessOut { status: "ready", dependencies }).into_response();
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
#[utoipa::path(get, path = "/", tag = "health", security(()), responses((status = 200, description = "Tenantry", body = Answer<RootOut>)))]
pub(crate) async fn root() -> Answer<RootOut> {
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
    Answer::ok("Tenantry", RootOut { name: "Tenantry", version: env!("CARGO_PKG_VERSION"), paths: paths.into() })
}

/// The specification.
pub(crate) async fn specification(State(app): State<crate::App>) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], app.specification.clone()).into_response()
}
