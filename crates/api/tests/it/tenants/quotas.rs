//! Quotas, and requests that are done once.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::{collections::BTreeSet, time::Duration};

use domain::{Limit, Quota, QuotaLimits};
use futures_util::future::join_all;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use testkit::{Persona, Reply, TestApp};

async fn app_with(bytes: Option<u64>, documents: Option<u64>) -> (TestApp, Persona, String) {
    let app = TestApp::builder().trash_retention(Duration::from_secs(3600)).quota(Quota { bytes, documents }).start().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    (app, alice, acme)
}

async fn storage(alice: &Persona, acme: &str) -> Value {
    alice.get(&format!("/api/tenants/{acme}/storage")).await.expect(200).data().clone()
}

#[tokio::test]
async fn a_quota_of_bytes_counts_different_contents_and_says_what_is_short() {
    let (app, alice, acme) = app_with(Some(10), None).await;
    let first = alice.uploads(&acme, "a", "12345").await.expect(201).id();
    let refused = alice.uploads(&acme, "b", "123456").await.expect_error(403, "quota_exceeded");
    let figures = json!({ "unit": "bytes", "quota": 10, "used": 5, "reserved": 0, "needed": 6 });
    assert_eq!(refused.json["error"]["details"], figures);
    // What is there already takes no more room; what just fits, fits.
    alice.uploads(&acme, "c", "12345").await.expect(201);
    alice.uploads(&acme, "d", "abcde").await.expect(201);
    alice.uploads(&acme, "e", "x").await.expect_error(403, "quota_exceeded");
    let put = alice.request(Method::PUT, &format!("/api/tenants/{acme}/documents/{first}/content")).body("more");
    Reply::to(put).await.expect_error(403, "quota_exceeded");

    let figures = storage(&alice, &acme).await;
    assert_eq!(
        (&figures["total_storage_bytes"], &figures["quota_bytes"], &figures["quota_documents"]),
        (&json!(10), &json!(10), &Value::Null)
    );
    assert_eq!((&figures["total_documents"], &figures["reserved_bytes"]), (&json!(3), &json!(0)));
    let listed = alice.get(&format!("/api/tenants/{acme}/files?include_stats=true")).await;
    assert_eq!(listed.data()["storage"], figures);

    // The operator gives this tenant more, and then everything.
    let tenant = acme.parse().unwrap();
    let limits = QuotaLimits { bytes: Limit::AtMost(11), ..QuotaLimits::default() };
    app.services().operator.set_limits(tenant, limits).await.unwrap();
    alice.uploads(&acme, "e", "x").await.expect(201);
    alice.uploads(&acme, "f", "y").await.expect_error(403, "quota_exceeded");
    app.services().operator.set_limits(tenant, QuotaLimits { bytes: Limit::Unlimited, ..QuotaLimits::default() }).await.unwrap();
    alice.uploads(&acme, "f", "y").await.expect(201);
    assert_eq!(storage(&alice, &acme).await["quota_bytes"], Value::Null);
}

#[tokio::test]
async fn a_quota_of_documents_counts_the_trash_until_it_is_emptied() {
    let (_app, alice, acme) = app_with(None, Some(2)).await;
    let first = alice.uploads(&acme, "a", "same").await.expect(201).id();
    alice.uploads(&acme, "b", "same").await.expect(201);
    let refused = alice.uploads(&acme, "c", "same").await.expect_error(403, "quota_exceeded");
    assert_eq!(refused.json["error"]["details"]["unit"], "documents");
    // A new version is no new document.
    let put = alice.request(Method::PUT, &format!("/api/tenants/{acme}/documents/{first}/content")).body("other");
    Reply::to(put).await.expect(200);
    alice.delete(&format!("/api/tenants/{acme}/documents/{first}")).await.expect(200);
    assert_eq!(storage(&alice, &acme).await["trashed_documents"], 1);
    alice.uploads(&acme, "c", "same").await.expect_error(403, "quota_exceeded");
    alice.delete(&format!("/api/tenants/{acme}/documents/trash/{first}")).await.expect(200);
    alice.uploads(&acme, "c", "same").await.expect(201);
}

