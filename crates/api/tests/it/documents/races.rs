//! What several do at once, with the outcome that one after the other could have had.
//!
//! That a test can fail was seen with a bug planted by hand in what it tests: its comment says which, and what it said then.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::{join, join_all, join3};
use serde_json::{Value, json};
use testkit::{PASSWORD, Persona, Reply, TestApp};
use tokio_util::sync::CancellationToken;

fn with_status(replies: &[Reply], status: u16) -> usize {
    replies.iter().filter(|reply| reply.status == status).count()
}

fn document(tenant: &str, uploaded: &Reply) -> String {
    format!("/api/tenants/{tenant}/documents/{}", uploaded.id())
}

/// Planted: the index on (sha256, file_size) not unique. Said: `left: (0, 32), right: (31, 1)`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_content_uploaded_at_once_is_one_file() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let names: Vec<String> = (0..32).map(|n| format!("{n}.txt")).collect();
    let uploads = join_all(names.iter().map(|name| alice.uploads(&acme, name, "the same"))).await;
    assert_eq!(with_status(&uploads, 201), 32);
    let deduplicated = uploads.iter().filter(|upload| upload.data()["deduplicated"] == true).count();
    let files: BTreeSet<&str> = uploads.iter().map(|upload| upload.data()["file_id"].as_str().unwrap()).collect();
    assert_eq!((deduplicated, files.len()), (31, 1));
    let documents = alice.get(&format!("/api/tenants/{acme}/documents")).await.expect(200);
    assert_eq!(documents.data()["pagination"]["total"], 32);
    let stored = alice.get(&format!("/api/tenants/{acme}/files?include_stats=true")).await.expect(200);
    assert_eq!(stored.data()["storage"]["total_files"], 1);
    assert_eq!(stored.items()[0]["document_count"], 32);
    assert_eq!(alice.downloads(&acme, &uploads[7].id()).await, b"the same");
}

/// Ten identical requests make ten tenants, which is what was asked for, each whole and on its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_tenants_of_one_name_at_once_are_ten_tenants() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let wanted = json!({ "name": "Acme" });
    let requests = (0..10).map(|_| alice.post("/api/tenants", &wanted));
    let made: Vec<String> = join_all(requests).await.into_iter().map(|reply| reply.expect(201).id()).collect();
    let uploads = join_all(made.iter().map(|tenant| alice.uploads(tenant, "a.txt", tenant.as_str()))).await;
    for (tenant, upload) in made.iter().zip(&uploads) {
        let listed = alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200);
        assert_eq!(listed.items().len(), 1, "its own document and no other's");
        assert_eq!(alice.downloads(tenant, &upload.id()).await, tenant.as_bytes());
    }
    let databases: BTreeSet<_> =
        alice.get("/api/tenants").await.expect(200).items().iter().map(|tenant| tenant["id"].to_string()).collect();
    assert_eq!(databases.len(), 10);
}

/// Planted, on PostgreSQL: `lock_member` without `tenants::lock`. Said: `left: (2, 0), right: (1, 1)`, both had left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_last_admins_one_stays() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    let path = |of: &Persona| format!("/api/tenants/{acme}/users/{}", of.id);
    alice.invites(&bob, &acme, "admin").await;
    for round in 0..15 {
        let leaving: [Reply; 2] = join(alice.delete(&path(&alice)), bob.delete(&path(&bob))).await.into();
        assert_eq!((with_status(&leaving, 200), with_status(&leaving, 409)), (1, 1), "round {round}");
        let (stays, left) = if leaving[0].status == 409 { (&alice, &bob) } else { (&bob, &alice) };
        assert_eq!(leaving.iter().find(|reply| reply.status == 409).unwrap().code(), "last_admin");
        stays.invites(left, &acme, "admin").await;

        let role = json!({ "role": "user" });
        let demoted: [Reply; 2] = join(alice.put(&path(&bob), &role), bob.put(&path(&alice), &role)).await.into();
        // Who comes second is the last admin by now, or no admin any more.
        let refused = demoted.iter().filter(|reply| ["last_admin", "insufficient_role"].contains(&reply.code())).count();
        assert_eq!((with_status(&demoted, 200), refused), (1, 1), "round {round}");
        let (admin, other) = if demoted[0].status == 200 { (&alice, &bob) } else { (&bob, &alice) };
        admin.put(&path(other), &json!({ "role": "admin" })).await.expect(200);
    }
}

/// While the collector never rests, content is deleted and uploaded again at once. Whoever was told 201 can download.
///
/// Planted: the collector condemns without looking again under the lock. Said: `Violated(ForeignKey)`, the document that still
/// refers to the file keeps its row from going after the object has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_document_is_ever_without_its_object() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let (services, tenant) = (app.services().clone(), app.services().operator.list_all_tenants().await.unwrap()[0].clone());
    let (stop, mut collected) = (CancellationToken::new(), 0);
    let stopped = stop.clone();
    let collector = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            collected += services.operator.collect_garbage(&tenant).await.unwrap().files;
            tokio::task::yield_now().await;
        }
        collected
    });
    let mut last = document(&acme, &alice.uploads(&acme, "0.txt", "comes and goes").await.expect(201));
    for round in 0..100 {
        let (deleted, one, other) =
            join3(alice.delete(&last), alice.uploads(&acme, "a.txt", "comes and goes"), alice.uploads(&acme, "b.txt", "comes and goes"))
                .await;
        deleted.expect(200);
        let (one, other) = (one.expect(201), other.expect(201));
        for uploaded in [&one, &other] {
            assert_eq!(alice.downloads(&acme, &uploaded.id()).await, b"comes and goes", "round {round}");
        }
        alice.delete(&document(&acme, &one)).await.expect(200);
        last = document(&acme, &other);
        // Now and then nothing refers to it for a moment, and the collector may have it.
        if round % 2 == 0 {
            alice.delete(&last).await.expect(200);
            last = document(&acme, &alice.uploads(&acme, "c.txt", "comes and goes").await.expect(201));
        }
    }
    stop.cancel();
    let collected = collector.await.unwrap();
    assert!(collected > 0, "the collector had nothing to do: nothing was tested");
}

