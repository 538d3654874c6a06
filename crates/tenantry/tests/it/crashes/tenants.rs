//! Crashes in the creation and the deletion of tenants.

use std::{collections::BTreeSet, fs, time::Duration};

use domain::{Provisioning, TenantId, Tombstone};
use models::{tenants, tombstones};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use testkit::Persona;

use crate::{
    process::{Home, WAIT_TIMEOUT},
    scene::{Scene, repeatedly},
};

/// The creation of a tenant, and whether the tenant exists afterwards.
pub(crate) const CREATE: &[(&str, bool)] = &[
    ("tenant.reserving", false),
    ("tenant.reserved", true),
    ("tenant.created", true),
    ("tenant.migrated", true),
    ("tenant.activating", true),
    ("tenant.active", true),
];
/// The creation of an SQLite database.
pub(crate) const CREATE_FILE: &[(&str, bool)] = &[("tenant.file_written", true), ("tenant.file_renamed", true)];
/// The permanent deletion of a tenant, and whether it has begun afterwards.
pub(crate) const DELETE: &[(&str, bool)] = &[
    ("tenant.deletion_marking", false),
    ("tenant.deletion_marked", true),
    ("tenant.database_dropped", true),
    ("tenant.object_deleted", true),
    ("tenant.objects_deleted", true),
    ("tenant.forgetting", true),
    ("tenant.forgotten", true),
];
/// The discarding of a tenant whose creation failed.
pub(crate) const DISCARD: &[&str] = &["tenant.given_up"];

fn create(scene: &Scene, name: &str) -> RequestBuilder {
    scene.alice.request(Method::POST, "/api/tenants").json(&json!({ "name": name }))
}

#[test]
fn a_crash_in_the_creation_of_a_tenant_leaves_a_whole_one_or_none() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        let of_files = if scene.home.is_sqlite() { CREATE_FILE } else { &[] };
        let mut count = 1;
        for (failpoint, exists) in CREATE.iter().chain(of_files) {
            scene.crash(failpoint, |scene| create(scene, failpoint)).await;
            count += usize::from(*exists);
            assert_provisioned(&scene.home, count).await;
            let listed = scene.alice.get("/api/tenants").await.expect(200);
            let created: Vec<_> = listed.items().iter().filter(|tenant| tenant["name"] == *failpoint).collect();
            assert_eq!(created.len(), usize::from(*exists), "{failpoint}: {}", listed.json);
            if let Some(tenant) = created.first() {
                scene.alice.uploads(tenant["id"].as_str().unwrap(), "a.txt", "a").await.expect(201);
            }
        }
        scene.stop_and_check().await;
    });
}

#[test]
fn a_crash_while_a_failed_tenant_is_discarded_is_repaired() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        if !scene.home.is_sqlite() {
            // The steps are the same on PostgreSQL, where a server cannot easily be made to refuse a database.
            return scene.stop_and_check().await;
        }
        let (tenants, moved) = (scene.home.path().join("tenants"), scene.home.path().join("moved"));
        for failpoint in DISCARD {
            scene.restart_at(failpoint).await;
            // A file in place of the folder: no tenant can be created.
            fs::rename(&tenants, &moved).unwrap();
            fs::write(&tenants, "").unwrap();
            assert!(create(&scene, "Second").timeout(WAIT_TIMEOUT).send().await.is_err(), "{failpoint} was not hit");
            scene.assert_aborted(failpoint).await;
            fs::remove_file(&tenants).unwrap();
            fs::rename(&moved, &tenants).unwrap();
            scene.start().await;
            assert_provisioned(&scene.home, 1).await;
        }
        scene.stop_and_check().await;
    });
}

/// Who resumes a deletion that was interrupted.
#[derive(Clone, Copy, Debug)]
enum ResumedBy {
    Server,
    Command,
}

