//! Tenants' databases on several servers.

use std::{collections::BTreeMap, fs};

use models::tenants;
use serde_json::json;

use crate::process::{Home, Ran};

#[expect(clippy::disallowed_methods, reason = "which servers a test run uses is the environment's to say")]
fn service(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

/// A PostgreSQL server beside the one of the main database, where the test run has one.
pub(crate) fn second_postgres(home: &Home) -> Option<String> {
    let second = if home.is_sqlite() { None } else { service("TEST_SECOND_DATABASE_URL") };
    assert!(home.is_sqlite() || second.is_some(), "TEST_DATABASE_URL alone will not do: scripts/services.sh env");
    second
}

/// Two servers: one that takes no database as long as a file is in the place of its folder, and the usual one.
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
async fn tenants_go_to_the_server_with_the_fewest() {
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
    home.forget_tenants_on("away").await;
}

#[tokio::test]
async fn a_server_that_is_down_is_passed_over_and_harms_no_other() {
    let home = Home::new();
    let servers = two_servers(&home);
    let blocked = home.path().join("away");
    fs::write(&blocked, "").unwrap();
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.user("alice").await;
    let mut made = Vec::new();
    for n in 0..3 {
        made.push(alice.creates_tenant(&format!("Acme {n}")).await);
    }
    for tenant in &made {
        alice.uploads(tenant, "a.txt", "a").await.expect(201);
    }
    assert_eq!(alice.get("/api/tenants").await.expect(200).json["data"]["pagination"]["total"], 3, "nothing half made is shown");
    let ready = server.stranger().get("/health/ready").await.expect_error(503, "not_ready");
    assert_eq!(ready.json["error"]["details"]["tenant databases (away)"], "down", "{}", ready.json);
    server.stop().await;

    // Nowhere at all.
    let nowhere = format!("away=sqlite:{}", blocked.display());
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &nowhere)]).await;
    let alice = server.known(&alice);
    alice.post("/api/tenants", &json!({ "name": "Nowhere" })).await.expect_error(503, "service_unavailable");
    alice.get(&format!("/api/tenants/{}/documents", made[0])).await.expect_error(503, "service_unavailable");
    alice.get("/api/users/me").await.expect(200);
    server.stop().await;

    // It comes back: what was begun there is settled, and it takes tenants again.
    fs::remove_file(&blocked).unwrap();
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.known(&alice);
    alice.creates_tenant("Acme 3").await;
    assert_eq!(tenants_by_server(&home).await.get("away"), Some(&1));
    server.stop().await;
    home.forget_tenants_on("away").await;
    assert_eq!(home.broken().await, Vec::<String>::new());
}

#[tokio::test]
async fn tenants_live_on_two_postgresql_servers() {
    let home = Home::new();
    let Some(second) = second_postgres(&home) else { return };
    let (_, first) = home.databases().environment().remove(0);
    let servers = format!("main={first},second={second}");
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &servers)]).await;
    let alice = server.user("alice").await;
    let mut made = Vec::new();
    for n in 0..6 {
        made.push(alice.creates_tenant(&format!("Acme {n}")).await);
    }
    assert_eq!(tenants_by_server(&home).await, BTreeMap::from([("main".to_owned(), 3), ("second".to_owned(), 3)]));
    for tenant in &made {
        alice.uploads(tenant, "a.txt", tenant.as_str()).await.expect(201);
        assert_eq!(alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).items().len(), 1);
    }
    let on = |variables: &str, arguments: &[&str]| Ran::of(home.command(arguments).env("TENANT_DATABASE_URLS", variables));
    let shown = on(&servers, &["tenants", "show", "Acme 1"]).expect(0).out;
    assert!(shown.contains("server          second") || shown.contains("server          main"), "{shown}");
    server.stop().await;

    // One is down: its tenants are, and nobody else's; new ones go to the other.
    let half = format!("main={first},second=postgres://postgres@127.0.0.1:1/postgres");
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &half)]).await;
    let alice = server.known(&alice);
    let mut down = 0;
    for tenant in &made {
        let reply = alice.get(&format!("/api/tenants/{tenant}/documents")).await;
        down += usize::from(reply.status == 503);
        assert!(reply.status == 200 || reply.code() == "service_unavailable", "{reply:?}");
    }
    assert_eq!(down, 3);
    alice.creates_tenant("Acme 6").await;
    assert_eq!(tenants_by_server(&home).await["main"], 4);
    server.stop().await;
    for (n, tenant) in made.iter().enumerate() {
        on(&servers, &["tenants", "delete", tenant, "--hard", "--confirm", &format!("Acme {n}")]).expect(0);
    }
}

#[tokio::test]
async fn a_pooler_in_between_is_named() {
    let home = Home::new();
    if home.is_sqlite() {
        return;
    }
    let pooler = service("TEST_PGBOUNCER_URL").expect("TEST_DATABASE_URL alone will not do: scripts/services.sh env");
    let checked = Ran::of(home.command(["check"]).env("TENANT_DATABASE_URLS", format!("main={pooler}"))).expect(1).out;
    assert!(checked.contains("tenant databases (main): DOWN") && checked.contains("a pooler such as PgBouncer is in between"), "{checked}");
    // Nothing is written past the settings that make it durable.
    let server = home.serve_with(&[("TENANT_DATABASE_URLS", &format!("main={pooler}"))]).await;
    let alice = server.user("alice").await;
    alice.post("/api/tenants", &json!({ "name": "Acme" })).await.expect_error(503, "service_unavailable");
    server.stop().await;
    let mut tx = home.databases().open().0.begin().await.unwrap();
    tx.execute("DELETE FROM tenants", Vec::new()).await.unwrap();
    tx.commit().await.unwrap();
}
