//! Migrations of many tenants' databases, by programs of two versions. The program under test takes further migrations from
//! `TEST_MIGRATIONS`.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
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
use rustix::process::Signal;
use serde_json::json;
use testkit::Persona;

use crate::process::{Home, PATIENCE, Ran, Server, on_terminal, repeatedly};

/// A crash at every step of migrating a tenant's database.
pub(crate) const MIGRATE: &[&str] = &["migration.applied", "migration.noting", "migration.noted"];

/// What programs before ignore.
const ADDS: &str = "ALTER TABLE documents ADD COLUMN note TEXT;";
/// What does not work where two documents have the same name.
const FAILS_ON_TWINS: &str =
    "ALTER TABLE documents ADD COLUMN note TEXT; CREATE UNIQUE INDEX documents_filename_key ON documents (filename);";

/// The program of a later version: one with these further migrations.
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

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.command(arguments))
    }

    async fn serve(&self) -> Server {
        self.home.serve_with(&[("TEST_MIGRATIONS", self.migrations.to_str().unwrap())]).await
    }
}

/// The schema version of a program without later migrations.
fn now() -> i64 {
    database::tenant_schema_version()
}

/// So many tenants with a document each, and who is in them.
async fn fleet(server: &Server, tenants: usize) -> (Persona, Vec<String>) {
    let alice = server.user("alice").await;
    let mut made = Vec::new();
    for n in 0..tenants {
        let tenant = alice.creates_tenant(&format!("Acme {n}")).await;
        alice.uploads(&tenant, "a.txt", "a").await.expect(201);
        made.push(tenant);
    }
    (alice, made)
}

/// Another document of the same name.
async fn twin(alice: &Persona, tenant: &str) -> String {
    alice.uploads(tenant, "a.txt", "another").await.expect(201).id()
}

async fn known(home: &Home, tenant: &str) -> Tenant {
    tenants::find(&mut home.databases().open().0.read().await.unwrap(), tenant.parse().unwrap()).await.unwrap().unwrap()
}

async fn versions(home: &Home, tenants: &[String]) -> Vec<i64> {
    let mut versions = Vec::new();
    for tenant in tenants {
        versions.push(known(home, tenant).await.schema_version);
    }
    versions
}

fn documents(tenant: &str) -> String {
    format!("/api/tenants/{tenant}/documents")
}

/// What the tenants' documents answer: a status and a code each.
async fn answers(alice: &Persona, tenants: &[String]) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    for tenant in tenants {
        let reply = alice.get(&documents(tenant)).await;
        answers.push((reply.status.as_u16(), reply.code().to_owned()));
    }
    answers
}

fn closed() -> (u16, String) {
    (503, "tenant_unavailable".to_owned())
}

pub(crate) fn open() -> (u16, String) {
    (200, String::new())
}

#[tokio::test]
async fn waves_halt_at_a_failure_which_closes_one_tenant_and_no_other() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 6).await;
    let twin = twin(&alice, &tenants[2]).await;
    let later = Later::new(&home, &[FAILS_ON_TWINS]);
    let (now, next) = (now(), now() + 1);

    let planned = later.run(&["migrate", "--waves", "1,50%,100%", "--dry-run", "--json"]).expect(0).json();
    assert_eq!((&planned["waves_reach"], planned["outdated"].as_array().unwrap().len()), (&json!([1, 3, 6]), 6));
    let words = later.run(&["migrate", "--waves", "1,50%,100%", "--dry-run"]).expect(0).out;
    assert!(words.contains("in waves that reach over 1, then 3, then 6"), "{words}");

    // One after the other, the third fails and is the last.
    let halted = later.run(&["migrate", "--waves", "1,50%,100%", "--at-once", "1"]).expect(1);
    assert!(halted.out.contains(&format!("Schema version {next}: 2 migrated, 0 were up to date, 1 failed")), "{halted:?}");
    assert!(halted.out.contains("Halted after 1 failures; 3 tenants were left as they are"), "{halted:?}");
    assert!(halted.err.contains("wave 1 of 3: 1 tenants\nwave 2 of 3: 2 tenants\n"), "{halted:?}");
    assert!(!halted.err.contains("wave 3"), "{halted:?}");
    assert_eq!(versions(&home, &tenants).await, [next, next, now, now, now, now]);

    // The server is of the version before: it serves what is one ahead, and what it knows.
    server.sees(&alice, &tenants[2], &closed()).await;
    let mut expected = vec![open(); 6];
    expected[2] = closed();
    assert_eq!(answers(&alice, &tenants).await, expected);
    let refused = alice.get(&documents(&tenants[2])).await.expect(503);
    assert_eq!(refused.header("retry-after"), "60");
    alice.get(&format!("/api/tenants/{}", tenants[2])).await.expect(200);
    let status = later.run(&["migrate", "status"]).expect(0).out;
    assert!(
        status.contains(&format!("schema version {now}: 4 tenants, one behind"))
            && status.contains(&format!("schema version {next}: 2 tenants, up to date")),
        "{status}"
    );
    assert!(status.contains("Acme 2") && status.contains("failed") && status.to_lowercase().contains("unique"), "{status}");
    let shown = home.run(["tenants", "show", "Acme 2"]).expect(0).out;
    assert!(shown.contains("because its migration failed"), "{shown}");

    // Again: those that are left, and the one that still fails.
    let again = later.run(&["migrate", "--json"]).expect(1).json();
    assert_eq!(
        (&again["migrated"], &again["up_to_date"], &again["left"], &again["halted"]),
        (&json!(3), &json!(2), &json!(0), &json!(false))
    );
    let failed = &again["failed"][0];
    assert_eq!(failed["id"], tenants[2]);

    // Released, repaired, and migrated alone.
    assert!(later.run(&["migrate", "release", "Acme 1"]).complaint(1).contains("is not closed"));
    let released = later.run(&["migrate", "release", "Acme 2"]).expect(0).out;
    assert!(released.contains(&format!("is open again, with schema version {now}")), "{released}");
    server.sees(&alice, &tenants[2], &open()).await;
    alice.delete(&format!("{}/{twin}", documents(&tenants[2]))).await.expect(200);
    let alone = later.run(&["migrate", "--tenant", "Acme 2"]).expect(0).out;
    assert!(alone.contains("1 migrated, 0 were up to date, 0 failed"), "{alone}");
    assert_eq!(versions(&home, &tenants).await, [next; 6]);
    let status = later.run(&["migrate", "status", "--json"]).expect(0);
    assert_eq!(status.json(), json!({ "schema_version": next, "versions": [{ "schema_version": next, "tenants": 6 }], "unsettled": [] }));
    assert!(later.run(&["migrate", "status"]).expect(0).out.contains("No migration failed."));
    home.settle(server).await;
}

