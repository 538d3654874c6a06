//! The subcommands: their output, their effects and their exit codes.

use std::{
    fs,
    io::{Read, Write},
    process::{Command, Stdio},
    time::Duration,
};

use models::tenants;
use serde_json::{Value, json};

use crate::process::{CommandOutput, Home};

const ADMIN: &str = "ADMIN_EMAIL=ada@example.com\nADMIN_PASSWORD='correct horse 1'\nADMIN_FIRST_NAME=Ada\nADMIN_LAST_NAME=Lovelace\n";
const TENANT: &str = "TEST_TENANT_NAME='Analytical Engines'\n";
const EVERYTHING: &[&str] = &["init", "--create-admin", "--create-test-tenant", "--non-interactive"];

/// Drops everything that `init` created.
fn clean_up(home: &Home) {
    home.run(["init", "--drop-all", "--confirm", "DELETE EVERYTHING"]).expect(0);
}

#[tokio::test]
async fn init_creates_a_user_and_a_tenant_from_dotenv_once() {
    let home = Home::new();
    fs::write(home.path().join(".env"), format!("{ADMIN}{TENANT}")).unwrap();
    let first = home.run(EVERYTHING).expect(0).out;
    assert!(first.contains("Created user ada@example.com.") && first.contains("Created tenant Analytical Engines"), "{first}");
    assert!(!first.contains("correct horse"), "{first}");
    let second = home.run(EVERYTHING).expect(0).out;
    assert!(second.contains("User ada@example.com already exists."), "{second}");
    assert!(second.contains("Tenant Analytical Engines already exists."), "{second}");

    let server = home.serve().await;
    let credentials = json!({ "email": "ada@example.com", "password": "correct horse 1" });
    let login = server.stranger().post("/api/auth/login", &credentials).await.expect(200);
    assert_eq!(login.data()["user"]["last_name"], "Lovelace");
    assert_eq!(login.data()["tenants"].as_array().unwrap().len(), 1, "{}", login.json);
    let ada = server.stranger().with_token(login.data()["access_token"].as_str().unwrap());
    let tenant = ada.get("/api/tenants").await.expect(200).items()[0]["id"].as_str().unwrap().to_owned();
    ada.uploads(&tenant, "notes.txt", "notes").await.expect(201);
    server.stop().await;
    // The environment takes precedence over the file.
    let mut other = home.command(["init", "--create-admin"]);
    let other = CommandOutput::of(other.env("ADMIN_EMAIL", "charles@example.com")).expect(0).out;
    assert!(other.contains("Created user charles@example.com."), "{other}");
}

#[test]
fn init_names_missing_and_invalid_values() {
    let home = Home::new();
    let mut given = String::new();
    for line in ADMIN.lines().filter(|line| !line.contains("PASSWORD")).chain(["ADMIN_PASSWORD=correct-horse-1", TENANT]) {
        let name = line.split('=').next().unwrap();
        let refused = home.run(EVERYTHING);
        assert_eq!(refused.error_line(1), format!("tenantry: {name} is not set, and prompting is not possible"));
        given += &format!("{line}\n");
        fs::write(home.path().join(".env"), &given).unwrap();
    }
    clean_up(&home);
    for (name, value) in
        [("ADMIN_EMAIL", "nobody"), ("ADMIN_PASSWORD", "short1"), ("ADMIN_FIRST_NAME", "a\tb"), ("TEST_TENANT_NAME", "\u{7}x")]
    {
        let refused = CommandOutput::of(home.command(EVERYTHING).env(name, value));
        let line = refused.error_line(1);
        assert!(line.starts_with(&format!("tenantry: {name} must ")) && !line.contains("short1"), "{line}");
    }
    clean_up(&home);
}

