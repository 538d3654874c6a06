//! Crashes in uploads, deletions and garbage collections.

use std::time::Duration;

use models::{files, tenants, uploads};
use reqwest::{
    Method, RequestBuilder,
    multipart::{Form, Part},
};
use testkit::Persona;

use crate::{
    process::Home,
    scene::{Scene, repeatedly},
};

/// An upload of new content, and whether the document exists afterwards.
pub(crate) const UPLOAD: &[(&str, bool)] = &[
    ("upload.received", false),
    ("upload.noted", false),
    ("upload.stored", false),
    ("upload.committing", false),
    ("upload.committed", true),
];
/// The storing of its object, as a file or in a bucket.
pub(crate) const STORE_FILE: &[(&str, bool)] = &[("object.linked", false)];
pub(crate) const STORE_S3: &[(&str, bool)] = &[("object.sent", false)];
/// An upload of existing content.
pub(crate) const DUPLICATE: &[&str] = &["upload.referred"];
/// Concurrent uploads of the same content.
pub(crate) const RACE: &[&str] = &["upload.condemning", "upload.condemned"];
/// A deletion, and whether the document or the file exists afterwards.
pub(crate) const DELETE_DOCUMENT: &[(&str, bool)] = &[("document.deleting", true), ("document.deleted", false)];
pub(crate) const DELETE_FILE: &[(&str, bool)] =
    &[("file.deleting", true), ("file.deleted", false), ("garbage.object_deleted", false), ("garbage.file_deleted", false)];
/// A garbage collection.
pub(crate) const COLLECT: &[&str] = &[
    "garbage.condemning",
    "garbage.condemned",
    "garbage.object_deleted",
    "garbage.file_deleted",
    "garbage.uploads_condemned",
    "garbage.upload_object_deleted",
    "garbage.upload_deleted",
];

/// An upload's content: more than what stays in memory.
fn content(seed: &str) -> Vec<u8> {
    seed.repeat(100_000 / seed.len()).into_bytes()
}

fn upload(alice: &Persona, tenant: &str, seed: &str) -> RequestBuilder {
    let part = Part::bytes(content(seed)).file_name("upload.txt");
    alice.request(Method::POST, &format!("/api/tenants/{tenant}/documents")).multipart(Form::new().part("file", part))
}

#[test]
fn a_crash_in_an_upload_leaves_the_whole_document_or_none() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        let mut documents = 0;
        let steps = [UPLOAD, if scene.home.objects().is_s3() { STORE_S3 } else { STORE_FILE }].concat();
        let duplicates = DUPLICATE.iter().map(|name| (*name, true));
        for (failpoint, exists) in steps.iter().copied().chain(duplicates) {
            let seed = if failpoint == DUPLICATE[0] { "upload.committed" } else { failpoint };
            scene.crash(failpoint, |scene| upload(&scene.alice, &scene.tenant, seed)).await;
            documents += u64::from(exists);
            assert_eq!(scene.count_documents().await, documents, "{failpoint}");
            // The user retries, and gets the content that was uploaded.
            let retry = upload(&scene.alice, &scene.tenant, seed).send().await.unwrap();
            let retry: serde_json::Value = retry.json().await.unwrap();
            documents += 1;
            assert_eq!(retry["data"]["deduplicated"], exists, "{failpoint}");
            let id = retry["data"]["id"].as_str().unwrap();
            assert_eq!(scene.alice.downloads(&scene.tenant, id).await, content(seed), "{failpoint}");
        }
        expire_uploads(&scene.home).await;
        scene.home.run(["gc"]).expect(0);
        assert_eq!(count_objects(&scene.home).await, steps.len(), "the objects of failed uploads are collected");
        scene.stop_and_check().await;
    });
}

#[test]
fn a_crash_in_concurrent_uploads_of_one_content_leaves_one_file() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        for failpoint in RACE {
            let attempts = crash_in_race(&mut scene, failpoint).await;
            println!("{failpoint}: after {attempts} attempts");
            let files = scene.alice.get(&format!("/api/tenants/{}/files?include_stats=true", scene.tenant)).await.expect(200);
            assert!(files.items().iter().all(|file| file["is_orphaned"] == false), "{}", files.json);
        }
        expire_uploads(&scene.home).await;
        scene.stop_and_check().await;
    });
}

/// Uploads the same content concurrently until one upload loses the race, at which the server aborts. Returns the number of
/// attempts.
async fn crash_in_race(scene: &mut Scene, failpoint: &str) -> usize {
    for attempt in 1..=50 {
        scene.restart_at(failpoint).await;
        let seed = format!("{failpoint}{attempt}");
        let uploads = (0..8).map(|_| upload(&scene.alice, &scene.tenant, &seed).send());
        let responses = futures_util::future::join_all(uploads).await;
        if responses.iter().any(Result::is_err) {
            scene.assert_aborted(failpoint).await;
            scene.start().await;
            return attempt;
        }
    }
    panic!("{failpoint} was not hit");
}

