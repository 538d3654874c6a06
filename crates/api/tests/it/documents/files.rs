//! Files.

use domain::{Error, Noun};
use serde_json::{Value, json};
use testkit::{Reply, TestApp};

fn totals(listed: &Reply) -> (Value, Value, Value) {
    let storage = &listed.data()["storage"];
    (storage["total_files"].clone(), storage["total_storage_bytes"].clone(), storage["total_storage_mb"].clone())
}

#[tokio::test]
async fn files_are_listed_with_figures_on_demand() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let path = format!("/api/tenants/{acme}/files");
    let empty = alice.get(&format!("{path}?include_stats=true")).await.expect(200);
    assert_eq!(totals(&empty), (json!(0), json!(0), json!(0.0)));

    alice.uploads(&acme, "a.txt", vec![b'a'; 1_230_000]).await.expect(201);
    let orphan = alice.uploads(&acme, "b.txt", b"b").await.expect(201);
    alice.uploads(&acme, "a2.txt", vec![b'a'; 1_230_000]).await.expect(201);
    alice.delete(&format!("/api/tenants/{acme}/documents/{}", orphan.id())).await.expect(200);

    let plain = alice.get(&path).await.expect(200);
    assert_eq!(plain.items().len(), 2);
    assert!(plain.items()[0].get("document_count").is_none() && plain.data().get("storage").is_none());
    let figures = alice.get(&format!("{path}?include_stats=true")).await.expect(200);
    let counts: Vec<_> = figures.items().iter().map(|file| (file["document_count"].clone(), file["is_orphaned"].clone())).collect();
    assert_eq!(counts, [(json!(0), json!(true)), (json!(2), json!(false))]);
    assert_eq!(totals(&figures), (json!(2), json!(1_230_001), json!(1.23)));
    alice.get(&format!("{path}?include_stats=maybe")).await.expect_error(400, "validation_failed");
}

#[tokio::test]
async fn only_an_orphaned_file_can_be_deleted() {
    let app = TestApp::new().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    alice.invites(&bob, &acme, "user").await;
    let document = bob.uploads(&acme, "a.txt", b"content").await.expect(201);
    let file = document.data()["file_id"].as_str().unwrap().to_owned();
    let path = format!("/api/tenants/{acme}/files/{file}");

    let details = bob.get(&path).await.expect(200);
    assert_eq!((&details.data()["document_count"], &details.data()["is_orphaned"]), (&json!(1), &json!(false)));
    assert_eq!(details.data()["documents"][0]["id"], document.id());
    let refused = alice.delete(&path).await.expect_error(409, "file_in_use");
    assert_eq!(refused.json["error"]["details"]["document_count"], 1);

    bob.delete(&format!("/api/tenants/{acme}/documents/{}", document.id())).await.expect(200);
    assert_eq!(alice.get(&path).await.expect(200).data()["is_orphaned"], true);
    bob.delete(&path).await.expect_error(403, "insufficient_role");
    alice.delete(&path).await.expect(200);
    alice.get(&path).await.expect_error(404, "file_not_found");
    alice.delete(&path).await.expect_error(404, "file_not_found");
    let object = app.objects().open().head(details.data()["s3_path"].as_str().unwrap()).await;
    assert!(matches!(object, Err(Error::NotFound(Noun::Object))), "{object:?}");
}

#[tokio::test]
async fn the_plans_paths_answer_the_same() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let file = alice.uploads(&acme, "a.txt", b"a").await.expect(201).data()["file_id"].as_str().unwrap().to_owned();
    for tail in [String::new(), "?include_stats=true".into(), format!("/{file}"), "/x".into()] {
        let (new, old) =
            (alice.get(&format!("/api/tenants/{acme}/files{tail}")).await, alice.get(&format!("/api/files/{acme}/files{tail}")).await);
        assert_eq!((new.status, &new.json), (old.status, &old.json));
    }
    alice.delete(&format!("/api/files/{acme}/files/{file}")).await.expect_error(409, "file_in_use");
}