#[tokio::test]
async fn nothing_is_dropped_without_confirmation() {
    let home = Home::new();
    fs::write(home.path().join(".env"), format!("{ADMIN}{TENANT}")).unwrap();
    home.run(EVERYTHING).expect(0);
    let count = async || {
        let (main, _) = home.databases().open();
        tenants::list(&mut main.read().await.unwrap()).await.unwrap().len()
    };
    for words in [&["--confirm", "delete everything"][..], &["--confirm", ""], &[]] {
        let refused = home.run([&["init", "--drop-all", "--non-interactive"], words].concat());
        assert!(refused.error_line(1).contains("--confirm is not set") || refused.err.contains("nothing was dropped"), "{refused:?}");
        assert_eq!(count().await, 1);
    }
    home.run(["init", "--confirm", "DELETE EVERYTHING"]).expect(2);
    // One object belongs to the tenant, the other one to another installation in the same bucket.
    let ours = tenants::list(&mut home.databases().open().0.read().await.unwrap()).await.unwrap()[0].id;
    let theirs = domain::TenantId::generate(&domain::SystemClock);
    let [ours, theirs] = [ours, theirs].map(|tenant| format!("tenants/{tenant}/files/00/00/object"));
    home.objects().leave(&ours, b"ours").await;
    home.objects().leave(&theirs, b"theirs").await;
    let dropped = home.run(["init", "--drop-all", "--confirm", "DELETE EVERYTHING"]).expect(0).out;
    assert!(dropped.contains("Dropped 1 tenants"), "{dropped}");
    assert_eq!(count().await, 0);
    let storage = home.objects().open();
    assert!(storage.head(&ours).await.is_err());
    assert_eq!(storage.head(&theirs).await.unwrap(), 6);
    storage.delete(&theirs).await.unwrap();
    if home.is_sqlite() {
        assert_eq!(fs::read_dir(home.path().join("tenants")).unwrap().count(), 0);
    }
}

#[test]
fn init_prompts_on_a_terminal() {
    let home = Home::new();
    let program = home.command(["init"]);
    let command = format!("'{}' init --create-admin --create-test-tenant", program.get_program().display());
    // `timeout` kills it if it prompts for something that this test does not expect.
    let mut terminal = Command::new("timeout");
    terminal.args(["30", "script", "-qec", &command, "/dev/null"]).current_dir(home.path()).env_clear();
    terminal.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", "/usr/bin:/bin").env("TERM", "xterm");
    // Not typed, since turning off the echo discards what was typed before.
    terminal.env("ADMIN_PASSWORD", "correct horse 1");
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keyboard, mut screen, mut seen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap(), String::new());
    for (question, answer) in
        [("E-mail address", "ada@example.com"), ("First name", "Ada"), ("Last name", "Lovelace"), ("Name of the test tenant", "Acme")]
    {
        while !seen.contains(question) {
            let mut bytes = [0; 4096];
            let length = screen.read(&mut bytes).unwrap();
            assert!(length > 0, "there was no prompt {question:?}: {seen}");
            seen += &String::from_utf8_lossy(&bytes[..length]);
        }
        keyboard.write_all(answer.as_bytes()).unwrap();
        keyboard.write_all(b"\r").unwrap();
    }
    screen.read_to_string(&mut seen).unwrap();
    assert!(child.wait().unwrap().success(), "{seen}");
    assert!(seen.contains("Created user ada@example.com.") && seen.contains("Created tenant Acme"), "{seen}");
    assert!(!seen.contains("correct horse"), "{seen}");
    clean_up(&home);
}

#[tokio::test]
async fn a_dry_run_of_migrate_shows_what_migrate_does() {
    let home = Home::new();
    let fresh = home.run(["migrate", "--dry-run"]);
    assert_eq!(fresh.code, Some(1), "there is no main database yet: {fresh:?}");
    fs::write(home.path().join(".env"), format!("{ADMIN}{TENANT}")).unwrap();
    home.run(EVERYTHING).expect(0);
    let json = |arguments: &[&str]| -> Value { home.run(arguments.iter().copied()).expect(0).json() };
    let version = database::tenant_schema_version();
    assert_eq!(
        json(&["migrate", "--dry-run", "--json"]),
        json!({ "schema_version": version, "tenants": 1, "outdated": [], "waves_reach": [0] })
    );

    // As after an update of the program: the recorded version is an older one.
    let (main, _) = home.databases().open();
    let tenant = tenants::list(&mut main.read().await.unwrap()).await.unwrap().remove(0);
    let mut tx = main.begin().await.unwrap();
    tx.execute("UPDATE tenants SET schema_version = 0", Vec::new()).await.unwrap();
    tx.commit().await.unwrap();
    drop(main);
    let name = tenant.place.database.as_str();
    for _ in 0..2 {
        assert_eq!(json(&["migrate", "--dry-run", "--json"])["outdated"], json!([name]), "a dry run changes nothing");
    }
    let words = home.run(["migrate", "--dry-run"]).expect(0).out;
    assert!(words.contains("1 of 1 tenant databases") && words.contains(name), "{words}");
    let migrated = json!({ "schema_version": version, "tenants": 1, "up_to_date": 0, "migrated": 1, "failed": [], "postponed": [], "deleted": 0, "left": 0, "halted": false });
    assert_eq!(json(&["migrate", "--json"]), migrated);
    let words = home.run(["migrate"]).expect(0).out;
    assert!(words.contains("0 migrated, 1 were up to date, 0 failed"), "{words}");
}

