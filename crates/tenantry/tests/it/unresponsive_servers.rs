//! Database servers that accept connections and never respond: only a time-out detects them.

use std::{
    net::ToSocketAddrs,
    time::{Duration, Instant},
};

use serde_json::json;
use testkit::{Behaviour, FaultyProxy};
use url::Url;

use crate::{
    migrations::{Later, available},
    placement::second_postgres,
    process::{CommandOutput, Home},
};

/// A proxy for a PostgreSQL server, and the URL of the server through the proxy.
async fn proxy_for(url: &str) -> (FaultyProxy, String) {
    let mut url = Url::parse(url).unwrap();
    let target = (url.host_str().unwrap(), url.port().unwrap_or(5432)).to_socket_addrs().unwrap().next().unwrap();
    let proxy = FaultyProxy::start(target).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.address().port())).unwrap();
    (proxy, url.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresponsive_server_costs_one_timeout_and_its_tenants_are_postponed() {
    let home = Home::new();
    let Some(second) = second_postgres(&home) else { return };
    let (proxy, second) = proxy_for(&second).await;
    let home = home.with_server("second", &second);
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let mut tenants = Vec::new();
    for n in 0..12 {
        tenants.push(alice.creates_tenant(&format!("Acme {n}")).await);
    }
    let later = Later::new(&home, &["ALTER TABLE documents ADD COLUMN note TEXT;"]);

    proxy.set_and_drop(Behaviour::BlackHole);
    let began = Instant::now();
    let outcome = later.run(&["migrate", "--json"]).expect(1).json();
    let took = began.elapsed();
    let postponed = outcome["postponed"].as_array().unwrap().len();
    assert_eq!((&outcome["migrated"], postponed, &outcome["failed"]), (&json!(6), 6, &json!([])), "{outcome}");
    // Less than a time-out for each of six tenants and each of three attempts.
    assert!(took < Duration::from_secs(40), "{took:?}");
    // No tenant is quarantined, and those on the other server are not affected.
    let responses = futures_util::future::join_all(tenants.iter().map(async |tenant| {
        let began = Instant::now();
        let reply = alice.get(&format!("/api/tenants/{tenant}/documents")).await;
        ((reply.status.as_u16(), reply.code().to_owned()), began.elapsed())
    }));
    let responses = responses.await;
    let (served, refused): (Vec<_>, Vec<_>) = responses.iter().partition(|(response, _)| *response == available());
    assert_eq!((served.len(), refused.len()), (6, 6), "{responses:?}");
    assert!(refused.iter().all(|(response, _)| *response == (503, "service_unavailable".to_owned())), "{responses:?}");
    assert!(served.iter().all(|(_, took)| *took < Duration::from_secs(2)), "{responses:?}");

    proxy.set_and_drop(Behaviour::Pass);
    let outcome = later.run(&["migrate", "--json"]).expect(0).json();
    assert_eq!((&outcome["migrated"], &outcome["up_to_date"]), (&json!(6), &json!(6)), "{outcome}");
    for tenant in &tenants {
        server.responds(&alice, tenant, &available()).await;
    }
    home.stop_and_check(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresponsive_main_database_aborts_a_migration_and_fails_readiness() {
    let home = Home::new();
    if home.is_sqlite() {
        return;
    }
    let (_, main) = home.databases().environment().remove(0);
    let (proxy, through) = proxy_for(&main).await;
    // Tenant databases are reached without the proxy.
    let servers = format!("main={main}");
    let variables = [("DATABASE_URL", through.as_str()), ("TENANT_DATABASE_URLS", servers.as_str())];
    let server = home.serve_with(&variables).await;
    let alice = server.user("alice").await;
    for n in 0..3 {
        alice.creates_tenant(&format!("Acme {n}")).await;
    }
    server.stranger().get("/health/ready").await.expect(200);

    proxy.set_and_drop(Behaviour::BlackHole);
    let began = Instant::now();
    let ready = server.stranger().get("/health/ready").await.expect_error(503, "not_ready");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(ready.json["error"]["details"]["database"], "down", "{}", ready.json);
    server.stranger().get("/health").await.expect(200);
    alice.get("/api/users/me").await.expect_error(503, "service_unavailable");
    // The error concerns the main database, and no tenant.
    let later = Later::new(&home, &["ALTER TABLE documents ADD COLUMN note TEXT;"]);
    let began = Instant::now();
    let mut command = later.command(&["migrate"]);
    let output = CommandOutput::of(command.envs(variables));
    let line = output.error_line(1);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert!(!line.contains("Acme"), "{line}");

    proxy.set_and_drop(Behaviour::Pass);
    let recovered = async {
        while server.stranger().get("/health/ready").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovered).await.expect("ready again without a restart");
    let mut command = later.command(&["migrate", "--json"]);
    assert_eq!(CommandOutput::of(command.envs(variables)).expect(0).json()["migrated"], 3);
    home.stop_and_check(server).await;
}
