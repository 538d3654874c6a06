//! Migrations of many tenant databases, by programs of two versions. The program under test reads further migrations from the
//! folder `TEST_MIGRATIONS`.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use domain::Tenant;
use futures_util::future::join_all;
use models::tenants;
use serde_json::json;
use testkit::Persona;

use crate::{
    process::{CommandOutput, Home, Server, WAIT_TIMEOUT, on_terminal},
    scene::{crash, repeatedly},
};

/// The migration of a tenant database.
pub(crate) const MIGRATE: &[&str] = &["migration.applied", "migration.noting", "migration.noted"];

/// A migration that older programs ignore.
const ADDS: &str = "ALTER TABLE documents ADD COLUMN note TEXT;";
/// A migration that fails for a tenant with two documents of the same name.
const FAILS_ON_TWINS: &str =
    "ALTER TABLE documents ADD COLUMN note TEXT; CREATE UNIQUE INDEX documents_filename_key ON documents (filename);";

/// A program of a later version: one with these further migrations.
pub(crate) struct Later<'a> {
    home: &'a Home,
    migrations: PathBuf,
}

impl<'a> Later<'a> {
    pub(crate) fn new(home: &'a Home, migrations: &[&str]) -> Self {
        let folder = home.path().join(format!("migrations-{}", migrations.len()));
        fs::create_dir_all(&folder).unwrap();
        for (n, sql) in migrations.iter().enumerate() {
            fs::write(folder.join(format!("{n}.sql")), sql).unwrap();
        }
        Self { home, migrations: folder }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command(arguments);
        command.env("TEST_MIGRATIONS", &self.migrations);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> CommandOutput {
        CommandOutput::of(&mut self.command(arguments))
    }

    async fn serve(&self) -> Server {
        self.home.serve_with(&[("TEST_MIGRATIONS", self.migrations.to_str().unwrap())]).await
    }
}

/// The schema version of the program without later migrations.
fn current_version() -> i64 {
    database::tenant_schema_version()
}

/// Creates tenants with a document each. Returns their admin and their ids.
async fn fleet(server: &Server, tenants: usize) -> (Persona, Vec<String>) {
    let alice = server.user("alice").await;
    let mut created = Vec::new();
    for n in 0..tenants {
        let tenant = alice.creates_tenant(&format!("Acme {n}")).await;
        alice.uploads(&tenant, "a.txt", "a").await.expect(201);
        created.push(tenant);
    }
    (alice, created)
}

/// Uploads another document of the same name.
async fn upload_twin(alice: &Persona, tenant: &str) -> String {
    alice.uploads(tenant, "a.txt", "another").await.expect(201).id()
}

async fn find_tenant(home: &Home, tenant: &str) -> Tenant {
    tenants::find(&mut home.databases().open().0.read().await.unwrap(), tenant.parse().unwrap()).await.unwrap().unwrap()
}

async fn versions(home: &Home, tenants: &[String]) -> Vec<i64> {
    let mut versions = Vec::new();
    for tenant in tenants {
        versions.push(find_tenant(home, tenant).await.schema_version);
    }
    versions
}

fn documents(tenant: &str) -> String {
    format!("/api/tenants/{tenant}/documents")
}

/// The status and the error code of a list of each tenant's documents.
async fn responses(alice: &Persona, tenants: &[String]) -> Vec<(u16, String)> {
    let mut responses = Vec::new();
    for tenant in tenants {
        let reply = alice.get(&documents(tenant)).await;
        responses.push((reply.status.as_u16(), reply.code().to_owned()));
    }
    responses
}

fn unavailable() -> (u16, String) {
    (503, "tenant_unavailable".to_owned())
}

pub(crate) fn available() -> (u16, String) {
    (200, String::new())
}

#[tokio::test]
async fn waves_stop_at_a_failure_which_quarantines_one_tenant_only() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 6).await;
    let twin = upload_twin(&alice, &tenants[2]).await;
    let later = Later::new(&home, &[FAILS_ON_TWINS]);
    let (now, next) = (current_version(), current_version() + 1);

    let planned = later.run(&["migrate", "--waves", "1,50%,100%", "--dry-run", "--json"]).expect(0).json();
    assert_eq!((&planned["waves_reach"], planned["outdated"].as_array().unwrap().len()), (&json!([1, 3, 6]), 6));
    let words = later.run(&["migrate", "--waves", "1,50%,100%", "--dry-run"]).expect(0).out;
    assert!(words.contains("in waves up to 1, then 3, then 6 tenants"), "{words}");

    // One at a time: the third one fails and is the last.
    let halted = later.run(&["migrate", "--waves", "1,50%,100%", "--at-once", "1"]).expect(1);
    assert!(halted.out.contains(&format!("Schema version {next}: 2 migrated, 0 were up to date, 1 failed")), "{halted:?}");
    assert!(halted.out.contains("Stopped after 1 failures; 3 tenants were not migrated"), "{halted:?}");
    assert!(halted.err.contains("wave 1 of 3: 1 tenants\nwave 2 of 3: 2 tenants\n"), "{halted:?}");
    assert!(!halted.err.contains("wave 3"), "{halted:?}");
    assert_eq!(versions(&home, &tenants).await, [next, next, now, now, now, now]);

    // The server is one version behind: it serves tenants of its own and the next schema version.
    server.responds(&alice, &tenants[2], &unavailable()).await;
    let mut expected = vec![available(); 6];
    expected[2] = unavailable();
    assert_eq!(responses(&alice, &tenants).await, expected);
    let refused = alice.get(&documents(&tenants[2])).await.expect(503);
    assert_eq!(refused.header("retry-after"), "60");
    alice.get(&format!("/api/tenants/{}", tenants[2])).await.expect(200);
    let status = later.run(&["migrate", "status"]).expect(0).out;
    assert!(
        status.contains(&format!("schema version {now}: 4 tenants, one version behind"))
            && status.contains(&format!("schema version {next}: 2 tenants, up to date")),
        "{status}"
    );
    assert!(status.contains("Acme 2") && status.contains("failed") && status.to_lowercase().contains("unique"), "{status}");
    let shown = home.run(["tenants", "show", "Acme 2"]).expect(0).out;
    assert!(shown.contains("because its migration failed"), "{shown}");

    // A second run migrates the remaining tenants, and fails for the same one.
    let again = later.run(&["migrate", "--json"]).expect(1).json();
    assert_eq!(
        (&again["migrated"], &again["up_to_date"], &again["left"], &again["halted"]),
        (&json!(3), &json!(2), &json!(0), &json!(false))
    );
    let failed = &again["failed"][0];
    assert_eq!(failed["id"], tenants[2]);

    // The quarantine is lifted, the cause fixed, and the tenant migrated by itself.
    assert!(later.run(&["migrate", "release", "Acme 1"]).error_line(1).contains("is not quarantined"));
    let released = later.run(&["migrate", "release", "Acme 2"]).expect(0).out;
    assert!(released.contains(&format!("whose schema version is {now}")), "{released}");
    server.responds(&alice, &tenants[2], &available()).await;
    alice.delete(&format!("{}/{twin}", documents(&tenants[2]))).await.expect(200);
    let alone = later.run(&["migrate", "--tenant", "Acme 2"]).expect(0).out;
    assert!(alone.contains("1 migrated, 0 were up to date, 0 failed"), "{alone}");
    assert_eq!(versions(&home, &tenants).await, [next; 6]);
    let status = later.run(&["migrate", "status", "--json"]).expect(0);
    assert_eq!(status.json(), json!({ "schema_version": next, "versions": [{ "schema_version": next, "tenants": 6 }], "unsettled": [] }));
    assert!(later.run(&["migrate", "status"]).expect(0).out.contains("No migration failed."));
    home.stop_and_check(server).await;
}