#[test]
fn check_reports_every_dependency() {
    let home = Home::new();
    home.run(["init"]).expect(0);
    let up = home.run(["check"]).expect(0).out;
    assert!(up.contains("DATA_DIR") && up.contains("database: up") && up.contains("object storage: up") && !up.contains("DOWN:"), "{up}");
    let up = home.run(["check", "--json"]).expect(0).json();
    assert_eq!((&up["ready"], &up["settings"]["PORT"], &up["settings"]["JWT_SECRET_KEY"]), (&json!(true), &json!("0"), &json!("(secret)")));

    // Nothing listens on port 1.
    let down = |arguments: &[&str]| {
        let mut command = home.command(arguments.iter().copied());
        CommandOutput::of(command.env("DATABASE_URL", "postgres://u:hush@127.0.0.1:1/d")).expect(1).out
    };
    let text = down(&["check"]);
    assert!(text.contains("database: DOWN: ") && text.contains("refused") && !text.contains("hush"), "{text}");
    let json: Value = serde_json::from_str(&down(&["check", "--json"])).unwrap();
    assert_eq!((&json["ready"], &json["dependencies"]["database"]["up"]), (&json!(false), &json!(false)));
    assert_eq!(json["dependencies"]["object storage"]["up"], true);
}

#[tokio::test]
async fn openapi_prints_the_served_specification() {
    let home = Home::new();
    let printed = home.run(["openapi"]).expect(0).out;
    let server = home.serve().await;
    assert_eq!(server.stranger().get("/openapi.json").await.expect(200).bytes, printed.into_bytes());
    server.stop().await;
}

#[tokio::test]
async fn deactivating_a_user_revokes_sessions_at_a_running_server() {
    let home = Home::new();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    alice.get("/api/users/me").await.expect(200);
    assert!(home.run(["users", "deactivate", "alice@example.com"]).expect(0).out.contains("all sessions are revoked"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    alice.get("/api/users/me").await.expect_error(401, "token_revoked");
    bob.get("/api/users/me").await.expect(200);
    let credentials = json!({ "email": alice.email, "password": "correct horse 1" });
    server.stranger().post("/api/auth/login", &credentials).await.expect_error(401, "invalid_credentials");

    home.run(["users", "activate", "alice@example.com"]).expect(0);
    alice.get("/api/users/me").await.expect_error(401, "token_revoked");
    alice.logged_in().await.get("/api/users/me").await.expect(200);
    assert_eq!(home.run(["users", "deactivate", "carol@example.com"]).error_line(1), "tenantry: no user has the address carol@example.com");
    server.stop().await;
}

#[test]
fn every_command_has_a_help_text() {
    let home = Home::new();
    let help = home.run(["--help"]).expect(0).out;
    for command in ["serve", "init", "migrate", "check", "gc", "tenants", "users", "openapi"] {
        let line = help.lines().find(|line| line.trim_start().starts_with(&format!("{command} ")));
        assert!(line.is_some_and(|line| line.split_whitespace().count() > 2), "{command}: {help}");
        assert!(home.run([command, "--help"]).expect(0).out.contains("Usage: tenantry"), "{command}");
    }
    home.run(["--version"]).expect(0);
    assert!(home.run([""; 0]).expect(2).err.contains("Usage: tenantry"));
    home.run(["serve", "--no-such-option"]).expect(2);
    home.run(["no-such-command"]).expect(2);
}