#[test]
fn a_crash_in_a_deletion_loses_nothing_and_leaves_nothing() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        let of_documents = DELETE_DOCUMENT.iter().map(|step| ("documents", step));
        for (kind, (failpoint, exists)) in of_documents.chain(DELETE_FILE.iter().map(|step| ("files", step))) {
            let uploaded = scene.alice.uploads(&scene.tenant, "a.txt", *failpoint).await.expect(201);
            let id = if kind == "documents" {
                uploaded.id()
            } else {
                scene.alice.delete(&scene.documents(&format!("/{}", uploaded.id()))).await.expect(200);
                uploaded.data()["file"]["id"].as_str().unwrap().to_owned()
            };
            if scene.home.objects().is_s3() && *failpoint == "garbage.file_deleted" {
                // On S3 the collector deletes the row, after the late-write window.
                continue;
            }
            let path = format!("/api/tenants/{}/{kind}/{id}", scene.tenant);
            scene.crash(failpoint, |scene| scene.alice.request(Method::DELETE, &path)).await;
            let expected = if *exists { 200 } else { 404 };
            scene.alice.get(&path).await.expect(expected);
            scene.alice.delete(&path).await.expect(expected);
            scene.alice.get(&path).await.expect(404);
        }
        scene.home.run(["gc"]).expect(0);
        assert_eq!(count_objects(&scene.home).await, 0);
        scene.stop_and_check().await;
    });
}

#[test]
fn a_crash_of_the_collector_is_repaired_by_the_next_run() {
    repeatedly(async || {
        let scene = Scene::new().await;
        let (home, alice, tenant) = (&scene.home, &scene.alice, &scene.tenant);
        let kept = alice.uploads(tenant, "kept.txt", "kept").await.expect(201).id();
        for failpoint in COLLECT {
            let deleted = alice.uploads(tenant, "deleted.txt", *failpoint).await.expect(201).id();
            alice.delete(&scene.documents(&format!("/{deleted}"))).await.expect(200);
            leave_interrupted_upload(home, failpoint).await;
            // With a late-write window, a later collection deletes the rows.
            if home.objects().is_s3() && failpoint.ends_with("deleted") {
                home.run(["gc"]).expect(0);
                age_marked(home).await;
            }
            home.crash(&["gc"], failpoint);
            home.run(["gc"]).expect(0);
            assert_eq!(count_objects(home).await, 1, "{failpoint}");
            age_marked(home).await;
            home.run(["gc"]).expect(0);
            assert_eq!(alice.downloads(tenant, &kept).await, b"kept");
            let (main, directory) = home.databases().open();
            let place = tenants::list(&mut main.read().await.unwrap()).await.unwrap().remove(0).place;
            let mut connection = directory.open(&place).unwrap().read().await.unwrap();
            assert_eq!(files::list_object_keys(&mut connection).await.unwrap().len(), 1, "{failpoint}");
            assert_eq!(uploads::list_object_keys(&mut connection).await.unwrap(), Vec::<String>::new(), "{failpoint}");
        }
        scene.stop_and_check().await;
    });
}

/// Expires the intents of interrupted uploads, which are kept for an hour.
async fn expire_uploads(home: &Home) {
    let (main, directory) = home.databases().open();
    for tenant in tenants::list(&mut main.read().await.unwrap()).await.unwrap() {
        let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
        for key in uploads::list_object_keys(&mut tx).await.unwrap() {
            uploads::condemn(&mut tx, &key, tenant.created_at).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

/// Ends the late-write window of everything that is marked for deletion.
async fn age_marked(home: &Home) {
    let (main, directory) = home.databases().open();
    for tenant in tenants::list(&mut main.read().await.unwrap()).await.unwrap() {
        let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
        let long_ago = tenant.created_at.minus(Duration::from_secs(24 * 3600));
        for sql in [
            "UPDATE files SET condemned_at = $1 WHERE condemned_at IS NOT NULL",
            "UPDATE uploads SET condemned_at = $1 WHERE condemned_at IS NOT NULL",
        ] {
            tx.execute(sql, vec![long_ago.into()]).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

/// Leaves what a crash in an upload leaves: an expired intent and an object.
async fn leave_interrupted_upload(home: &Home, name: &str) {
    let (main, directory) = home.databases().open();
    let tenant = tenants::list(&mut main.read().await.unwrap()).await.unwrap().remove(0);
    let key = format!("tenants/{}/files/ab/cd/{}", tenant.id, name.replace('.', "_"));
    let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
    uploads::insert(&mut tx, &key, 0, 0, tenant.created_at);
    tx.commit().await.unwrap();
    home.objects().leave(&key, b"left").await;
}

async fn count_objects(home: &Home) -> usize {
    home.object_keys().await.len()
}