impl Server {
    /// Waits until a list of a tenant's documents gets this response here: an instance learns of a change after a moment.
    pub(crate) async fn responds(&self, alice: &Persona, tenant: &str, expected: &(u16, String)) {
        let started = Instant::now();
        let alice = self.known(alice);
        while responses(&alice, &[tenant.to_owned()]).await[0] != *expected {
            assert!(started.elapsed() < WAIT_TIMEOUT, "no response {expected:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn programs_of_two_versions_use_a_fleet_during_its_migration() {
    let home = Home::new();
    let before = home.serve().await;
    let (alice, tenants) = fleet(&before, 8).await;
    let later = Later::new(&home, &[ADDS]);
    let after = later.serve().await;
    let done = Arc::new(AtomicBool::new(false));
    let workers = [&before, &after].map(|server| {
        let (alice, tenants, done) = (server.known(&alice), tenants.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut written = 0;
            for (n, tenant) in tenants.iter().cycle().enumerate() {
                alice.uploads(tenant, &format!("{n}.txt"), n.to_string()).await.expect(201);
                alice.get(&documents(tenant)).await.expect(200);
                written += 1;
                if done.load(Ordering::SeqCst) && n >= tenants.len() {
                    return written;
                }
            }
            written
        })
    });
    // Two concurrent migrations do no more than one.
    let mut first = later.command(&["migrate"]).stdout(Stdio::null()).spawn().unwrap();
    let second = later.run(&["migrate", "--json"]).expect(0);
    assert_eq!(second.json()["failed"], json!([]));
    assert!(first.wait().unwrap().success());
    done.store(true, Ordering::SeqCst);
    for worker in join_all(workers).await {
        assert!(worker.unwrap() > tenants.len());
    }
    assert_eq!(versions(&home, &tenants).await, [current_version() + 1; 8]);
    // A new tenant has the schema version of the program that creates it, and both programs can use it.
    let (old, new) = (before.known(&alice).creates_tenant("Old").await, after.known(&alice).creates_tenant("New").await);
    assert_eq!(versions(&home, &[old.clone(), new.clone()]).await, [current_version(), current_version() + 1]);
    for server in [&before, &after] {
        assert_eq!(responses(&server.known(&alice), &[old.clone(), new.clone()]).await, [available(), available()]);
    }
    before.stop().await;
    home.stop_and_check(after).await;
}

#[tokio::test]
async fn a_terminal_shows_the_progress() {
    let home = Home::new();
    let server = home.serve().await;
    let (_, tenants) = fleet(&server, 4).await;
    let later = Later::new(&home, &[ADDS]);
    let (output, seen) = on_terminal(&mut later.command(&["migrate", "--waves", "1,100%"]));
    assert!(output.expect(0).out.contains("4 migrated"));
    // A bar with the progress, the rate, the remaining time and the wave.
    let bar = seen.split('\r').find(|line| line.contains("/4 tenants, ")).unwrap_or_else(|| panic!("{seen:?}"));
    assert!(bar.contains("/s, ") && bar.contains(" left"), "{bar:?}");
    assert!(seen.contains("wave 1 of 2: 1 tenants"), "{seen:?}");
    // The bar is removed at the end.
    assert!(!seen.trim_end().ends_with("left"), "{seen:?}");
    assert_eq!(versions(&home, &tenants).await, [current_version() + 1; 4]);
    home.stop_and_check(server).await;
}

#[tokio::test]
async fn an_outdated_tenant_is_migrated_on_its_first_request() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 3).await;
    upload_twin(&alice, &tenants[1]).await;
    server.stop().await;
    let later = Later::new(&home, &[FAILS_ON_TWINS, "CREATE INDEX documents_note_idx ON documents (note);"]);
    let server = later.serve().await;
    let alice = server.known(&alice);
    let status = later.run(&["migrate", "status"]).expect(0).out;
    let behind = format!("schema version {}: 3 tenants, too far behind: migrated on the first request", current_version());
    assert!(status.contains(&behind), "{status}");
    // Concurrent requests wait for one migration.
    let path = documents(&tenants[0]);
    let replies = join_all((0..10).map(|_| alice.get(&path))).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!(responses(&alice, &tenants).await, [available(), unavailable(), available()]);
    assert_eq!(versions(&home, &tenants).await, [current_version() + 2, current_version(), current_version() + 2]);
    assert!(find_tenant(&home, &tenants[1]).await.quarantined_at.is_some());
    // An older program refuses a schema two versions ahead of its own.
    let old = home.serve().await;
    assert_eq!(responses(&old.known(&alice), &tenants).await, [unavailable(), unavailable(), unavailable()]);
    old.stop().await;
    home.stop_and_check(server).await;
}