/// Planted: the quota is not locked before it is counted. On PostgreSQL 4 or more of the 8 get through.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uploads_at_once_do_not_pass_the_quota_together() {
    let (app, alice, acme) = app_with(Some(100_000), None).await;
    for round in 0..5 {
        let contents = (0..8).map(|n| format!("{round}{n}").repeat(15_000).into_bytes());
        let replies = join_all(contents.map(|content| alice.uploads(&acme, "a", content))).await;
        let made: Vec<_> = replies.iter().filter(|reply| reply.status == 201).map(Reply::id).collect();
        assert_eq!(made.len(), 3, "{:?}", replies.iter().map(|reply| reply.status).collect::<Vec<_>>());
        assert!(replies.iter().all(|reply| reply.status == 201 || reply.code() == "quota_exceeded"));
        for id in made {
            alice.delete(&format!("/api/tenants/{acme}/documents/{id}")).await.expect(200);
        }
        alice.delete(&format!("/api/tenants/{acme}/documents/trash")).await.expect(200);
        let tenants = app.services().operator.list_all_tenants().await.unwrap();
        assert_eq!(app.services().operator.collect_garbage(&tenants[0]).await.unwrap().files, 3);
    }
}

/// An upload with a key.
async fn upload(alice: &Persona, acme: &str, key: &str, name: &str, content: &'static str) -> Reply {
    let part = Part::bytes(content.as_bytes()).file_name(name.to_owned()).mime_str("text/plain").unwrap();
    let request = alice.request(Method::POST, &format!("/api/tenants/{acme}/documents")).header("idempotency-key", key);
    Reply::to(request.multipart(Form::new().part("file", part))).await
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let first = upload(&alice, &acme, "k1", "a.txt", "one").await.expect(201);
    // The document changes and even goes; the answer stays.
    let path = format!("/api/tenants/{acme}/documents/{}", first.id());
    alice.put(&path, &json!({ "filename": "b.txt" })).await.expect(200);
    let again = upload(&alice, &acme, "\"k1\"", "a.txt", "one").await.expect(201);
    assert_eq!(first.bytes, again.bytes);
    alice.delete(&path).await.expect(200);
    assert_eq!(upload(&alice, &acme, "k1", "a.txt", "one").await.expect(201).bytes, first.bytes);
    assert!(alice.get(&format!("/api/tenants/{acme}/documents")).await.items().is_empty());

    for (name, content) in [("a.txt", "two"), ("b.txt", "one")] {
        upload(&alice, &acme, "k1", name, content).await.expect_error(409, "idempotency_key_reused");
    }
    for key in ["", "a b", &"x".repeat(256)] {
        upload(&alice, &acme, key, "a.txt", "one").await.expect_error(400, "validation_failed");
    }
    // Keys are each user's own.
    let bob = app.user("bob").await;
    alice.invites(&bob, &acme, "user").await;
    upload(&bob, &acme, "k1", "a.txt", "two").await.expect(201);
    // What failed may be sent again.
    upload(&alice, &acme, "k2", "a.txt", "").await.expect_error(400, "validation_failed");
    upload(&alice, &acme, "k2", "a.txt", "one").await.expect(201);
    // After a day the key is as new.
    app.clock().advance(Duration::from_secs(24 * 3600));
    let alice = alice.logged_in().await;
    let later = upload(&alice, &acme, "k1", "other.txt", "other").await.expect(201);
    assert_ne!(later.id(), first.id());
    assert_eq!(upload(&alice, &acme, "k1", "other.txt", "other").await.expect(201).bytes, later.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_request_at_once_is_done_once() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    for round in 0..5 {
        let key = format!("k{round}");
        let replies = join_all((0..8).map(|_| upload(&alice, &acme, &key, "a.txt", "content"))).await;
        let answers: BTreeSet<_> = replies.into_iter().map(|reply| reply.expect(201).bytes).collect();
        assert_eq!(answers.len(), 1);
    }
    let listed = alice.get(&format!("/api/tenants/{acme}/documents")).await;
    assert_eq!(listed.json["data"]["pagination"]["total"], 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tenant_is_made_once() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let create = async |name: &str| {
        let request = alice.request(Method::POST, "/api/tenants").header("idempotency-key", "t1");
        Reply::to(request.json(&json!({ "name": name }))).await
    };
    let replies = join_all((0..8).map(|_| create("Acme"))).await;
    let made: BTreeSet<_> = replies.iter().filter(|reply| reply.status == 201).map(|reply| reply.bytes.clone()).collect();
    assert_eq!(made.len(), 1);
    // Who came while it was being made is told so, and to come back.
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        assert_eq!((reply.status.as_u16(), reply.code()), (409, "idempotency_key_in_use"));
        assert_eq!(reply.header("retry-after"), "2");
    }
    assert_eq!(Some(&create("Acme").await.expect(201).bytes), made.first());
    create("Other").await.expect_error(409, "idempotency_key_reused");
    assert_eq!(alice.get("/api/tenants").await.items().len(), 1);
}