/// Planted: registration trusts its look beforehand, and takes no violated constraint for an answer. Said: `left: (1, 2),
/// right: (1, 19)`, the rest being 500.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_address_is_registered_once() {
    let app = TestApp::new().await;
    let stranger = app.stranger();
    let registration = |n: usize| {
        // The same address, however it is written.
        let email = if n.is_multiple_of(2) { "alice@example.com" } else { " Alice@Example.COM" };
        json!({ "email": email, "password": PASSWORD, "first_name": n.to_string(), "last_name": "Example" })
    };
    let registrations: Vec<Value> = (0..20).map(registration).collect();
    let replies = join_all(registrations.iter().map(|registration| stranger.post("/api/auth/register", registration))).await;
    assert_eq!((with_status(&replies, 201), with_status(&replies, 409)), (1, 19));
    assert!(replies.iter().all(|reply| reply.status == 201 || reply.code() == "email_taken"));
    stranger.post("/api/auth/login", &json!({ "email": "alice@example.com", "password": PASSWORD })).await.expect(200);
}

/// Planted, on PostgreSQL: `add_member` without `tenants::lock`. Said: `left: (1, 5), right: (1, 9)`, the rest being 500.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_is_added_once() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    let path = format!("/api/tenants/{acme}/users");
    for _ in 0..5 {
        let requests: Vec<Value> = (0..10)
            .map(|n| if n % 2 == 0 { json!({ "user_id": bob.id, "role": "user" }) } else { json!({ "email": bob.email, "role": "user" }) })
            .collect();
        let replies = join_all(requests.iter().map(|request| alice.post(&path, request))).await;
        assert_eq!((with_status(&replies, 201), with_status(&replies, 409)), (1, 9));
        assert!(replies.iter().all(|reply| reply.status == 201 || reply.code() == "already_member"));
        alice.delete(&format!("{path}/{}", bob.id)).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_tenants_are_created_at_once() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let name = json!({ "name": "The same name" });
    let tenants = join_all((0..10).map(|_| alice.post("/api/tenants", &name))).await;
    assert_eq!(with_status(&tenants, 201), 10);
    let databases: BTreeSet<&str> = tenants.iter().map(|tenant| tenant.data()["database_name"].as_str().unwrap()).collect();
    assert_eq!(databases.len(), 10);
    // Each is ready, and none sees what another has.
    let ids: Vec<String> = tenants.iter().map(Reply::id).collect();
    for uploaded in join_all(ids.iter().map(|id| alice.uploads(id, "a.txt", id.as_str()))).await {
        assert_eq!(uploaded.expect(201).data()["deduplicated"], false);
    }
    for id in &ids {
        assert_eq!(alice.get(&format!("/api/tenants/{id}/documents")).await.expect(200).items().len(), 1);
    }
}

/// Planted, on PostgreSQL: `delete_document` does not look whether it removed a row. Said: `left: (2, 0), right: (1, 1)`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_document_deleted_during_its_change_stays_deleted() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    for round in 0..40 {
        let path = document(&acme, &alice.uploads(&acme, "a.txt", "a").await.expect(201));
        let name = json!({ "filename": "b.txt" });
        let (changed, deleted, deleted_too) = join3(alice.put(&path, &name), alice.delete(&path), alice.delete(&path)).await;
        let deletions = [deleted, deleted_too];
        assert_eq!((with_status(&deletions, 200), with_status(&deletions, 404)), (1, 1), "round {round}");
        assert!(changed.status == 200 || changed.code() == "document_not_found", "round {round}: {}", changed.json);
        alice.get(&path).await.expect_error(404, "document_not_found");
    }
}

/// Planted: `delete_file` does not look for documents. Said: `object_not_found` when the document was downloaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_deleted_during_an_upload_of_its_content_takes_no_document_along() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let mut outcomes = BTreeSet::new();
    for round in 0..60 {
        let content = format!("content {round}");
        let orphaned = alice.uploads(&acme, "a.txt", content.as_str()).await.expect(201);
        alice.delete(&document(&acme, &orphaned)).await.expect(200);
        let file = format!("/api/tenants/{acme}/files/{}", orphaned.data()["file_id"].as_str().unwrap());
        // Each goes first in turn: who comes first is otherwise nearly always the same.
        let delete = async {
            tokio::time::sleep(Duration::from_micros(round % 20 * 100)).await;
            alice.delete(&file).await
        };
        let (uploaded, deleted) = join(alice.uploads(&acme, "b.txt", content.as_str()), delete).await;
        let uploaded = uploaded.expect(201);
        assert_eq!(alice.downloads(&acme, &uploaded.id()).await, content.as_bytes(), "round {round}");
        assert!(deleted.status == 200 || deleted.code() == "file_in_use", "round {round}: {}", deleted.json);
        outcomes.insert(deleted.status.as_u16());
    }
    assert!(outcomes.contains(&409), "the upload never came first: {outcomes:?}");
}
