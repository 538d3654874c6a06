//! `tenantry tenants delete`

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use database::params;
use domain::{Provisioning, TenantId, Timestamp};
use futures_util::{StreamExt, stream};
use models::{tenants, tombstones};
use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use testkit::{Persona, Reply};
use tokio::sync::Notify;

use super::{UNREACHABLE, json_of, states};
use crate::{
    process::{CommandOutput, Home},
    scene::{Scene, crash},
};

async fn has_objects(home: &Home, tenant: &str) -> bool {
    let keys = home.objects().list(&[tenant.parse().unwrap()]).await;
    keys.iter().any(|key| key.starts_with(&format!("tenants/{tenant}/")))
}

#[tokio::test]
async fn a_deleted_tenant_leaves_a_tombstone() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let (tenant, other) = (alice.creates_tenant("Acme").await, alice.creates_tenant("Other").await);
    alice.invites(&bob, &tenant, "user").await;
    let document = alice.uploads(&tenant, "a.txt", "the content").await.expect(201).id();
    let kept = alice.uploads(&other, "a.txt", "the content").await.expect(201).id();
    let database = json_of(&home, &["show", &tenant], 0)["database"].clone();
    let id: TenantId = tenant.parse().unwrap();
    let (main, directory) = home.databases().open();
    let report = json_of(&home, &["delete", "Acme", "--hard", "--confirm", "Acme"], 0);
    assert_eq!((&report["id"], &report["database"], &report["is_complete"]), (&json!(tenant), &database, &json!(true)));
    assert_eq!(report["left"], json!({ "database": false, "objects": 0, "row": false }));

    let mut connection = main.read().await.unwrap();
    let tombstone = tombstones::find(&mut connection, id).await.unwrap().unwrap();
    assert_eq!((tombstone.name.as_str(), tombstone.deleted_by), ("Acme", None));
    assert_eq!(tenants::find(&mut connection, id).await.unwrap(), None);
    assert!(!directory.exists(&tombstone.place).await.unwrap() && !has_objects(&home, &tenant).await);
    drop(connection);
    assert_eq!(home.audited(id, "tenant.deleted").await, json!({ "hard": true, "name": "Acme" }));
    let mut connection = main.read().await.unwrap();
    let left = connection.query("SELECT tenant_id FROM outbox WHERE published_at IS NOT NULL", params![]).await.unwrap();
    let left: Vec<Option<TenantId>> = left.into_iter().map(|mut row| row.take().unwrap()).collect();
    assert!(left.contains(&None), "{left:?}");
    drop(connection);

    for member in [&alice, &bob] {
        member.get(&format!("/api/tenants/{tenant}/documents/{document}")).await.expect_error(404, "tenant_not_found");
        let stranger = member.get("/api/tenants/00000000-0000-7000-8000-000000000000").await;
        let gone = member.get(&format!("/api/tenants/{tenant}")).await;
        assert_eq!(gone.without_id_and_date(), stranger.without_id_and_date());
    }
    assert_eq!(alice.downloads(&other, &kept).await, b"the content");
    assert_eq!(alice.get("/api/tenants").await.expect(200).items().len(), 1);

    let again = home.run(["tenants", "delete", &tenant, "--hard"]).expect(0).out;
    let when = format!("tenant Acme ({tenant}) was deleted at {}", tombstone.deleted_at);
    assert!(again.starts_with(&format!("Nothing to do: {when}:\n")) && !again.contains("LEFT"), "{again}");
    assert_eq!(home.run(["tenants", "show", &tenant]).error_line(1), format!("tenantry: {when}"));
    assert_eq!(json_of(&home, &["delete", &tenant, "--hard"], 0), report);
    home.stop_and_check(server).await;
}

/// The check of a deletion reports late objects, and the collector removes them for a day.
#[tokio::test]
async fn late_objects_of_deleted_tenants_are_collected() {
    let home = Home::new();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let tenants = [alice.creates_tenant("Young").await, alice.creates_tenant("Old").await];
    for (tenant, name) in tenants.iter().zip(["Young", "Old"]) {
        home.run(["tenants", "delete", tenant, "--hard", "--confirm", name]).expect(0);
        home.objects().leave(&format!("tenants/{tenant}/files/ab/cd/late"), b"late").await;
        let report = json_of(&home, &["delete", tenant, "--hard"], 1);
        assert_eq!((&report["left"]["objects"], &report["is_complete"]), (&json!(1), &json!(false)));
    }
    let text = home.run(["tenants", "delete", &tenants[0], "--hard"]).expect(1).out;
    assert!(text.contains("objects: 1 LEFT; `tenantry gc` removes them"), "{text}");
    let backdate = async |by: i64| {
        let (main, _) = home.databases().open();
        let mut tx = main.begin().await.unwrap();
        let old: TenantId = tenants[1].parse().unwrap();
        let tombstone = tombstones::find(&mut tx, old).await.unwrap().unwrap();
        let then = Timestamp::from_seconds(tombstone.deleted_at.seconds() - by);
        tx.execute("UPDATE tenant_tombstones SET deleted_at = $2 WHERE tenant_id = $1", params![old, then]).await.unwrap();
        tx.commit().await.unwrap();
    };
    backdate(24 * 3600 + 60).await;
    let collected = home.run(["gc", "--json"]).expect(0).json();
    assert_eq!(collected["objects_of_deleted_tenants"], 1, "{collected}");
    assert!(!has_objects(&home, &tenants[0]).await && has_objects(&home, &tenants[1]).await);
    json_of(&home, &["delete", &tenants[0], "--hard"], 0);
    backdate(-3600).await;
    assert!(home.run(["gc"]).expect(0).out.contains("Collected 1 objects of deleted tenants"));
    home.stop_and_check(server).await;
}

