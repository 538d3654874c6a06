//! `tenantry tenants`: an operator inspects and changes tenants.

mod deletion;

use std::{process::Stdio, time::Duration};

use models::outbox;
use serde_json::{Value, json};

use crate::{
    process::{CommandOutput, Home},
    scene::Scene,
};

/// An unreachable server in place of the one for tenant databases.
const UNREACHABLE: (&str, &str) = ("TENANT_DATABASE_URLS", "main=postgres://u:hush@127.0.0.1:1/d");

/// The output of `tenants` with these arguments and `--json`.
fn json_of(home: &Home, arguments: &[&str], code: i32) -> Value {
    home.run([&["tenants"], arguments, &["--json"]].concat()).expect(code).json()
}

fn states(home: &Home) -> Vec<Value> {
    json_of(home, &["list"], 0)["tenants"].as_array().unwrap().iter().map(|tenant| tenant["state"].clone()).collect()
}

#[tokio::test]
async fn tenants_are_created_listed_and_shown() {
    let home = Home::new();
    let server = home.serve().await;
    assert_eq!(home.run(["tenants", "list"]).expect(0).out, "There are no tenants yet.\n");
    assert_eq!(json_of(&home, &["list"], 0), json!({ "tenants": [] }));

    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let output = home.run(["tenants", "create", "  Acme Corp. ", "--admin", "Alice@Example.com"]).expect(0).out;
    assert!(output.starts_with("Created tenant Acme Corp. for alice@example.com: id "), "{output}");
    let created = json_of(&home, &["create", "Ümläut 株式会社", "--admin", "bob@example.com"], 0);
    assert_eq!((&created["state"], &created["is_active"], &created["created_by"]), (&json!("active"), &json!(true), &json!(bob.id)));

    let acme = alice.get("/api/tenants").await.expect(200).items()[0]["id"].as_str().unwrap().to_owned();
    alice.invites(&bob, &acme, "viewer").await;
    for name in ["a.txt", "b.txt"] {
        alice.uploads(&acme, name, "the same").await.expect(201);
    }
    alice.uploads(&acme, "c.txt", "another").await.expect(201);

    let listed = json_of(&home, &["list"], 0);
    let [first, second] = &listed["tenants"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!((&first["id"], &first["name"], &first["member_count"]), (&json!(acme), &json!("Acme Corp."), &json!(2)));
    assert_eq!((&second["id"], &second["member_count"]), (&created["id"], &json!(1)));
    assert_eq!((&first["server"], &first["schema_version"]), (&json!("main"), &json!(database::tenant_schema_version())));
    let table = home.run(["tenants", "list"]).expect(0).out;
    let row = table.lines().find(|line| line.contains(&acme)).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[0..2], ["Acme", "Corp."], "{table}");
    assert_eq!(cells[3..5], ["main", first["database"].as_str().unwrap()], "{table}");
    assert_eq!((cells[5], cells[7..9].to_vec()), ("active", vec!["yes", "2"]), "{table}");

    let mut piped = home.command(["tenants", "list"]);
    let mut piped = piped.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(piped.stdout.take());
    let ended = piped.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()), "a reader may close the pipe");

    let shown = json_of(&home, &["show", &acme], 0);
    let contents = json!({
        "documents": 3,
        "trashed_documents": 0,
        "files": 2,
        "bytes": "the same".len() + "another".len(),
        "reserved_documents": 0,
        "reserved_bytes": 0,
    });
    assert_eq!(shown["contents"], contents);
    assert_eq!(shown["problem"], Value::Null);
    let roles: Vec<_> = shown["members"].as_array().unwrap().iter().map(|member| (&member["email"], &member["role"])).collect();
    let (alices, bobs) = (json!("alice@example.com"), json!("bob@example.com"));
    assert_eq!(roles, [(&alices, &json!("admin")), (&bobs, &json!("viewer"))]);
    for named in [first["database"].as_str().unwrap(), "Acme Corp."] {
        assert_eq!(json_of(&home, &["show", named], 0), shown, "{named}");
    }
    let text = home.run(["tenants", "show", &acme]).expect(0).out;
    assert!(
        text.contains("Contents: 3 documents and 0 in the trash\nStorage:  2 files, 15 bytes\n") && text.contains("alice@example.com"),
        "{text}"
    );
    home.stop_and_check(server).await;
}

