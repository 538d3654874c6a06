//! Versions and the trash: a crash at every step.

use std::os::unix::process::ExitStatusExt;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use testkit::{Persona, Reply};

use crate::process::{Home, PATIENCE, Server, repeatedly};

/// The steps of new contents: how many there are after a crash there.
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
/// The steps of bringing a document back, and of removing it for good: whether it is done after a crash there.
pub(crate) const TRASH: &[(&str, bool)] =
    &[("document.restoring", false), ("document.restored", true), ("document.purging", false), ("document.purged", true)];

async fn dies(request: reqwest::RequestBuilder, server: &mut Server, failpoint: &str) {
    assert!(request.timeout(PATIENCE).send().await.is_err(), "{failpoint} was not hit");
    assert_eq!(server.ended().await.signal(), Some(Signal::ABORT.as_raw()), "{failpoint}: {}", server.log());
    println!("{failpoint}: hit once");
}

async fn version_of(alice: &Persona, path: &str) -> u64 {
    alice.get(path).await.expect(200).data()["version"].as_u64().unwrap()
}

#[test]
fn a_crash_in_a_new_version_loses_no_content() {
    repeatedly(async || {
        let home = Home::new();
        let keep = ("DOCUMENT_VERSIONS_KEPT", "2");
        let mut server = home.serve_with(&[keep]).await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        for (failpoint, version) in VERSIONS {
            let first = server.known(&alice).uploads(&tenant, "a.txt", format!("first {failpoint}")).await.expect(201).id();
            let path = format!("/api/tenants/{tenant}/documents/{first}");
            let replace = |server: &Server, content: &str| {
                server.known(&alice).request(Method::PUT, &format!("{path}/content")).body(format!("{content} {failpoint}"))
            };
            let restore = |server: &Server| server.known(&alice).request(Method::POST, &format!("{path}/versions/1/restore"));
            if failpoint.starts_with("version") {
                Reply::to(replace(&server, "second")).await.expect(200);
            }
            server.stop().await;
            server = home.serve_with(&[keep, ("FAILPOINT", failpoint)]).await;
            let request = if failpoint.starts_with("version") { restore(&server) } else { replace(&server, "second") };
            dies(request, &mut server, failpoint).await;

            server = home.serve_with(&[keep]).await;
            let alice = server.known(&alice);
            assert_eq!(version_of(&alice, &path).await, *version, "{failpoint}");
            let expected = if version % 2 == 1 { "first" } else { "second" };
            assert_eq!(alice.downloads(&tenant, &first).await, format!("{expected} {failpoint}").into_bytes());
            // The next one goes, and the oldest are pruned, whatever was left of that.
            Reply::to(replace(&server, "last")).await.expect(200);
            let listed = alice.get(&format!("{path}/versions")).await.expect(200);
            assert_eq!(listed.items()[0]["version"], version + 1);
            assert_eq!(listed.items().len(), 2, "{failpoint}: {}", listed.json);
        }
        home.run(["gc"]).expect(0);
        home.run(["verify", "--deep"]).expect(0);
        home.settle(server).await;
    });
}

#[test]
fn a_crash_at_the_trash_keeps_the_document_there_or_does_what_was_asked() {
    repeatedly(async || {
        let home = Home::new();
        let keep = ("TRASH_RETENTION", "3600");
        let mut server = home.serve_with(&[keep]).await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        for (failpoint, is_done) in TRASH {
            let id = server.known(&alice).uploads(&tenant, "a.txt", *failpoint).await.expect(201).id();
            let documents = format!("/api/tenants/{tenant}/documents");
            server.known(&alice).delete(&format!("{documents}/{id}")).await.expect(200);
            server.stop().await;
            server = home.serve_with(&[keep, ("FAILPOINT", failpoint)]).await;
            let restores = failpoint.starts_with("document.rest");
            let (method, path) = if restores {
                (Method::POST, format!("{documents}/trash/{id}/restore"))
            } else {
                (Method::DELETE, format!("{documents}/trash/{id}"))
            };
            dies(server.known(&alice).request(method.clone(), &path), &mut server, failpoint).await;

            server = home.serve_with(&[keep]).await;
            let alice = server.known(&alice);
            let again = Reply::to(alice.request(method, &path)).await;
            assert_eq!(again.status, if *is_done { 404 } else { 200 }, "{failpoint}");
            assert_eq!(alice.get(&format!("{documents}/{id}")).await.status, if restores { 200 } else { 404 }, "{failpoint}");
        }
        home.settle(server).await;
    });
}

