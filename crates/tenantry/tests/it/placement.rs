//! The placement of tenant databases on several servers.

use std::{collections::BTreeMap, fs};

use models::tenants;
use serde_json::json;

use crate::process::{CommandOutput, Home};

#[expect(clippy::disallowed_methods, reason = "the environment of a test run names its servers")]
fn service(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

/// A PostgreSQL server beside that of the main database, if the test run uses PostgreSQL.
pub(crate) fn second_postgres(home: &Home) -> Option<String> {
    let second = if home.is_sqlite() { None } else { service("TEST_SECOND_DATABASE_URL") };
    assert!(home.is_sqlite() || second.is_some(), "TEST_DATABASE_URL alone will not do: scripts/services.sh env");
    second
}

/// Two servers: the usual one, and one that is unavailable while a file is in place of its folder.
fn two_servers(home: &Home) -> String {
    let usual = match home.databases().environment().first() {
        Some((_, url)) if !home.is_sqlite() => url.clone(),
        _ => format!("sqlite:{}", home.path().join("tenants").display()),
    };
    format!("away=sqlite:{},main={usual}", home.path().join("away").display())
}

async fn tenants_by_server(home: &Home) -> BTreeMap<String, u64> {
    let (main, _) = home.databases().open();
    tenants::count_by_server(&mut main.read().await.unwrap()).await.unwrap().into_iter().collect()
}

#[tokio::test]
async fn a_new_tenant_goes_to_the_server_with_the_fewest() {
    let home = Home::new();
    let servers = two_servers(&home);
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.user("alice").await;
    for n in 0..6 {
        let tenant = alice.creates_tenant(&format!("Acme {n}")).await;
        alice.uploads(&tenant, "a.txt", "a").await.expect(201);
    }
    assert_eq!(tenants_by_server(&home).await, BTreeMap::from([("away".to_owned(), 3), ("main".to_owned(), 3)]));
    server.stop().await;
    home.remove_tenants_on("away").await;
}

#[tokio::test]
async fn an_unavailable_server_is_skipped_and_affects_no_other() {
    let home = Home::new();
    let servers = two_servers(&home);
    let blocked = home.path().join("away");
    fs::write(&blocked, "").unwrap();
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.user("alice").await;
    let mut created = Vec::new();
    for n in 0..3 {
        created.push(alice.creates_tenant(&format!("Acme {n}")).await);
    }
    for tenant in &created {
        alice.uploads(tenant, "a.txt", "a").await.expect(201);
    }
    assert_eq!(alice.get("/api/tenants").await.expect(200).json["data"]["pagination"]["total"], 3, "no partly created tenant is shown");
    let ready = server.stranger().get("/health/ready").await.expect_error(503, "not_ready");
    assert_eq!(ready.json["error"]["details"]["tenant databases (away)"], "down", "{}", ready.json);
    server.stop().await;

    // Without any available server.
    let unavailable = format!("away=sqlite:{}", blocked.display());
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &unavailable)]).await;
    let alice = server.known(&alice);
    alice.post("/api/tenants", &json!({ "name": "Nowhere" })).await.expect_error(503, "service_unavailable");
    alice.get(&format!("/api/tenants/{}/documents", created[0])).await.expect_error(503, "service_unavailable");
    alice.get("/api/users/me").await.expect(200);
    server.stop().await;

    // The server is back: interrupted creations are resumed, and it accepts tenants again.
    fs::remove_file(&blocked).unwrap();
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.known(&alice);
    alice.creates_tenant("Acme 3").await;
    assert_eq!(tenants_by_server(&home).await.get("away"), Some(&1));
    server.stop().await;
    home.remove_tenants_on("away").await;
    home.assert_consistent().await;
}

#[tokio::test]
async fn tenants_are_on_two_postgresql_servers() {
    let home = Home::new();
    let Some(second) = second_postgres(&home) else { return };
    let (_, first) = home.databases().environment().remove(0);
    let servers = format!("main={first},second={second}");
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.user("alice").await;
    let mut created = Vec::new();
    for n in 0..6 {
        created.push(alice.creates_tenant(&format!("Acme {n}")).await);
    }
    assert_eq!(tenants_by_server(&home).await, BTreeMap::from([("main".to_owned(), 3), ("second".to_owned(), 3)]));
    for tenant in &created {
        alice.uploads(tenant, "a.txt", tenant.as_str()).await.expect(201);
        assert_eq!(alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).items().len(), 1);
    }
    let on = |variables: &str, arguments: &[&str]| CommandOutput::of(home.command(arguments).env("TENANT_DATABASE_URLS", variables));
    let shown = on(&servers, &["tenants", "show", "Acme 1"]).expect(0).out;
    assert!(shown.contains("server          second") || shown.contains("server          main"), "{shown}");
    server.stop().await;

    // One server is unavailable: only its tenants are affected, and new ones go to the other.
    let half = format!("main={first},second=postgres://postgres@127.0.0.1:1/postgres");
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &half)]).await;
    let alice = server.known(&alice);
    let mut down = 0;
    for tenant in &created {
        let reply = alice.get(&format!("/api/tenants/{tenant}/documents")).await;
        down += usize::from(reply.status == 503);
        assert!(reply.status == 200 || reply.code() == "service_unavailable", "{reply:?}");
    }
    assert_eq!(down, 3);
    alice.creates_tenant("Acme 6").await;
    assert_eq!(tenants_by_server(&home).await["main"], 4);
    server.stop().await;
    for (n, tenant) in created.iter().enumerate() {
        on(&servers, &["tenants", "delete", tenant, "--hard", "--confirm", &format!("Acme {n}")]).expect(0);
    }
}

#[tokio::test]
async fn a_connection_pooler_is_refused() {
    let home = Home::new();
    if home.is_sqlite() {
        return;
    }
    let pooler = service("TEST_PGBOUNCER_URL").expect("TEST_DATABASE_URL alone will not do: scripts/services.sh env");
    let checked = CommandOutput::of(home.command(["check"]).env("TENANT_DATABASE_URLS", format!("main={pooler}"))).expect(1).out;
    assert!(checked.contains("tenant databases (main): DOWN") && checked.contains("a pooler such as PgBouncer is in between"), "{checked}");
    // A pooler would bypass the settings that make writes durable.
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &format!("main={pooler}"))]).await;
    let alice = server.user("alice").await;
    alice.post("/api/tenants", &json!({ "name": "Acme" })).await.expect_error(503, "service_unavailable");
    server.stop().await;
    let mut tx = home.databases().open().0.begin().await.unwrap();
    tx.execute("DELETE FROM tenants", Vec::new()).await.unwrap();
    tx.commit().await.unwrap();
}