#[tokio::test]
async fn a_busy_database_is_retried_and_stays_in_service() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 3).await;
    let later = Later::new(&home, &[ADDS]);
    let place = find_tenant(&home, &tenants[0]).await.place;
    let (_, databases) = home.databases().open();
    let database = databases.open(&place).unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.execute("UPDATE documents SET filename = filename", Vec::new()).await.unwrap();
    // For longer than all attempts: PostgreSQL ends an idle transaction after 15 s.
    let mut migrate = later.command(&["migrate", "--waves", "1,100%"]);
    let mut migrating = migrate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(migrating.stderr.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "wave 1 of 2: 1 tenants");
    // Deletes a tenant of the second wave, which begins although a tenant of the first one is busy.
    later.run(&["tenants", "delete", &tenants[1], "--hard", "--confirm", "Acme 1"]).expect(0);
    lines.for_each(drop);
    let busy = migrating.wait_with_output().unwrap();
    drop(tx);
    let tenants = [tenants[0].clone(), tenants[2].clone()];
    let output = String::from_utf8(busy.stdout).unwrap();
    assert_eq!(busy.status.code(), Some(1), "{output}");
    assert!(output.contains("1 migrated, 0 were up to date, 0 failed, 1 postponed\n"), "{output}");
    assert!(output.contains(&format!("{} (postponed, still in service)", place.database)), "{output}");
    assert!(output.contains("1 were deleted in the meantime"), "{output}");
    assert_eq!(responses(&alice, &tenants).await, [available(), available()]);
    let status = later.run(&["migrate", "status"]).expect(0).out;
    assert!(status.contains("postponed"), "{status}");
    assert!(later.run(&["migrate"]).expect(0).out.contains("1 migrated, 1 were up to date, 0 failed"));
    home.stop_and_check(server).await;
}