impl Server {
    /// Waits until a tenant's documents answer so here: a change made elsewhere is seen within moments.
    pub(crate) async fn sees(&self, alice: &Persona, tenant: &str, expected: &(u16, String)) {
        let started = Instant::now();
        let alice = self.known(alice);
        while answers(&alice, &[tenant.to_owned()]).await[0] != *expected {
            assert!(started.elapsed() < PATIENCE, "{expected:?} is not seen");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn programs_of_two_versions_work_in_a_fleet_while_it_is_migrated() {
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
    // Two at once, which do no more than one.
    let mut first = later.command(&["migrate"]).stdout(Stdio::null()).spawn().unwrap();
    let second = later.run(&["migrate", "--json"]).expect(0);
    assert_eq!(second.json()["failed"], json!([]));
    assert!(first.wait().unwrap().success());
    done.store(true, Ordering::SeqCst);
    for worker in join_all(workers).await {
        assert!(worker.unwrap() > tenants.len());
    }
    assert_eq!(versions(&home, &tenants).await, [now() + 1; 8]);
    // A new tenant has its program's schema at once, whichever it is, and both work in it.
    let (old, new) = (before.known(&alice).creates_tenant("Old").await, after.known(&alice).creates_tenant("New").await);
    assert_eq!(versions(&home, &[old.clone(), new.clone()]).await, [now(), now() + 1]);
    for server in [&before, &after] {
        assert_eq!(answers(&server.known(&alice), &[old.clone(), new.clone()]).await, [open(), open()]);
    }
    before.stop().await;
    home.settle(after).await;
}

#[tokio::test]
async fn a_terminal_shows_how_far_it_is() {
    let home = Home::new();
    let server = home.serve().await;
    let (_, tenants) = fleet(&server, 4).await;
    let later = Later::new(&home, &[ADDS]);
    let (ran, seen) = on_terminal(&mut later.command(&["migrate", "--waves", "1,100%"]));
    assert!(ran.expect(0).out.contains("4 migrated"));
    // A bar with what is done, the rate, the time that is left, and the wave.
    let bar = seen.split('\r').find(|line| line.contains("/4 tenants, ")).unwrap_or_else(|| panic!("{seen:?}"));
    assert!(bar.contains("/s, ") && bar.contains(" left"), "{bar:?}");
    assert!(seen.contains("wave 1 of 2: 1 tenants"), "{seen:?}");
    // It is taken away at the end: what stays is the answer.
    assert!(!seen.trim_end().ends_with("left"), "{seen:?}");
    assert_eq!(versions(&home, &tenants).await, [now() + 1; 4]);
    home.settle(server).await;
}

#[tokio::test]
async fn a_tenant_that_was_missed_is_migrated_at_its_first_request() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 3).await;
    twin(&alice, &tenants[1]).await;
    server.stop().await;
    let later = Later::new(&home, &[FAILS_ON_TWINS, "CREATE INDEX documents_note_idx ON documents (note);"]);
    let server = later.serve().await;
    let alice = server.known(&alice);
    let status = later.run(&["migrate", "status"]).expect(0).out;
    let behind = format!("schema version {}: 3 tenants, too far behind: migrated at its first request", now());
    assert!(status.contains(&behind), "{status}");
    // Many at once wait for one migration.
    let path = documents(&tenants[0]);
    let replies = join_all((0..10).map(|_| alice.get(&path))).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!(answers(&alice, &tenants).await, [open(), closed(), open()]);
    assert_eq!(versions(&home, &tenants).await, [now() + 2, now(), now() + 2]);
    assert!(known(&home, &tenants[1]).await.quarantined_at.is_some());
    // A program from before that is not told of this schema keeps out of it.
    let old = home.serve().await;
    assert_eq!(answers(&old.known(&alice), &tenants).await, [closed(), closed(), closed()]);
    old.stop().await;
    home.settle(server).await;
}

#[tokio::test]
async fn a_database_in_use_is_tried_again_and_stays_in_use() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 3).await;
    let later = Later::new(&home, &[ADDS]);
    let place = known(&home, &tenants[0]).await.place;
    let (_, databases) = home.databases().open();
    let database = databases.open(&place).unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.execute("UPDATE documents SET filename = filename", Vec::new()).await.unwrap();
    // Longer than the attempts: on PostgreSQL the server ends what is idle in a transaction after 15 s.
    let mut migrate = later.command(&["migrate", "--waves", "1,100%"]);
    let mut migrating = migrate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(migrating.stderr.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "wave 1 of 2: 1 tenants");
    // Deleted while it waits for its turn, in the second wave: that a tenant is busy does not halt them.
    later.run(&["tenants", "delete", &tenants[1], "--hard", "--confirm", "Acme 1"]).expect(0);
    lines.for_each(drop);
    let busy = migrating.wait_with_output().unwrap();
    drop(tx);
    let tenants = [tenants[0].clone(), tenants[2].clone()];
    let told = String::from_utf8(busy.stdout).unwrap();
    assert_eq!(busy.status.code(), Some(1), "{told}");
    assert!(told.contains("1 migrated, 0 were up to date, 0 failed, 1 postponed\n"), "{told}");
    assert!(told.contains(&format!("{} (postponed, in use as before)", place.database)), "{told}");
    assert!(told.contains("1 were deleted meanwhile"), "{told}");
    assert_eq!(answers(&alice, &tenants).await, [open(), open()]);
    let status = later.run(&["migrate", "status"]).expect(0).out;
    assert!(status.contains("postponed"), "{status}");
    assert!(later.run(&["migrate"]).expect(0).out.contains("1 migrated, 1 were up to date, 0 failed"));
    home.settle(server).await;
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
            // At the second tenant: the first one is done, the third one not begun.
            let mut command = later.command(&["migrate", "--at-once", "1"]);
            let died = command.env("FAILPOINT", format!("{failpoint}:2")).stderr(Stdio::null()).status().unwrap();
            assert_eq!(died.signal(), Some(Signal::ABORT.as_raw()), "{failpoint}");
            println!("{failpoint}: hit once");
            let version = i64::try_from(round).unwrap() + 1 + now();
            let noted = if *failpoint == "migration.noted" { version } else { version - 1 };
            assert_eq!(versions(&home, &tenants).await, [version, noted, version - 1], "{failpoint}");
            // Programs of the version before and of this one serve all of them, and the same command goes on.
            assert_eq!(answers(&server.known(&alice), &tenants).await, vec![open(); 3], "{failpoint}");
            server.stop().await;
            server = later.serve().await;
            assert_eq!(answers(&server.known(&alice), &tenants).await, vec![open(); 3], "{failpoint}");
            later.run(&["migrate"]).expect(0);
            assert_eq!(versions(&home, &tenants).await, [version; 3]);
        }
        home.settle(server).await;
    });
}

