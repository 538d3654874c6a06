//! A crash at every step of what must survive one.
//!
//! Each failpoint is named once below, with what is done when the process dies there and what must hold afterwards.

use std::{collections::BTreeSet, fs, os::unix::process::ExitStatusExt, path::Path, time::Duration};

use domain::{Provisioning, TenantId, Tombstone};
use models::{files, tenants, tombstones, uploads};
use reqwest::{
    Method, RequestBuilder,
    multipart::{Form, Part},
};
use rustix::process::Signal;
use serde_json::json;
use testkit::Persona;

use crate::process::{Home, PATIENCE, Ran, Server, repeatedly};

/// An upload of new content: the document is there afterwards, or not.
const UPLOAD: &[(&str, bool)] = &[
    ("upload.received", false),
    ("upload.noted", false),
    ("upload.stored", false),
    ("upload.committing", false),
    ("upload.committed", true),
];
/// The storing of its object, as a file or in a bucket.
const STORE_FILE: &[(&str, bool)] = &[("object.linked", false)];
const STORE_S3: &[(&str, bool)] = &[("object.sent", false)];
/// An upload of content that is there.
const DUPLICATE: &[&str] = &["upload.referred"];
/// Uploads of the same content at once.
const RACE: &[&str] = &["upload.condemning", "upload.condemned"];
const DELETE_DOCUMENT: &[(&str, bool)] = &[("document.deleting", true), ("document.deleted", false)];
const DELETE_FILE: &[(&str, bool)] =
    &[("file.deleting", true), ("file.deleted", false), ("garbage.object_deleted", false), ("garbage.file_deleted", false)];
const COLLECT: &[&str] = &[
    "garbage.condemning",
    "garbage.condemned",
    "garbage.object_deleted",
    "garbage.file_deleted",
    "garbage.uploads_condemned",
    "garbage.upload_object_deleted",
    "garbage.upload_deleted",
];
/// The making of a tenant: it is there afterwards, or not.
const CREATE_TENANT: &[(&str, bool)] = &[
    ("tenant.reserving", false),
    ("tenant.reserved", true),
    ("tenant.created", true),
    ("tenant.migrated", true),
    ("tenant.activating", true),
    ("tenant.active", true),
];
/// The same, where its database is a file.
const CREATE_FILE: &[(&str, bool)] = &[("tenant.file_written", true), ("tenant.file_renamed", true)];
/// The deletion of a tenant for good: it has begun afterwards, or not.
const DELETE_TENANT: &[(&str, bool)] = &[
    ("tenant.deletion_marking", false),
    ("tenant.deletion_marked", true),
    ("tenant.database_dropped", true),
    ("tenant.object_deleted", true),
    ("tenant.objects_deleted", true),
    ("tenant.forgetting", true),
    ("tenant.forgotten", true),
];
/// The removal of what was made of a tenant.
const GIVE_UP: &[&str] = &["tenant.given_up"];
const LOG_IN: &[&str] = &["login.committing", "login.committed"];
const REFRESH: &[&str] = &["refresh.committing", "refresh.committed"];

#[test]
fn every_failpoint_is_tried() {
    let named = [
        UPLOAD,
        STORE_FILE,
        STORE_S3,
        DELETE_DOCUMENT,
        DELETE_FILE,
        CREATE_TENANT,
        CREATE_FILE,
        DELETE_TENANT,
        crate::moves::MOVE,
        crate::moves::RETURN,
        crate::uploads::ABORT,
        crate::versions::TRASH,
    ]
    .concat()
    .into_iter()
    .map(|(name, _)| name);
    let others = [
        crate::events::EVENTS,
        crate::events::TAKE_OVER,
        DUPLICATE,
        RACE,
        COLLECT,
        GIVE_UP,
        LOG_IN,
        REFRESH,
        crate::spares::MAKE_SPARE,
        crate::migrations::MIGRATE,
        crate::moves::UNDO_MOVE,
        crate::uploads::TUS,
        crate::uploads::DIRECT,
        crate::uploads::GATHERED,
        crate::uploads::EXPIRE,
    ]
    .concat();
    let of_versions = crate::versions::VERSIONS.iter().map(|(name, _)| (*name).to_owned());
    let tried: BTreeSet<String> = named.chain(others).map(str::to_owned).chain(of_versions).collect();
    let mut marked = BTreeSet::new();
    find_marks(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut marked);
    assert!(marked.len() > 20, "{marked:?}");
    assert_eq!(tried, marked);
}

