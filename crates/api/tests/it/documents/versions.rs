//! Versions and the trash.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{Persona, Reply, TestApp};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn alice_in_acme(app: &TestApp) -> (Persona, String) {
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    (alice, acme)
}

/// Somebody's document.
struct Of<'a>(&'a Persona, &'a str, String);

impl Of<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}/documents/{}{rest}", self.1, self.2)
    }

    async fn replace(&self, content: &'static str, if_match: Option<&str>) -> Reply {
        let mut request = self.0.request(Method::PUT, &self.path("/content")).body(content).header("content-type", "text/markdown");
        if let Some(etag) = if_match {
            request = request.header("if-match", etag);
        }
        Reply::to(request).await
    }

    async fn versions(&self) -> Vec<(u64, String, u64)> {
        let listed = self.0.get(&self.path("/versions")).await.expect(200);
        let version = |item: &Value| {
            let number = |value: &Value| value.as_u64().unwrap();
            (number(&item["version"]), item["mime_type"].as_str().unwrap().to_owned(), number(&item["file"]["file_size"]))
        };
        listed.items().iter().map(version).collect()
    }

    async fn content_of(&self, version: u64) -> String {
        let path = self.path(&format!("/versions/{version}/download?redirect=false"));
        let url = self.0.get(&path).await.expect(200).data()["url"].as_str().unwrap().to_owned();
        String::from_utf8(self.0.without_token().get(&url).await.expect(200).bytes).unwrap()
    }

    async fn content(&self) -> String {
        String::from_utf8(self.0.downloads(self.1, &self.2).await).unwrap()
    }
}

async fn collect(app: &TestApp) -> services::Collected {
    let tenants = app.services().operator.list_all_tenants().await.unwrap();
    app.services().operator.collect_garbage(&tenants[0]).await.unwrap()
}

#[tokio::test]
async fn a_document_keeps_its_former_contents() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let uploaded = alice.uploads(&acme, "a.txt", "one").await.expect(201);
    let first = uploaded.header("etag").to_owned();
    let document = Of(&alice, &acme, uploaded.id());
    assert_eq!(alice.get(&document.path("")).await.header("etag"), first);

    let replaced = document.replace("two!", Some(&first)).await.expect(200);
    assert_eq!((&replaced.data()["version"], &replaced.data()["mime_type"]), (&json!(2), &json!("text/markdown")));
    assert_eq!(alice.get(&document.path("")).await.header("etag"), replaced.header("etag"));
    // Somebody else knows only the first version: nothing is lost.
    document.replace("three", Some(&first)).await.expect_error(412, "precondition_failed");
    // The same again changes nothing.
    let again = document.replace("two!", None).await.expect(200);
    assert_eq!((&again.data()["version"], again.header("etag")), (&json!(2), replaced.header("etag")));
    assert_eq!(document.versions().await, [(2, "text/markdown".to_owned(), 4), (1, "text/plain".to_owned(), 3)]);
    assert_eq!(
        (document.content_of(1).await, document.content_of(2).await, document.content().await),
        ("one".into(), "two!".into(), "two!".into())
    );

    // What only a former version refers to is no garbage, and no orphan.
    assert_eq!(collect(&app).await.files, 0);
    let file = uploaded.data()["file_id"].as_str().unwrap();
    let file = alice.get(&format!("/api/tenants/{acme}/files/{file}")).await.expect(200);
    assert_eq!((&file.data()["is_orphaned"], &file.data()["documents"][0]["is_current"]), (&json!(false), &json!(false)));

    let restored = Reply::to(alice.request(Method::POST, &document.path("/versions/1/restore"))).await.expect(200);
    assert_eq!((&restored.data()["version"], &restored.data()["mime_type"]), (&json!(3), &json!("text/plain")));
    assert_eq!(document.content().await, "one");
    let wrong = alice.request(Method::POST, &document.path("/versions/2/restore")).header("if-match", &first);
    Reply::to(wrong).await.expect_error(412, "precondition_failed");
    for path in ["/versions/4/download", "/versions/99999999999999999999/download", "/versions/0/download", "/versions/x/download"] {
        let reply = alice.get(&document.path(path)).await;
        assert!([400, 404].contains(&reply.status.as_u16()), "{path}: {}", reply.status);
    }
}

#[tokio::test]
async fn only_so_many_versions_are_kept() {
    let app = TestApp::builder().versions_kept(2).start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let document = Of(&alice, &acme, alice.uploads(&acme, "a.txt", "1").await.expect(201).id());
    for content in ["22", "333", "4444"] {
        document.replace(content, None).await.expect(200);
    }
    let sizes: Vec<_> = document.versions().await.into_iter().map(|(number, _, size)| (number, size)).collect();
    assert_eq!(sizes, [(4, 4), (3, 3)]);
    alice.get(&document.path("/versions/1/download")).await.expect_error(404, "version_not_found");
    assert_eq!(collect(&app).await.files, 2);
    assert_eq!(document.content_of(3).await, "333");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_know_the_same_version_one_wins() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    for round in 0..10 {
        let uploaded = alice.uploads(&acme, "a.txt", format!("round {round}")).await.expect(201);
        let etag = uploaded.header("etag").to_owned();
        let document = Of(&alice, &acme, uploaded.id());
        let contents = ["ours", "theirs", "somebody's", "nobody's"];
        let replies = join_all(contents.iter().map(|content| document.replace(content, Some(&etag)))).await;
        let winners: Vec<_> = (0..contents.len()).filter(|n| replies[*n].status == 200).collect();
        assert_eq!(winners.len(), 1, "{:?}", replies.iter().map(|reply| reply.status).collect::<Vec<_>>());
        assert!(replies.iter().all(|reply| reply.status == 200 || reply.code() == "precondition_failed"));
        assert_eq!(document.content().await, contents[winners[0]]);
        assert_eq!(document.versions().await.len(), 2);
    }
}