#[tokio::test]
async fn a_program_that_does_not_fit_closes_nobody() {
    let home = Home::new();
    let server = home.serve().await;
    let (alice, tenants) = fleet(&server, 2).await;
    Later::new(&home, &[ADDS]).run(&["migrate"]).expect(0);
    let other = Later::new(&home, &["ALTER TABLE documents ADD COLUMN remark TEXT;", ADDS]);
    let refused = other.run(&["migrate", "--json"]).expect(1).json();
    assert_eq!((refused["postponed"].as_array().unwrap().len(), &refused["failed"]), (2, &json!([])));
    assert!(refused["postponed"][0]["error"].as_str().unwrap().contains("was edited after it had been applied"), "{refused}");
    assert_eq!(answers(&alice, &tenants).await, [open(), open()]);

    // Closed for a reason that is gone by itself: any migration opens it.
    let mut tx = home.databases().open().0.begin().await.unwrap();
    tenants::quarantine(&mut tx, &known(&home, &tenants[0]).await.place, now() + 1, domain::Timestamp::from_micros(0)).await.unwrap();
    tx.commit().await.unwrap();
    assert!(known(&home, &tenants[0]).await.quarantined_at.is_some());
    home.run(["migrate"]).expect(0);
    assert!(known(&home, &tenants[0]).await.quarantined_at.is_none());
    home.settle(server).await;
}