/// The names of all failpoints in the sources of our crates.
fn find_marks(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            find_marks(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(path).unwrap();
            names.extend(source.split("failpoint!(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
}

/// A server that dies at a failpoint.
pub(crate) async fn doomed(home: &Home, failpoint: &str) -> Server {
    home.serve_with(&[("FAILPOINT", failpoint)]).await
}

/// The server has died there; `sent` is the request that killed it, which nobody answered.
async fn assert_died(sent: RequestBuilder, server: &mut Server, failpoint: &str) {
    if let Ok(answer) = sent.timeout(PATIENCE).send().await {
        panic!("{failpoint} was not hit: {}", answer.text().await.unwrap());
    }
    let status = server.ended().await;
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint}: {}", server.log());
    println!("{failpoint}: hit once");
}

fn upload(alice: &Persona, tenant: &str, content: &str) -> RequestBuilder {
    // More than what stays in memory.
    let part = Part::bytes(content.repeat(100_000 / content.len()).into_bytes()).file_name("upload.txt");
    alice.request(Method::POST, &format!("/api/tenants/{tenant}/documents")).multipart(Form::new().part("file", part))
}

async fn count_documents(alice: &Persona, tenant: &str) -> u64 {
    alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).json["data"]["pagination"]["total"].as_u64().unwrap()
}

#[test]
fn a_crash_in_an_upload_leaves_the_whole_document_or_none() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let mut documents = 0;
        let steps = [UPLOAD, if home.objects().is_s3() { STORE_S3 } else { STORE_FILE }].concat();
        let duplicates = DUPLICATE.iter().map(|name| (*name, true));
        for (failpoint, is_there) in steps.iter().copied().chain(duplicates) {
            let content = if failpoint == DUPLICATE[0] { "upload.committed" } else { failpoint };
            server.stop().await;
            server = doomed(&home, failpoint).await;
            assert_died(upload(&server.known(&alice), &tenant, content), &mut server, failpoint).await;

            server = home.serve().await;
            let alice = server.known(&alice);
            documents += u64::from(is_there);
            assert_eq!(count_documents(&alice, &tenant).await, documents, "{failpoint}");
            // The user tries again, and has what was uploaded.
            let again: serde_json::Value = upload(&alice, &tenant, content).send().await.unwrap().json().await.unwrap();
            documents += 1;
            assert_eq!(again["data"]["deduplicated"], is_there, "{failpoint}");
            let id = again["data"]["id"].as_str().unwrap();
            assert_eq!(alice.downloads(&tenant, id).await, content.repeat(100_000 / content.len()).into_bytes(), "{failpoint}");
        }
        // An hour later.
        expire_uploads(&home).await;
        home.settle(server).await;
        assert_eq!(count_objects(&home).await, steps.len(), "the objects of what became no document are gone");
    });
}

#[test]
fn a_crash_where_equal_uploads_meet_leaves_one_file() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        for failpoint in RACE {
            server.stop().await;
            // Who comes second is for the scheduler to say: it is tried until somebody does.
            for attempt in 0.. {
                assert!(attempt < 50, "{failpoint} was not hit");
                server = doomed(&home, failpoint).await;
                let content = format!("{failpoint}{attempt}");
                let alice = server.known(&alice);
                let uploads = (0..8).map(|_| upload(&alice, &tenant, &content).send());
                let answers = futures_util::future::join_all(uploads).await;
                if answers.iter().any(Result::is_err) {
                    assert_eq!(server.ended().await.signal(), Some(Signal::ABORT.as_raw()), "{}", server.log());
                    println!("{failpoint}: hit once, in attempt {}", attempt + 1);
                    break;
                }
                server.stop().await;
            }
            server = home.serve().await;
            let alice = server.known(&alice);
            let files = alice.get(&format!("/api/tenants/{tenant}/files?include_stats=true")).await.expect(200);
            assert!(files.items().iter().all(|file| file["is_orphaned"] == false), "{}", files.json);
        }
        expire_uploads(&home).await;
        home.settle(server).await;
    });
}

