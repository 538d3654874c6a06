//! Versions and the trash: a crash at every step.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use testkit::Reply;

use crate::scene::{Scene, repeatedly};

/// A new version, and the number of versions afterwards.
pub(crate) const VERSIONS: &[(&str, u64)] = &[
    ("upload.noted", 1),
    ("upload.stored", 1),
    ("upload.committing", 1),
    ("upload.committed", 2),
    ("version.restoring", 2),
    ("version.restored", 3),
    ("version.pruning", 3),
    ("version.pruned", 3),
];
/// A restore from the trash and a permanent deletion, and whether it is done afterwards.
pub(crate) const TRASH: &[(&str, bool)] =
    &[("document.restoring", false), ("document.restored", true), ("document.purging", false), ("document.purged", true)];

fn replace(scene: &Scene, path: &str, content: String) -> RequestBuilder {
    scene.alice.request(Method::PUT, &format!("{path}/content")).body(content)
}

#[test]
fn a_crash_in_a_new_version_loses_no_content() {
    repeatedly(async || {
        let mut scene = Scene::with(&[("DOCUMENT_VERSIONS_KEPT", "2")]).await;
        for (failpoint, version) in VERSIONS {
            let id = scene.alice.uploads(&scene.tenant, "a.txt", format!("first {failpoint}")).await.expect(201).id();
            let path = scene.documents(&format!("/{id}"));
            if failpoint.starts_with("version") {
                Reply::to(replace(&scene, &path, format!("second {failpoint}"))).await.expect(200);
                scene.crash(failpoint, |scene| scene.alice.request(Method::POST, &format!("{path}/versions/1/restore"))).await;
            } else {
                scene.crash(failpoint, |scene| replace(scene, &path, format!("second {failpoint}"))).await;
            }
            assert_eq!(scene.alice.get(&path).await.expect(200).data()["version"].as_u64(), Some(*version), "{failpoint}");
            let expected = if version % 2 == 1 { "first" } else { "second" };
            assert_eq!(scene.alice.downloads(&scene.tenant, &id).await, format!("{expected} {failpoint}").into_bytes());
            // The next version succeeds, and prunes the oldest, wherever the crash was.
            Reply::to(replace(&scene, &path, format!("last {failpoint}"))).await.expect(200);
            let listed = scene.alice.get(&format!("{path}/versions")).await.expect(200);
            assert_eq!(listed.items()[0]["version"], version + 1);
            assert_eq!(listed.items().len(), 2, "{failpoint}: {}", listed.json);
        }
        scene.home.run(["gc"]).expect(0);
        scene.home.run(["verify", "--deep"]).expect(0);
        scene.stop_and_check().await;
    });
}

#[test]
fn a_crash_in_a_restore_or_purge_has_no_effect_or_the_whole() {
    repeatedly(async || {
        let mut scene = Scene::with(&[("TRASH_RETENTION", "3600")]).await;
        for (failpoint, is_done) in TRASH {
            let id = scene.alice.uploads(&scene.tenant, "a.txt", *failpoint).await.expect(201).id();
            let document = scene.documents(&format!("/{id}"));
            scene.alice.delete(&document).await.expect(200);
            let restores = failpoint.starts_with("document.rest");
            let (method, path) = if restores {
                (Method::POST, scene.documents(&format!("/trash/{id}/restore")))
            } else {
                (Method::DELETE, scene.documents(&format!("/trash/{id}")))
            };
            scene.crash(failpoint, |scene| scene.alice.request(method.clone(), &path)).await;
            let again = Reply::to(scene.alice.request(method, &path)).await;
            assert_eq!(again.status, if *is_done { 404 } else { 200 }, "{failpoint}");
            assert_eq!(scene.alice.get(&document).await.status, if restores { 200 } else { 404 }, "{failpoint}");
        }
        scene.stop_and_check().await;
    });
}

/// The findings of `verify --json`: keys with their problems, sorted.
fn findings(report: &Value) -> Vec<(Value, Value)> {
    let findings = report["findings"].as_array().unwrap().iter();
    sorted(findings.map(|finding| (finding["key"].clone(), finding["problem"].clone())).collect())
}