/// A tenant that is marked for deletion does not exist for its members, although its data still exists.
#[tokio::test]
async fn a_tenant_that_is_being_deleted_cannot_be_used() {
    let scene = Scene::new().await;
    let Scene { home, alice, tenant, .. } = &scene;
    alice.uploads(tenant, "a.txt", "a").await.expect(201);
    for (failpoint, has_documents) in [("tenant.deletion_marked", true), ("tenant.database_dropped", false)] {
        crash(&mut home.command(["tenants", "delete", "Acme", "--hard", "--confirm", "Acme"]), failpoint);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let path = format!("/api/tenants/{tenant}");
        alice.get(&path).await.expect_error(404, "tenant_not_found");
        alice.put(&path, &json!({ "is_active": true })).await.expect_error(404, "tenant_not_found");
        alice.uploads(tenant, "b.txt", "b").await.expect_error(404, "tenant_not_found");
        assert_eq!(alice.get("/api/tenants").await.expect(200).items().len(), 0);
        let credentials = json!({ "email": alice.email, "password": testkit::PASSWORD });
        let login = scene.server().stranger().post("/api/auth/login", &credentials).await.expect(200);
        assert_eq!(login.data()["tenants"], json!([]));

        assert_eq!(states(home), ["deleting"]);
        let shown = json_of(home, &["show", "Acme"], i32::from(!has_documents));
        assert_eq!(shown["contents"].is_object(), has_documents, "{shown}");
        for command in ["activate", "deactivate"] {
            let line = home.run(["tenants", command, "Acme"]).error_line(1).to_owned();
            assert_eq!(line, format!("tenantry: tenant Acme ({tenant}) is being deleted"));
        }
        // A provisioning that was in progress cannot activate it.
        let (main, _) = home.databases().open();
        let (mut tx, id) = (main.begin().await.unwrap(), tenant.parse().unwrap());
        for state in [Provisioning::Active, Provisioning::Failed] {
            assert!(!tenants::set_provisioning(&mut tx, id, state, 1, Timestamp::from_micros(0)).await.unwrap());
        }
        assert_eq!(tenants::lock(&mut tx, id).await.unwrap(), None);
        drop(tx);
        assert_eq!(home.run(["gc", "--json"]).expect(0).json()["failed"], json!([]));
        assert_eq!(home.run(["migrate", "--json"]).expect(0).json()["tenants"], 0);
        home.run(["tenants", "delete", "Acme", "--hard", "--confirm", "Other"]).expect(1);
    }
    home.run(["tenants", "delete", "Acme", "--hard"]).expect(0);
    scene.stop_and_check().await;
}

#[tokio::test]
async fn a_deletion_continues_when_the_server_is_back() {
    let scene = Scene::new().await;
    let Scene { home, alice, tenant, .. } = &scene;
    alice.uploads(tenant, "a.txt", "a").await.expect(201);
    let delete = ["tenants", "delete", tenant, "--hard", "--confirm", "Acme"];
    let stopped = CommandOutput::of(home.command(delete).envs([UNREACHABLE]));
    assert!(stopped.error_line(1).contains("run the same command again to continue"), "{stopped:?}");
    assert_eq!(states(home), ["deleting"]);
    alice.get(&format!("/api/tenants/{tenant}")).await.expect_error(404, "tenant_not_found");
    assert!(has_objects(home, tenant).await, "objects are deleted after the database");
    home.run(delete).expect(0);
    scene.stop_and_check().await;
}