#[test]
fn a_crash_in_a_deletion_loses_nothing_and_leaves_nothing() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let deletions = DELETE_DOCUMENT.iter().map(|point| ("documents", point)).chain(DELETE_FILE.iter().map(|point| ("files", point)));
        for (what, (failpoint, is_there)) in deletions {
            let uploaded = server.known(&alice).uploads(&tenant, "a.txt", *failpoint).await.expect(201);
            let id = match what {
                "documents" => uploaded.id(),
                _ => {
                    let document = format!("/api/tenants/{tenant}/documents/{}", uploaded.id());
                    server.known(&alice).delete(&document).await.expect(200);
                    uploaded.data()["file"]["id"].as_str().unwrap().to_owned()
                }
            };
            let path = format!("/api/tenants/{tenant}/{what}/{id}");
            if home.objects().is_s3() && *failpoint == "garbage.file_deleted" {
                // The row is the collector's to delete, when the store has settled.
                continue;
            }
            server.stop().await;
            server = doomed(&home, failpoint).await;
            assert_died(server.known(&alice).request(Method::DELETE, &path), &mut server, failpoint).await;

            server = home.serve().await;
            let alice = server.known(&alice);
            alice.get(&path).await.expect(if *is_there { 200 } else { 404 });
            alice.delete(&path).await.expect(if *is_there { 200 } else { 404 });
            alice.get(&path).await.expect(404);
        }
        home.settle(server).await;
        assert_eq!(count_objects(&home).await, 0);
    });
}

#[test]
fn a_crash_of_the_collector_is_made_good_by_the_next_run() {
    repeatedly(async || {
        let home = Home::new();
        let server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let kept = alice.uploads(&tenant, "kept.txt", "kept").await.expect(201).id();
        for failpoint in COLLECT {
            let deleted = alice.uploads(&tenant, "deleted.txt", *failpoint).await.expect(201).id();
            alice.delete(&format!("/api/tenants/{tenant}/documents/{deleted}")).await.expect(200);
            leave_upload(&home, failpoint).await;
            // Where a store settles late, rows go in a later collection than objects.
            if home.objects().is_s3() && failpoint.ends_with("deleted") {
                home.run(["gc"]).expect(0);
                age_condemned(&home).await;
            }
            let mut collector = home.command(["gc"]);
            let status = collector.env("FAILPOINT", failpoint).output().unwrap().status;
            assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint} was not hit");
            println!("{failpoint}: hit once");

            home.run(["gc"]).expect(0);
            assert_eq!(count_objects(&home).await, 1, "{failpoint}");
            age_condemned(&home).await;
            home.run(["gc"]).expect(0);
            assert_eq!(alice.downloads(&tenant, &kept).await, b"kept");
            let (main, directory) = home.databases().open();
            let place = tenants::list(&mut main.read().await.unwrap()).await.unwrap().remove(0).place;
            let mut connection = directory.open(&place).unwrap().read().await.unwrap();
            assert_eq!(files::list_object_keys(&mut connection).await.unwrap().len(), 1, "{failpoint}");
            assert_eq!(uploads::list_object_keys(&mut connection).await.unwrap(), Vec::<String>::new(), "{failpoint}");
        }
        home.settle(server).await;
    });
}

#[test]
fn a_crash_in_the_making_of_a_tenant_leaves_a_whole_one_or_none() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let of_files = if home.is_sqlite() { CREATE_FILE } else { &[] };
        let mut count = 0;
        for (failpoint, is_there) in CREATE_TENANT.iter().chain(of_files) {
            server.stop().await;
            server = doomed(&home, failpoint).await;
            let request = server.known(&alice).request(Method::POST, "/api/tenants").json(&json!({ "name": failpoint }));
            assert_died(request, &mut server, failpoint).await;

            server = home.serve().await;
            let alice = server.known(&alice);
            count += usize::from(*is_there);
            settled(&home, count).await;
            let listed = alice.get("/api/tenants").await.expect(200);
            let made: Vec<_> = listed.items().iter().filter(|tenant| tenant["name"] == *failpoint).collect();
            assert_eq!(made.len(), usize::from(*is_there), "{failpoint}: {}", listed.json);
            if let Some(tenant) = made.first() {
                alice.uploads(tenant["id"].as_str().unwrap(), "a.txt", "a").await.expect(201);
            }
        }
        home.settle(server).await;
    });
}

