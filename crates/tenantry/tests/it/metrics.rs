//! The metrics endpoint.

use std::collections::BTreeMap;

use reqwest::StatusCode;

use crate::process::{Home, Server, client};

/// The samples, by name and labels.
async fn samples(address: &str) -> BTreeMap<String, u64> {
    let response = client().get(format!("http://{address}/metrics")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

async fn address_in(server: &mut Server) -> String {
    let log = server.wait_for("metrics at", |log| log.contains("/metrics")).await;
    log.split("metrics at http://").nth(1).unwrap().split("/metrics").next().unwrap().to_owned()
}

#[tokio::test]
async fn metrics_of_connections_are_served_on_a_separate_address() {
    let home = Home::new();
    let mut server = home.serve_with(&[("METRICS_ADDRESS", "127.0.0.1:0"), ("TENANT_CONNECTION_BUDGET", "3")]).await;
    let address = address_in(&mut server).await;
    let alice = server.user("alice").await;
    for n in 0..5 {
        let tenant = alice.creates_tenant(&format!("Acme {n}")).await;
        alice.uploads(&tenant, "a.txt", "a").await.expect(201);
    }
    let found = samples(&address).await;
    assert_eq!(found["tenantry_open_tenant_databases"], 5);
    if home.is_sqlite() {
        assert_eq!(found.len(), 1, "{found:?}");
    } else {
        let of = |name: &str| found[&format!("tenantry_{name}")];
        assert_eq!(of("tenant_connections_limit{server=\"main\"}"), 3);
        let states = ["leased", "idle", "changing"].map(|state| of(&format!("tenant_connections{{server=\"main\",state=\"{state}\"}}")));
        assert_eq!(states.iter().sum::<u64>(), 3, "{found:?}");
        assert_eq!(of("tenant_connection_waiters{server=\"main\"}"), 0);
        assert!(of("tenant_connections_opened_total{server=\"main\"}") >= 5, "{found:?}");
        assert!(of("tenant_connection_evictions_total{server=\"main\"}") >= 2, "{found:?}");
    }
    // The API's address has no metrics, and the metrics' address has no API.
    server.stranger().get("/metrics").await.expect_error(404, "not_found");
    for path in ["/", "/health", "/api/tenants"] {
        assert_eq!(client().get(format!("http://{address}{path}")).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    }
    let taken = home.command(["serve"]).env("METRICS_ADDRESS", &address).output().unwrap();
    let error = String::from_utf8(taken.stderr).unwrap();
    assert!(!taken.status.success() && error.contains(&format!("listen on {address} (METRICS_ADDRESS)")), "{error}");
    server.stop().await;
}