/// A tenant whose creation was interrupted can be deleted, and its creation is not resumed.
#[tokio::test]
async fn a_partly_created_tenant_is_deleted() {
    let home = Home::new();
    let server = home.serve().await;
    server.user("alice").await;
    for failpoint in ["tenant.reserved", "tenant.created", "tenant.migrated"] {
        home.crash(&["tenants", "create", failpoint, "--admin", "alice@example.com"], failpoint);
        let report = json_of(&home, &["delete", failpoint, "--hard", "--confirm", failpoint], 0);
        assert_eq!(report["is_complete"], true);
    }
    assert_eq!(states(&home), Vec::<Value>::new());
    server.stop().await;
    let server = home.serve().await;
    home.stop_and_check(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_deleted_during_uploads() {
    let home = Home::new();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let (tenant, other) = (alice.creates_tenant("Acme").await, alice.creates_tenant("Other").await);
    let (finish, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = tokio::spawn(upload_slowly(alice.clone(), tenant.clone(), Arc::clone(&begun), Arc::clone(&finish)));
    begun.notified().await;
    let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(upload_until_deleted(alice.clone(), tenant.clone(), writer))).collect();
    let neighbour = tokio::spawn(upload_some(alice.clone(), other.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;

    // Objects of uploads in flight may be left to the collector.
    let deletion = home.run(["tenants", "delete", &tenant, "--hard", "--confirm", "Acme"]);
    assert!(deletion.code == Some(0) || deletion.out.contains("LEFT"), "{deletion:#?}");
    alice.uploads(&tenant, "late.txt", "late").await.expect_error(404, "tenant_not_found");
    finish.notify_one();
    slow.await.unwrap().expect_error(404, "tenant_not_found");
    let mut uploaded = 0;
    for writer in writers {
        uploaded += writer.await.unwrap();
    }
    assert!(uploaded > 0, "there were no uploads");
    assert_eq!(neighbour.await.unwrap(), alice.get(&format!("/api/tenants/{other}/documents")).await.json["data"]["pagination"]["total"]);
    println!("{uploaded} documents were uploaded before the deletion");
    home.stop_and_check(server).await;
    assert!(!has_objects(&home, &tenant).await);
    let report = json_of(&home, &["delete", &tenant, "--hard"], 0);
    assert_eq!(report["is_complete"], true);
}

/// Uploads documents until the tenant is deleted. Returns their number.
async fn upload_until_deleted(alice: Persona, tenant: String, writer: usize) -> usize {
    let mut disturbed = 0;
    for n in 0.. {
        let uploaded = alice.uploads(&tenant, "a.txt", format!("{writer} {n}")).await;
        match uploaded.status.as_u16() {
            404 => return n - disturbed,
            201 => {}
            // Authorized before the tenant was marked, and in flight when the database was dropped: once at most, since the
            // database is dropped only after every instance knows the mark.
            503 if disturbed == 0 => disturbed += 1,
            status => panic!("{status}: {}", uploaded.json),
        }
    }
    0
}

async fn upload_some(alice: Persona, tenant: String) -> u64 {
    for n in 0..50 {
        alice.uploads(&tenant, "a.txt", format!("{n}")).await.expect(201);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    50
}

/// Sends half of an upload, notifies `begun`, and sends the other half on `finish`.
async fn upload_slowly(alice: Persona, tenant: String, begun: Arc<Notify>, finish: Arc<Notify>) -> Reply {
    let piece = || Ok::<_, std::io::Error>(vec![7_u8; 100_000]);
    let second = stream::once(async move {
        begun.notify_one();
        finish.notified().await;
        piece()
    });
    let content = Body::wrap_stream(stream::iter([piece()]).chain(second));
    let form = Form::new().part("file", Part::stream(content).file_name("slow.bin"));
    Reply::to(alice.request(Method::POST, &format!("/api/tenants/{tenant}/documents")).multipart(form)).await
}

#[tokio::test]
async fn a_deletion_prompts_for_the_name_on_a_terminal() {
    let scene = Scene::new().await;
    let Scene { home, tenant, .. } = &scene;
    let refused = delete_on_terminal(home, tenant, "Acne");
    assert!(refused.contains("nothing was deleted: the tenant's name is \"Acme\""), "{refused}");
    assert_eq!(states(home), ["active"]);
    let deleted = delete_on_terminal(home, tenant, "Acme");
    assert!(deleted.contains(&format!("Tenant Acme ({tenant}) is deleted:")) && !deleted.contains("LEFT"), "{deleted}");
    scene.stop_and_check().await;
}

/// Deletes a tenant on a terminal, where this text is typed. Returns what the terminal received.
fn delete_on_terminal(home: &Home, tenant: &str, typed: &str) -> String {
    let program = home.command(["tenants"]);
    let command = format!("'{}' tenants delete {tenant} --hard", program.get_program().display());
    let mut terminal = Command::new("timeout");
    terminal.args(["30", "script", "-qec", &command, "/dev/null"]).current_dir(home.path()).env_clear();
    terminal.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", "/usr/bin:/bin").env("TERM", "xterm");
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keyboard, mut screen, mut seen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap(), String::new());
    while !seen.contains("Type the tenant's name") {
        let mut bytes = [0; 4096];
        let length = screen.read(&mut bytes).unwrap();
        assert!(length > 0, "there was no prompt: {seen}");
        seen += &String::from_utf8_lossy(&bytes[..length]);
    }
    keyboard.write_all(format!("{typed}\r").as_bytes()).unwrap();
    screen.read_to_string(&mut seen).unwrap();
    child.wait().unwrap();
    seen
}
