//! Metrics for operators, on an address of their own: they tell of all tenants at once.

use std::{fmt::Write, sync::Arc};

use axum::{Router, http::header, response::IntoResponse, routing::get};
use services::{ServerConnections, UserServices};

use crate::{
    error::ApiError,
    health::{self, Probe},
};

/// What a process without the API shows of itself: `GET /metrics`, `GET /health`, and `GET /health/ready`, which also asks the
/// probe. Whoever reaches it needs no token.
pub fn worker_router(services: UserServices, probe: Option<Arc<Probe>>) -> Router {
    let ready = services.clone();
    router(services).route("/health", get(health::health)).route(
        "/health/ready",
        get(async move || {
            let (checked, bus) = tokio::join!(ready.readiness(), health::ask(probe.as_deref()));
            health::readiness(&checked.iter().chain(&bus).collect::<Vec<_>>(), None)
        }),
    )
}

/// `GET /metrics`, in the text format of Prometheus (exposition format 0.0.4). Whoever reaches it needs no token.
pub fn router(services: UserServices) -> Router {
    Router::new()
        .route("/metrics", get(async move || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(&services))))
        .fallback(async || ApiError::NoRoute.into_response())
        .method_not_allowed_fallback(async || ApiError::NoMethod)
}

fn text(services: &UserServices) -> String {
    let servers = services.tenant_connections();
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &dyn Fn(&ServerConnections) -> Vec<(String, u64)>| {
        // Writing to a string can't fail.
        let _ok = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for server in &servers {
            for (labels, value) in samples(server) {
                // A server's name is of letters, digits, `-` and `_`: nothing of it needs escaping.
                let _ok = writeln!(text, "{name}{{server=\"{}\"{labels}}} {value}", server.name);
            }
        }
    };
    let one = |value: u64| vec![(String::new(), value)];
    family("tenantry_tenant_connections", "gauge", "Connections to tenants' databases, by what they are doing.", &|server| {
        let connections = server.connections;
        let changing = connections.open.saturating_sub(connections.leased + connections.idle);
        [("leased", connections.leased), ("idle", connections.idle), ("changing", changing)]
            .map(|(state, count)| (format!(",state=\"{state}\""), count as u64))
            .into()
    });
    family("tenantry_tenant_connections_limit", "gauge", "How many there may be (TENANT_CONNECTION_BUDGET).", &|server| {
        one(server.limit as u64)
    });
    family("tenantry_tenant_connection_waiters", "gauge", "Requests that wait for a connection.", &|server| {
        one(server.connections.waiting as u64)
    });
    family("tenantry_tenant_connections_opened_total", "counter", "Connections opened since the start.", &|server| {
        one(server.connections.opened)
    });
    family("tenantry_tenant_connection_evictions_total", "counter", "Connections that took another tenant's place.", &|server| {
        one(server.connections.evictions)
    });
    let _ok = writeln!(
        text,
        "# HELP tenantry_open_tenant_databases Tenants' databases that are held open.\n# TYPE tenantry_open_tenant_databases gauge\n\
         tenantry_open_tenant_databases {}",
        services.open_tenant_databases()
    );
    text
}