#[test]
fn a_crash_in_the_removal_of_a_failed_tenant_is_made_good() {
    repeatedly(async || {
        let home = Home::new();
        if !home.is_sqlite() {
            // What makes the server refuse a database there is not to be had so simply; the steps are the same.
            return;
        }
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        for failpoint in GIVE_UP {
            server.stop().await;
            server = doomed(&home, failpoint).await;
            // In the place of the folder: no tenant can be made.
            let folder = home.path().join("tenants");
            fs::write(&folder, "").unwrap();
            let request = server.known(&alice).request(Method::POST, "/api/tenants").json(&json!({ "name": "Acme" }));
            assert_died(request, &mut server, failpoint).await;
            fs::remove_file(folder).unwrap();
            server = home.serve().await;
            settled(&home, 0).await;
        }
        home.settle(server).await;
    });
}

/// How a deletion that was interrupted is gone on with.
#[derive(Clone, Copy, Debug)]
enum Resumed {
    ByTheServer,
    ByTheCommand,
}

#[test]
fn a_crash_in_the_deletion_of_a_tenant_is_made_good() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let kept = alice.creates_tenant("Kept").await;
        let document = alice.uploads(&kept, "kept.txt", "kept").await.expect(201).id();
        for resumed in [Resumed::ByTheServer, Resumed::ByTheCommand] {
            for (failpoint, has_begun) in DELETE_TENANT {
                let tenant = server.known(&alice).creates_tenant(failpoint).await;
                for content in ["a", "b", "c"] {
                    server.known(&alice).uploads(&tenant, "lost.txt", content).await.expect(201);
                }
                let delete = ["tenants", "delete", &tenant, "--hard", "--confirm", failpoint];
                let status = home.command(delete).env("FAILPOINT", failpoint).output().unwrap().status;
                assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint} was not hit");
                println!("{failpoint}: hit once");
                if !has_begun {
                    server.known(&alice).uploads(&tenant, "more.txt", "it is there as before").await.expect(201);
                }

                match (resumed, *has_begun) {
                    (Resumed::ByTheServer, true) => {
                        server.stop().await;
                        server = home.serve().await;
                    }
                    // What was confirmed once is not asked for again.
                    (Resumed::ByTheCommand, true) => drop(home.run(&delete[..4]).expect(0)),
                    (_, false) => drop(home.run(delete).expect(0)),
                }
                let id: TenantId = tenant.parse().unwrap();
                let tombstone = tombstone_of(&home, id).await;
                assert_eq!(tombstone.name, *failpoint);
                let (_, directory) = home.databases().open();
                assert!(!directory.exists(&tombstone.place).await.unwrap(), "{failpoint}, {resumed:?}: its database is there");
                let object = storage_key(&server.known(&alice), &kept, &document).await;
                let is_there = home.objects().open().head(&object).await;
                assert_eq!(home.object_keys().await, BTreeSet::from([object]), "{failpoint}, {resumed:?}: {is_there:?}");
                home.audited(id, "tenant.deleted").await;

                let alice = server.known(&alice);
                alice.get(&format!("/api/tenants/{tenant}")).await.expect_error(404, "tenant_not_found");
                assert_eq!(alice.get("/api/tenants").await.expect(200).items().len(), 1);
                assert_eq!(alice.downloads(&kept, &document).await, b"kept");
            }
        }
        home.settle(server).await;
    });
}

/// The key of a document's object.
async fn storage_key(alice: &Persona, tenant: &str, document: &str) -> String {
    let found = alice.get(&format!("/api/tenants/{tenant}/documents/{document}")).await.expect(200);
    found.data()["file"]["s3_path"].as_str().unwrap().to_owned()
}

