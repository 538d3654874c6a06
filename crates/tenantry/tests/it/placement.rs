//! Tenants' databases on several servers.

use std::{collections::BTreeMap, fs};

use models::tenants;
use serde_json::json;

use crate::process::Home;

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
