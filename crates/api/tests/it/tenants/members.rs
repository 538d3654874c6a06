//! Members and their roles.

use serde_json::json;
use testkit::TestApp;

#[tokio::test]
async fn members_are_added_by_id_or_by_address() {
    let app = TestApp::new().await;
    let (alice, bob, carol) = (app.user("alice").await, app.user("bob").await, app.user("carol").await);
    let acme = alice.creates_tenant("Acme").await;
    let path = format!("/api/tenants/{acme}/users");
    let added = alice.post(&path, &json!({ "user_id": bob.id, "role": "user" })).await.expect(201);
    assert_eq!(added.data()["user_id"], bob.id.as_str());
    assert_eq!((&added.data()["role"], &added.data()["user"]["email"]), (&json!("user"), &json!("bob@example.com")));
    alice.post(&path, &json!({ "email": " Carol@Example.com ", "role": "viewer" })).await.expect(201);

    let members = alice.get(&format!("/api/tenants/{acme}")).await.expect(200);
    let roles: Vec<_> = members.data()["members"].as_array().unwrap().iter().map(|member| member["role"].clone()).collect();
    assert_eq!(roles, ["admin", "user", "viewer"]);
    assert_eq!(carol.get("/api/users/me/tenants").await.items()[0]["role"], "viewer");

    let again = alice.post(&path, &json!({ "user_id": bob.id, "role": "admin" })).await.expect_error(409, "already_member");
    assert_eq!(again.json["error"]["details"]["role"], "user");
}

#[tokio::test]
async fn invalid_new_members_are_rejected() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    let path = format!("/api/tenants/{acme}/users");
    for (body, field) in [
        (json!({ "role": "user" }), "user_id"),
        (json!({ "user_id": bob.id, "email": bob.email, "role": "user" }), "user_id"),
        (json!({ "user_id": "bob", "role": "user" }), "user_id"),
        (json!({ "email": "bob", "role": "user" }), "email"),
        (json!({ "user_id": bob.id }), "role"),
        (json!({ "user_id": bob.id, "role": "owner" }), "role"),
        (json!({ "user_id": bob.id, "role": "" }), "role"),
    ] {
        let reply = alice.post(&path, &body).await.expect_error(400, "validation_failed");
        assert!(reply.json["error"]["details"][field].is_array(), "{body}: {}", reply.json);
    }
    let added = alice.post(&path, &json!({ "user_id": bob.id, "role": " Viewer " })).await.expect(201);
    assert_eq!(added.data()["role"], "viewer", "words are understood in any case");
    let absent = json!({ "user_id": "01900000-0000-7000-8000-000000000000", "role": "user" });
    alice.post(&path, &absent).await.expect_error(404, "user_not_found");
    alice.post(&path, &json!({ "email": "nobody@example.com", "role": "user" })).await.expect_error(404, "user_not_found");
}

#[tokio::test]
async fn role_changes_take_effect_at_once() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    alice.invites(&bob, &acme, "viewer").await;
    bob.uploads(&acme, "a.txt", b"a").await.expect_error(403, "insufficient_role");

    let path = format!("/api/tenants/{acme}/users/{}", bob.id);
    assert_eq!(alice.put(&path, &json!({ "role": "user" })).await.expect(200).data()["role"], "user");
    bob.uploads(&acme, "a.txt", b"a").await.expect(201);
    bob.put(&path, &json!({ "role": "admin" })).await.expect_error(403, "insufficient_role");

    alice.delete(&path).await.expect(200);
    bob.get(&format!("/api/tenants/{acme}")).await.expect_error(404, "tenant_not_found");
    alice.delete(&path).await.expect_error(404, "member_not_found");
    alice.put(&path, &json!({ "role": "user" })).await.expect_error(404, "member_not_found");
}

#[tokio::test]
async fn a_tenant_keeps_an_admin() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    alice.invites(&bob, &acme, "user").await;
    let (own, bobs) = (format!("/api/tenants/{acme}/users/{}", alice.id), format!("/api/tenants/{acme}/users/{}", bob.id));
    alice.delete(&own).await.expect_error(409, "last_admin");
    alice.put(&own, &json!({ "role": "user" })).await.expect_error(409, "last_admin");
    alice.put(&own, &json!({ "role": "admin" })).await.expect(200);

    alice.put(&bobs, &json!({ "role": "admin" })).await.expect(200);
    alice.put(&own, &json!({ "role": "viewer" })).await.expect(200);
    bob.delete(&bobs).await.expect_error(409, "last_admin");
    alice.delete(&own).await.expect(200);
    alice.get(&format!("/api/tenants/{acme}")).await.expect_error(404, "tenant_not_found");
}

#[tokio::test]
async fn members_can_leave_but_not_remove_others() {
    let app = TestApp::new().await;
    let (alice, bob, carol) = (app.user("alice").await, app.user("bob").await, app.user("carol").await);
    let acme = alice.creates_tenant("Acme").await;
    alice.invites(&bob, &acme, "viewer").await;
    alice.invites(&carol, &acme, "user").await;
    carol.delete(&format!("/api/tenants/{acme}/users/{}", bob.id)).await.expect_error(403, "insufficient_role");
    bob.delete(&format!("/api/tenants/{acme}/users/{}", bob.id)).await.expect(200);
    assert_eq!(bob.get("/api/tenants").await.items().len(), 0);
}