/// Waits for the end of a deletion.
pub(crate) async fn tombstone_of(home: &Home, tenant_id: TenantId) -> Tombstone {
    let (main, _) = home.databases().open();
    let deleted = async {
        loop {
            if let Some(tombstone) = tombstones::find(&mut main.read().await.unwrap(), tenant_id).await.unwrap() {
                break tombstone;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, deleted).await.expect("the deletion is not completed")
}

/// Waits until no tenant is half made, and checks that there is one database for each, and nothing else.
async fn settled(home: &Home, count: usize) {
    let (main, _) = home.databases().open();
    let resumed = async {
        loop {
            let tenants = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
            if tenants.iter().all(|tenant| tenant.provisioning == Provisioning::Active) {
                break tenants;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let tenants = tokio::time::timeout(PATIENCE, resumed).await.expect("a tenant stayed half made");
    assert_eq!(tenants.len(), count, "{tenants:?}");
    let wanted: BTreeSet<_> = tenants.iter().map(|tenant| format!("{}.sqlite3", tenant.place.database)).collect();
    if home.is_sqlite() {
        let folder = fs::read_dir(home.path().join("tenants"));
        let found = folder.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // The logs of open files aside.
        let found: BTreeSet<_> = found.filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).collect();
        assert_eq!(found, wanted);
    }
}

#[test]
fn a_crash_in_a_login_or_a_refresh_locks_nobody_out() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let mut alice = server.user("alice").await;
        for failpoint in LOG_IN {
            server.stop().await;
            server = doomed(&home, failpoint).await;
            let credentials = json!({ "email": alice.email, "password": "correct horse 1" });
            assert_died(server.stranger().request(Method::POST, "/api/auth/login").json(&credentials), &mut server, failpoint).await;
            server = home.serve().await;
            // The old session lives, and a new one can be had.
            server.known(&alice).get("/api/users/me").await.expect(200);
            alice = server.known(&alice).logged_in().await;
        }
        for failpoint in REFRESH {
            server.stop().await;
            server = doomed(&home, failpoint).await;
            let token = alice.refresh_token.clone().unwrap();
            let refresh = |server: &Server| server.stranger().with_token(&token).request(Method::POST, "/api/auth/refresh");
            assert_died(refresh(&server), &mut server, failpoint).await;
            server = home.serve().await;
            // The client retries with the token that it has, and gets a good pair.
            let pair = testkit::Reply::to(refresh(&server)).await.expect(200);
            let token = |name: &str| pair.data()[name].as_str().unwrap().to_owned();
            let next = server.stranger().with_token(token("refresh_token")).request(Method::POST, "/api/auth/refresh");
            let pair = testkit::Reply::to(next).await.expect(200);
            alice.access_token = Some(pair.data()["access_token"].as_str().unwrap().to_owned());
            alice.refresh_token = Some(pair.data()["refresh_token"].as_str().unwrap().to_owned());
            server.known(&alice).get("/api/users/me").await.expect(200);
        }
        server.stop().await;
    });
}

#[test]
fn a_failpoint_can_wait_for_its_turn() {
    let home = Home::new();
    let init = |failpoint: &str| {
        let variables = [
            ("ADMIN_EMAIL", "ada@example.com"),
            ("ADMIN_PASSWORD", "correct horse 1"),
            ("ADMIN_FIRST_NAME", "Ada"),
            ("ADMIN_LAST_NAME", "Lovelace"),
            ("TEST_TENANT_NAME", "Acme"),
            ("FAILPOINT", failpoint),
        ];
        Ran::of(home.command(["init", "--create-admin", "--create-test-tenant"]).envs(variables)).code
    };
    assert_eq!(init("tenant.reserved:2"), Some(0));
    home.run(["init", "--drop-all", "--confirm", "DELETE EVERYTHING"]).expect(0);
    assert_eq!(init("tenant.reserved:1"), None);
    home.run(["init", "--drop-all", "--confirm", "DELETE EVERYTHING"]).expect(0);
}

/// Puts the clock of abandoned uploads forward, since they are kept for an hour.
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

/// Puts the clock of all that is condemned forward, since it is remembered for a time where the store settles late.
async fn age_condemned(home: &Home) {
    let (main, directory) = home.databases().open();
    for tenant in tenants::list(&mut main.read().await.unwrap()).await.unwrap() {
        let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
        let long_ago = tenant.created_at.minus(Duration::from_secs(24 * 3600));
        for age in [
            "UPDATE files SET condemned_at = $1 WHERE condemned_at IS NOT NULL",
            "UPDATE uploads SET condemned_at = $1 WHERE condemned_at IS NOT NULL",
        ] {
            tx.execute(age, vec![long_ago.into()]).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

/// Leaves what a crash in an upload leaves: a note that has expired, and an object.
async fn leave_upload(home: &Home, name: &str) {
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