#[test]
fn what_is_wrong_with_objects_is_found_and_told() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let home = Home::new();
        let server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let clean = home.run(["verify", "--json"]).expect(0).json();
        assert_eq!((&clean["files"], &clean["findings"]), (&json!(0), &json!([])));
        let mut keys = Vec::new();
        for content in ["missing", "damaged", "longer", "whole"] {
            keys.push(alice.uploads(&tenant, "a.txt", content).await.expect(201).data()["file"]["s3_path"].as_str().unwrap().to_owned());
        }
        home.run(["verify", "--deep"]).expect(0);
        let key = |n: usize| keys[n].as_str();
        for n in 0..3 {
            home.objects().open().delete(key(n)).await.unwrap();
        }
        home.objects().leave(key(1), b"DAMAGED").await;
        home.objects().leave(key(2), b"longer than it was").await;
        let stray = format!("tenants/{tenant}/files/00/00/stray");
        home.objects().leave(&stray, b"stray").await;

        let found = home.run(["verify", "--json"]).expect(1).json();
        let problems = |found: &serde_json::Value| {
            let each = found["findings"].as_array().unwrap().iter();
            let mut each: Vec<_> = each.map(|finding| (finding["key"].clone(), finding["problem"].clone())).collect();
            each.sort_by_key(|(key, _)| key.to_string());
            each
        };
        let expected = |problems: &[(&str, &str)]| {
            let mut each: Vec<_> = problems.iter().map(|(key, problem)| (json!(key), json!(problem))).collect();
            each.sort_by_key(|(key, _)| key.to_string());
            each
        };
        let shallow = [(key(0), "missing"), (key(2), "wrong_size"), (stray.as_str(), "unknown")];
        assert_eq!(problems(&found), expected(&shallow));
        let deep = home.run(["verify", "--deep", "--tenant", "Acme", "--json"]).expect(1).json();
        assert_eq!(problems(&deep), expected(&[&shallow[..], &[(key(1), "wrong_hash")]].concat()));
        let words = home.run(["verify", "--deep"]).expect(1).out;
        assert!(
            words.contains("WRONG HASH") && words.contains("MISSING: a document's content is lost") && words.contains("4 problems"),
            "{words}"
        );
        home.run(["verify", "--tenant", "Nobody"]).expect(1);
        server.stop().await;
    });
}

#[test]
fn an_operator_collects_and_sets_quotas() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let home = Home::new();
        let server = home.serve_with(&[("TENANT_MAX_DOCUMENTS", "3")]).await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let id = alice.uploads(&tenant, "a.txt", "12345").await.expect(201).id();
        alice.delete(&format!("/api/tenants/{tenant}/documents/{id}")).await.expect(200);
        let would = home.run(["gc", "--dry-run", "--tenant", "Acme", "--json"]).expect(0).json();
        assert_eq!((&would["dry_run"], &would["files"], &would["bytes"]), (&json!(true), &json!(1), &json!(5)));
        let did = home.run(["gc", "--tenant", "Acme"]).expect(0).out;
        assert_eq!(did, "Collected 0 documents from the trash, 1 files (5 bytes) and 0 abandoned uploads\n");
        home.run(["gc", "--tenant", "Nobody"]).expect(1);

        home.run(["tenants", "set-quota", "Acme", "--bytes", "1.5KB"]).expect(2);
        home.run(["tenants", "set-quota", "Acme"]).expect(2);
        let told = home.run(["tenants", "set-quota", "Acme", "--bytes", "1kB"]).expect(0).out;
        assert_eq!(told, "Tenant Acme may store: bytes 1000, documents as usual\n");
        alice.uploads(&tenant, "a.txt", vec![b'a'; 1001]).await.expect_error(403, "quota_exceeded");
        alice.uploads(&tenant, "a.txt", vec![b'a'; 1000]).await.expect(201);
        for name in ["b", "c"] {
            alice.uploads(&tenant, name, vec![b'a'; 1000]).await.expect(201);
        }
        alice.uploads(&tenant, "d", vec![b'a'; 1000]).await.expect_error(403, "quota_exceeded");
        let set = home.run(["tenants", "set-quota", "Acme", "--documents", "unlimited", "--json"]).expect(0).json();
        assert_eq!((&set["max_bytes"], &set["max_documents"]), (&json!(1000), &json!("unlimited")));
        alice.uploads(&tenant, "d", vec![b'a'; 1000]).await.expect(201);
        let shown = home.run(["tenants", "show", "Acme"]).expect(0).out;
        assert!(shown.contains("Contents: 4 documents and 0 in the trash\nStorage:  1 files, 1000 bytes of 1000"), "{shown}");
        home.settle(server).await;
    });
}