#[tokio::test]
async fn a_tenant_is_shown_when_its_database_is_unavailable() {
    let home = Home::new();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let show = |more: &[&str]| CommandOutput::of(home.command([&["tenants", "show", "Acme"], more].concat()).envs([UNREACHABLE])).expect(1);
    let text = show(&[]).out;
    assert!(text.contains("alice@example.com") && text.contains("its database is DOWN: ") && !text.contains("hush"), "{text}");
    let json = show(&["--json"]).json();
    assert_eq!((&json["id"], &json["contents"], &json["members"][0]["role"]), (&json!(tenant), &Value::Null, &json!("admin")));
    assert!(json["problem"].as_str().unwrap().contains("unavailable"), "{json}");
    home.stop_and_check(server).await;
}

#[tokio::test]
async fn invalid_input_is_reported_and_changes_nothing() {
    let home = Home::new();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    server.user("bob").await;
    home.run(["users", "deactivate", "bob@example.com"]).expect(0);
    let refused = |arguments: &[&str]| home.run([&["tenants"], arguments].concat()).error_line(1).to_owned();
    for (name, admin, problem) in [
        ("Acme", "carol@example.com", "no active user has the address carol@example.com"),
        ("Acme", "bob@example.com", "no active user has the address bob@example.com"),
        ("Acme", "carol", "the address must "),
        (" ", "alice@example.com", "the name must "),
        ("a\u{7}b", "alice@example.com", "the name must "),
    ] {
        let line = refused(&["create", name, "--admin", admin]);
        assert!(line.starts_with(&format!("tenantry: {problem}")), "{line}");
    }
    home.run(["tenants", "create", "Acme"]).expect(2);
    assert_eq!(json_of(&home, &["list"], 0), json!({ "tenants": [] }));

    let mut twins = Vec::new();
    for _ in 0..2 {
        twins.push(alice.creates_tenant("Acme").await);
    }
    let unknown = "tenantry: no tenant has the id, database or name ";
    for command in ["show", "activate", "deactivate", "delete"] {
        let hard: &[&str] = if command == "delete" { &["--hard", "--confirm", "Acme"] } else { &[] };
        for name in ["Acm", "", "'; DROP TABLE tenants; --", "00000000-0000-7000-8000-000000000000"] {
            let line = refused(&[&[command, name], hard].concat());
            assert_eq!(line, format!("{unknown}{name:?}"));
        }
        let line = refused(&[&[command, "Acme"], hard].concat());
        assert!(line.starts_with("tenantry: 2 tenants have the name \"Acme\"; use an id instead: "), "{line}");
        assert!(twins.iter().all(|id| line.contains(id)), "{line}");
    }

    let soft = home.run(["tenants", "delete", &twins[0]]);
    assert!(soft.error_line(2).contains("--hard") && soft.err.contains("tenants deactivate"), "{soft:?}");
    assert_eq!(refused(&["delete", &twins[0], "--hard"]), "tenantry: --confirm is not set, and prompting is not possible");
    for wrong in ["acme", "Acme ", "", &twins[0]] {
        let line = refused(&["delete", &twins[0], "--hard", "--confirm", wrong]);
        assert_eq!(line, "tenantry: nothing was deleted: the tenant's name is \"Acme\"");
    }
    assert_eq!(states(&home), ["active", "active"]);
    for twin in twins {
        alice.uploads(&twin, "a.txt", "a").await.expect(201);
    }
    home.stop_and_check(server).await;
}

#[tokio::test]
async fn a_running_server_learns_that_a_tenant_was_deactivated_or_activated() {
    let scene = Scene::new().await;
    let Scene { home, alice, tenant, .. } = &scene;
    let documents = scene.documents("");
    alice.get(&documents).await.expect(200);
    let output = |command: &str| home.run(["tenants", command, "Acme"]).expect(0).out;
    assert_eq!(output("activate"), format!("Tenant Acme ({tenant}) is already active.\n"));
    assert_eq!(output("deactivate"), format!("Tenant Acme ({tenant}) is now inactive; its data is kept.\n"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    alice.get(&documents).await.expect_error(403, "tenant_inactive");
    let count = async || {
        let (main, _) = home.databases().open();
        outbox::list(&mut main.read().await.unwrap(), 1_000).await.unwrap().len()
    };
    let before = count().await;
    assert_eq!(output("deactivate"), format!("Tenant Acme ({tenant}) is already inactive.\n"));
    assert_eq!(count().await, before, "a change without effect records no event");
    assert_eq!(output("activate"), format!("Tenant Acme ({tenant}) is active again.\n"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    alice.get(&documents).await.expect(200);
    scene.stop_and_check().await;
}