#[tokio::test]
async fn what_is_no_content_is_refused() {
    let app = TestApp::builder().max_upload_bytes(10).start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let document = Of(&alice, &acme, alice.uploads(&acme, "a.txt", "one").await.expect(201).id());
    document.replace("", None).await.expect_error(400, "validation_failed");
    document.replace("more than ten bytes", None).await.expect_error(413, "payload_too_large");
    let form = reqwest::multipart::Form::new().text("file", "x");
    let sent = alice.request(Method::PUT, &document.path("/content")).multipart(form);
    Reply::to(sent).await.expect_error(415, "unsupported_media_type");
    let sent = alice.request(Method::PUT, &document.path("/content")).header("content-type", "nonsense").body("x");
    Reply::to(sent).await.expect_error(400, "validation_failed");
    // What a client says that doesn't know keeps the type.
    let sent = alice.request(Method::PUT, &document.path("/content")).header("content-type", "application/octet-stream").body("x");
    assert_eq!(Reply::to(sent).await.expect(200).data()["mime_type"], "text/plain");
    assert_eq!(document.versions().await.len(), 2);
}

#[tokio::test]
async fn deleted_documents_can_be_brought_back_for_a_time() {
    let app = TestApp::builder().trash_retention(DAY).start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let document = Of(&alice, &acme, alice.uploads(&acme, "a.txt", "one").await.expect(201).id());
    document.replace("two", None).await.expect(200);
    let stale = document.0.request(Method::DELETE, &document.path("")).header("if-match", "\"1-0\"");
    Reply::to(stale).await.expect_error(412, "precondition_failed");
    alice.delete(&document.path("")).await.expect(200);

    // To everything but the trash it is gone.
    for path in ["", "/download", "/versions", "/versions/1/download"] {
        alice.get(&document.path(path)).await.expect_error(404, "document_not_found");
    }
    document.replace("three", None).await.expect_error(404, "document_not_found");
    alice.delete(&document.path("")).await.expect_error(404, "document_not_found");
    let documents = format!("/api/tenants/{acme}/documents");
    assert!(alice.get(&documents).await.items().is_empty());
    assert!(alice.get(&format!("{documents}?filename=a")).await.items().is_empty());
    let trash = alice.get(&format!("{documents}/trash")).await.expect(200);
    assert_eq!((&trash.items()[0]["id"], &trash.items()[0]["deleted_by"]), (&json!(document.2), &json!(alice.id)));
    assert_eq!(collect(&app).await, services::Collected::default());

    let restore = format!("{documents}/trash/{}/restore", document.2);
    Reply::to(alice.request(Method::POST, &restore)).await.expect(200);
    Reply::to(alice.request(Method::POST, &restore)).await.expect_error(404, "document_not_found");
    assert_eq!((document.content().await, document.content_of(1).await), ("two".into(), "one".into()));

    // When its time is over it goes with all versions; not before.
    alice.delete(&document.path("")).await.expect(200);
    app.clock().advance(DAY - Duration::from_secs(1));
    assert_eq!(collect(&app).await.documents, 0);
    app.clock().advance(Duration::from_secs(1));
    let collected = collect(&app).await;
    assert_eq!((collected.documents, collected.files, collected.bytes), (1, 2, 6));
    Reply::to(alice.logged_in().await.request(Method::POST, &restore)).await.expect_error(404, "document_not_found");
}

#[tokio::test]
async fn the_trash_shows_users_their_own_and_admins_empty_it() {
    let app = TestApp::builder().trash_retention(DAY).start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let bob = app.user("bob").await;
    alice.invites(&bob, &acme, "user").await;
    let documents = format!("/api/tenants/{acme}/documents");
    for (who, name) in [(&alice, "alice's"), (&bob, "bob's")] {
        let id = who.uploads(&acme, name, name).await.expect(201).id();
        who.delete(&format!("{documents}/{id}")).await.expect(200);
    }
    let names = async |who: &Persona| {
        let listed = who.get(&format!("{documents}/trash")).await.expect(200);
        listed.items().iter().map(|item| item["filename"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((names(&bob).await, names(&alice).await), (vec!["bob's".to_owned()], vec!["bob's".to_owned(), "alice's".to_owned()]));
    bob.delete(&format!("{documents}/trash")).await.expect_error(403, "insufficient_role");
    assert_eq!(alice.delete(&format!("{documents}/trash")).await.expect(200).data()["documents"], 2);
    assert_eq!(alice.delete(&format!("{documents}/trash")).await.expect(200).data()["documents"], 0);
    assert_eq!(collect(&app).await.files, 2);
}