#[test]
fn a_crash_while_migrating_leaves_every_database_whole() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let (alice, tenants) = fleet(&server, 3).await;
        for (round, failpoint) in MIGRATE.iter().enumerate() {
            let further: Vec<_> = (0..=round).map(|n| format!("ALTER TABLE documents ADD COLUMN note_{n} TEXT;")).collect();
            let later = Later::new(&home, &further.iter().map(String::as_str).collect::<Vec<_>>());
            // At the second tenant: the first one is migrated, the third one is not.
            crash(&mut later.command(&["migrate", "--at-once", "1"]), &format!("{failpoint}:2"));
            let version = i64::try_from(round).unwrap() + 1 + current_version();
            let second = if *failpoint == "migration.noted" { version } else { version - 1 };
            assert_eq!(versions(&home, &tenants).await, [version, second, version - 1], "{failpoint}");
            // Programs of both versions serve all tenants, and the same command continues.
            assert_eq!(responses(&server.known(&alice), &tenants).await, vec![available(); 3], "{failpoint}");
            server.stop().await;
            server = later.serve().await;
            assert_eq!(responses(&server.known(&alice), &tenants).await, vec![available(); 3], "{failpoint}");
            later.run(&["migrate"]).expect(0);
            assert_eq!(versions(&home, &tenants).await, [version; 3]);
        }
        home.stop_and_check(server).await;
    });
}

#[tokio::test]
async fn an_incompatible_program_quarantines_no_tenant() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 2).await;
    Later::new(&home, &[ADDS]).run(&["migrate"]).expect(0);
    let other = Later::new(&home, &["ALTER TABLE documents ADD COLUMN remark TEXT;", ADDS]);
    let refused = other.run(&["migrate", "--json"]).expect(1).json();
    assert_eq!((refused["postponed"].as_array().unwrap().len(), &refused["failed"]), (2, &json!([])));
    assert!(refused["postponed"][0]["error"].as_str().unwrap().contains("was edited after it had been applied"), "{refused}");
    assert_eq!(responses(&alice, &tenants).await, [available(), available()]);

    // A successful migration lifts the quarantine, even if its reason is gone.
    let mut tx = home.databases().open().0.begin().await.unwrap();
    tenants::quarantine(&mut tx, &find_tenant(&home, &tenants[0]).await.place, current_version() + 1, domain::Timestamp::from_micros(0))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(find_tenant(&home, &tenants[0]).await.quarantined_at.is_some());
    home.run(["migrate"]).expect(0);
    assert!(find_tenant(&home, &tenants[0]).await.quarantined_at.is_none());
    home.stop_and_check(server).await;
}