fn sorted(mut findings: Vec<(Value, Value)>) -> Vec<(Value, Value)> {
    findings.sort_by_key(|(key, _)| key.to_string());
    findings
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_reports_missing_changed_and_unknown_objects() {
    let mut scene = Scene::new().await;
    let Scene { home, alice, tenant, .. } = &scene;
    let clean = home.run(["verify", "--json"]).expect(0).json();
    assert_eq!((&clean["files"], &clean["findings"]), (&json!(0), &json!([])));
    let mut keys = Vec::new();
    for content in ["missing", "damaged", "longer", "whole"] {
        keys.push(alice.uploads(tenant, "a.txt", content).await.expect(201).data()["file"]["s3_path"].as_str().unwrap().to_owned());
    }
    home.run(["verify", "--deep"]).expect(0);
    for key in &keys[..3] {
        home.objects().open().delete(key).await.unwrap();
    }
    home.objects().leave(&keys[1], b"DAMAGED").await;
    home.objects().leave(&keys[2], b"longer than it was").await;
    let stray = format!("tenants/{tenant}/files/00/00/stray");
    home.objects().leave(&stray, b"stray").await;

    let expected = |problems: &[(&str, &str)]| sorted(problems.iter().map(|(key, problem)| (json!(key), json!(problem))).collect());
    let shallow = [(keys[0].as_str(), "missing"), (keys[2].as_str(), "wrong_size"), (stray.as_str(), "unknown")];
    assert_eq!(findings(&home.run(["verify", "--json"]).expect(1).json()), expected(&shallow));
    let deep = home.run(["verify", "--deep", "--tenant", "Acme", "--json"]).expect(1).json();
    assert_eq!(findings(&deep), expected(&[&shallow[..], &[(keys[1].as_str(), "wrong_hash")]].concat()));
    let words = home.run(["verify", "--deep"]).expect(1).out;
    assert!(
        words.contains("WRONG HASH") && words.contains("MISSING: a document's content is lost") && words.contains("4 problems"),
        "{words}"
    );
    home.run(["verify", "--tenant", "Unknown"]).expect(1);
    // Without the checks of `stop_and_check`, which would fail.
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_collects_garbage_and_sets_quotas() {
    let scene = Scene::with(&[("TENANT_MAX_DOCUMENTS", "3")]).await;
    let Scene { home, alice, tenant, .. } = &scene;
    let id = alice.uploads(tenant, "a.txt", "12345").await.expect(201).id();
    alice.delete(&scene.documents(&format!("/{id}"))).await.expect(200);
    let would = home.run(["gc", "--dry-run", "--tenant", "Acme", "--json"]).expect(0).json();
    assert_eq!((&would["dry_run"], &would["files"], &would["bytes"]), (&json!(true), &json!(1), &json!(5)));
    let collected = home.run(["gc", "--tenant", "Acme"]).expect(0).out;
    assert_eq!(collected, "Collected 0 documents from the trash, 1 files (5 bytes) and 0 abandoned uploads\n");
    home.run(["gc", "--tenant", "Unknown"]).expect(1);

    home.run(["tenants", "set-quota", "Acme", "--bytes", "1.5KB"]).expect(2);
    home.run(["tenants", "set-quota", "Acme"]).expect(2);
    let set = home.run(["tenants", "set-quota", "Acme", "--bytes", "1kB"]).expect(0).out;
    assert_eq!(set, "Quota of tenant Acme: bytes 1000, documents default\n");
    alice.uploads(tenant, "a.txt", vec![b'a'; 1001]).await.expect_error(403, "quota_exceeded");
    for name in ["a.txt", "b", "c"] {
        alice.uploads(tenant, name, vec![b'a'; 1000]).await.expect(201);
    }
    alice.uploads(tenant, "d", vec![b'a'; 1000]).await.expect_error(403, "quota_exceeded");
    let set = home.run(["tenants", "set-quota", "Acme", "--documents", "unlimited", "--json"]).expect(0).json();
    assert_eq!((&set["max_bytes"], &set["max_documents"]), (&json!(1000), &json!("unlimited")));
    alice.uploads(tenant, "d", vec![b'a'; 1000]).await.expect(201);
    let shown = home.run(["tenants", "show", "Acme"]).expect(0).out;
    assert!(shown.contains("Contents: 4 documents and 0 in the trash\nStorage:  1 files, 1000 bytes of 1000"), "{shown}");
    scene.stop_and_check().await;
}
