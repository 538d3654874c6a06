//! Tenants.

use serde_json::json;
use testkit::TestApp;

#[tokio::test]
async fn a_created_tenant_is_ready_at_once() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let made = alice.post("/api/tenants", &json!({ "name": " Acme Corp. " })).await.expect(201);
    assert_eq!(made.data()["name"], "Acme Corp.");
    assert_eq!(made.data()["role"], "admin");
    assert_eq!(made.data()["is_active"], true);
    assert_eq!(made.data()["created_by"], alice.id.as_str());
    let database = made.data()["database_name"].as_str().unwrap();
    assert!(database.starts_with("tenant_acme_corp_") && database.len() == "tenant_acme_corp_".len() + 8, "{database}");

    let tenant = made.id();
    alice.uploads(&tenant, "hello.txt", b"hello").await.expect(201);
    assert_eq!(alice.get(&format!("/api/tenants/{tenant}/documents/health")).await.expect(200).data()["service"], "documents");
    let details = alice.get(&format!("/api/tenants/{tenant}")).await.expect(200);
    let members = details.data()["members"].as_array().unwrap();
    assert_eq!(members.len(), 1);
    assert_eq!((&members[0]["role"], &members[0]["user"]["email"]), (&json!("admin"), &json!("alice@example.com")));
}

#[tokio::test]
async fn names_need_not_be_unique_but_databases_are() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let mut databases = Vec::new();
    for _ in 0..3 {
        let made = alice.post("/api/tenants", &json!({ "name": "'; DROP TABLE tenants; --" })).await.expect(201);
        databases.push(made.data()["database_name"].as_str().unwrap().to_owned());
    }
    databases.sort();
    databases.dedup();
    assert_eq!(databases.len(), 3);
}

#[tokio::test]
async fn bad_names_are_rejected() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    for body in
        [json!({}), json!({ "name": "" }), json!({ "name": " \t " }), json!({ "name": "x".repeat(256) }), json!({ "name": "a\u{0}" })]
    {
        let reply = alice.post("/api/tenants", &body).await.expect_error(400, "validation_failed");
        assert!(reply.json["error"]["details"]["name"].is_array(), "{body}");
    }
    alice.post("/api/tenants", &json!({ "name": "x".repeat(255) })).await.expect(201);
    alice.post("/api/tenants", &json!({ "name": "x", "database_name": "postgres" })).await.expect_error(400, "validation_failed");
}

#[tokio::test]
async fn lists_show_the_newest_membership_first_in_pages() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    assert_eq!(
        alice.get("/api/tenants").await.expect(200).data()["pagination"],
        json!({ "page": 1, "per_page": 20, "total": 0, "pages": 0 })
    );
    let mut tenants = Vec::new();
    for name in ["one", "two", "three"] {
        tenants.push(alice.creates_tenant(name).await);
    }
    alice.delete(&format!("/api/tenants/{}", tenants[1])).await.expect(200);

    let names = |reply: &testkit::Reply| reply.items().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let all = alice.get("/api/tenants").await.expect(200);
    assert_eq!(names(&all), ["three", "two", "one"]);
    let active = alice.get("/api/users/me/tenants").await.expect(200);
    assert_eq!(names(&active), ["three", "one"]);
    assert!(active.items().iter().all(|item| item["role"] == "admin" && item["joined_at"].is_string()));
    let second = alice.get("/api/tenants?page=2&per_page=2").await.expect(200);
    assert_eq!(names(&second), ["one"]);
    assert_eq!(second.data()["pagination"], json!({ "page": 2, "per_page": 2, "total": 3, "pages": 2 }));
    assert_eq!(names(&alice.get("/api/tenants?page=9").await.expect(200)), Vec::<String>::new());

    let login = alice.logged_in().await;
    assert_eq!(names(&login.get("/api/users/me/tenants").await), ["three", "one"]);
}

#[tokio::test]
async fn pages_out_of_bounds_are_rejected() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    for query in [
        "page=0",
        "page=-1",
        "page=x",
        "page=",
        "page=1.5",
        "page=99999999999999999999",
        "page=4294967296",
        "per_page=0",
        "per_page=101",
        "per_page=1e1",
        "page=1&page=2",
        "size=3",
        "page=%00",
        "page=%ff",
    ] {
        alice.get(&format!("/api/tenants?{query}")).await.expect_error(400, "validation_failed");
    }
    for query in ["page=1", "per_page=100", "page=4294967295&per_page=100"] {
        alice.get(&format!("/api/tenants?{query}")).await.expect(200);
    }
}

#[tokio::test]
async fn only_admins_can_view_a_deactivated_tenant() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    alice.invites(&bob, &acme, "user").await;
    let document = alice.uploads(&acme, "kept.txt", b"kept").await.expect(201).id();
    let path = format!("/api/tenants/{acme}");

    alice.delete(&path).await.expect(200);
    for (who, path) in [(&alice, format!("{path}/documents")), (&bob, path.clone()), (&bob, format!("{path}/files"))] {
        who.get(&path).await.expect_error(403, "tenant_inactive");
    }
    alice.delete(&path).await.expect_error(403, "tenant_inactive");
    bob.put(&path, &json!({ "is_active": true })).await.expect_error(403, "tenant_inactive");
    assert_eq!(alice.get(&path).await.expect(200).data()["is_active"], false);

    let back = alice.put(&path, &json!({ "is_active": true, "name": "Acme II" })).await.expect(200);
    assert_eq!((&back.data()["is_active"], &back.data()["name"]), (&json!(true), &json!("Acme II")));
    assert_eq!(alice.downloads(&acme, &document).await, b"kept");
    bob.put(&path, &json!({ "name": "Bob's" })).await.expect_error(403, "insufficient_role");
}

#[tokio::test]
async fn a_foreign_tenant_is_indistinguishable_from_an_absent_one() {
    let app = TestApp::new().await;
    let (alice, eve) = (app.user("alice").await, app.user("eve").await);
    let acme = alice.creates_tenant("Acme").await;
    let absent = "01900000-0000-7000-8000-000000000000";
    for tail in ["", "/documents", "/files", "/documents/health"] {
        let foreign = eve.get(&format!("/api/tenants/{acme}{tail}")).await.expect_error(404, "tenant_not_found");
        let absent = eve.get(&format!("/api/tenants/{absent}{tail}")).await.expect_error(404, "tenant_not_found");
        assert_eq!(foreign.bytes, absent.bytes);
    }
}

#[tokio::test]
async fn ids_that_are_not_uuids_are_rejected() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    for id in ["1", "x", "..%2f", "%00", "01900000000070008000000000000000", "{01900000-0000-7000-8000-000000000000}", "%ff"] {
        let reply = alice.get(&format!("/api/tenants/{id}")).await;
        assert_eq!(reply.status, 400, "{id}: {}", reply.json);
    }
    let reply = alice.get("/api/tenants/x/documents/y").await.expect_error(400, "validation_failed");
    assert_eq!(reply.problems("tenant_id"), r#"["must be a UUID"]"#);
    assert_eq!(reply.problems("document_id"), r#"["must be a UUID"]"#);
}