#[test]
fn a_crash_in_the_deletion_of_a_tenant_is_repaired() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        let document = scene.alice.uploads(&scene.tenant, "kept.txt", "kept").await.expect(201).id();
        for resumed_by in [ResumedBy::Server, ResumedBy::Command] {
            for (failpoint, has_begun) in DELETE {
                let deleted = crash_in_deletion(&mut scene, failpoint, *has_begun, resumed_by).await;
                let tombstone = wait_for_tombstone(&scene.home, deleted).await;
                assert_eq!(tombstone.name, *failpoint);
                let (_, directory) = scene.home.databases().open();
                assert!(!directory.exists(&tombstone.place).await.unwrap(), "{failpoint}, {resumed_by:?}: its database exists");
                let kept = object_key(&scene.alice, &scene.tenant, &document).await;
                let head = scene.home.objects().open().head(&kept).await;
                assert_eq!(scene.home.object_keys().await, BTreeSet::from([kept]), "{failpoint}, {resumed_by:?}: {head:?}");
                scene.home.audited(deleted, "tenant.deleted").await;
                scene.alice.get(&format!("/api/tenants/{deleted}")).await.expect_error(404, "tenant_not_found");
                assert_eq!(scene.alice.get("/api/tenants").await.expect(200).items().len(), 1);
                assert_eq!(scene.alice.downloads(&scene.tenant, &document).await, b"kept");
            }
        }
        scene.stop_and_check().await;
    });
}

/// Interrupts the deletion of a new tenant, which is named like the failpoint, and resumes it.
async fn crash_in_deletion(scene: &mut Scene, failpoint: &str, has_begun: bool, resumed_by: ResumedBy) -> TenantId {
    let tenant = scene.alice.creates_tenant(failpoint).await;
    for content in ["a", "b", "c"] {
        scene.alice.uploads(&tenant, "lost.txt", content).await.expect(201);
    }
    let delete = ["tenants", "delete", &tenant, "--hard", "--confirm", failpoint];
    scene.home.crash(&delete, failpoint);
    if !has_begun {
        scene.alice.uploads(&tenant, "more.txt", "the tenant is unchanged").await.expect(201);
    }
    match (resumed_by, has_begun) {
        (ResumedBy::Server, true) => scene.restart().await,
        // The first confirmation is sufficient.
        (ResumedBy::Command, true) => drop(scene.home.run(&delete[..4]).expect(0)),
        (_, false) => drop(scene.home.run(delete).expect(0)),
    }
    tenant.parse().unwrap()
}

/// The key of a document's object.
async fn object_key(alice: &Persona, tenant: &str, document: &str) -> String {
    let found = alice.get(&format!("/api/tenants/{tenant}/documents/{document}")).await.expect(200);
    found.data()["file"]["s3_path"].as_str().unwrap().to_owned()
}

/// Waits for the end of a deletion.
pub(crate) async fn wait_for_tombstone(home: &Home, tenant_id: TenantId) -> Tombstone {
    let (main, _) = home.databases().open();
    let deleted = async {
        loop {
            if let Some(tombstone) = tombstones::find(&mut main.read().await.unwrap(), tenant_id).await.unwrap() {
                break tombstone;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, deleted).await.expect("the deletion does not complete")
}

/// Waits until every tenant is active, and asserts that there are `count` tenants and no other databases.
async fn assert_provisioned(home: &Home, count: usize) {
    let (main, _) = home.databases().open();
    let provisioned = async {
        loop {
            let tenants = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
            if tenants.iter().all(|tenant| tenant.provisioning == Provisioning::Active) {
                break tenants;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let tenants = tokio::time::timeout(WAIT_TIMEOUT, provisioned).await.expect("a tenant is not provisioned");
    assert_eq!(tenants.len(), count, "{tenants:?}");
    let expected: BTreeSet<_> = tenants.iter().map(|tenant| format!("{}.sqlite3", tenant.place.database)).collect();
    if home.is_sqlite() {
        let folder = fs::read_dir(home.path().join("tenants"));
        let found = folder.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // Without the logs of open databases.
        let found: BTreeSet<_> = found.filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).collect();
        assert_eq!(found, expected);
    }
}
