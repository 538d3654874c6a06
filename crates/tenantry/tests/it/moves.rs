//! Moves of tenant databases to other servers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{Move, MoveState, Tenant, TenantPlace};
use models::{moves, tenants};
use serde_json::{Value, json};
use testkit::Persona;

use crate::{
    crashes::tenants::wait_for_tombstone,
    placement::second_postgres,
    process::{CommandOutput, Home, WAIT_TIMEOUT},
    scene::{Scene, repeatedly},
};

/// A move, and whether the tenant is at its target afterwards.
pub(crate) const MOVE: &[(&str, bool)] = &[
    ("move.begun", false),
    ("move.made", false),
    ("move.copied", false),
    ("move.noticed", false),
    ("move.compared", false),
    ("move.sealed", false),
    ("move.switching", false),
    ("move.switched", true),
    ("move.resumed", true),
];
/// The undoing of an interrupted move.
pub(crate) const UNDO_MOVE: &[&str] = &["move.abandoned", "move.unsealed", "move.dropped"];
/// The rollback to the source database, and whether the tenant is there afterwards.
pub(crate) const ROLLBACK: &[(&str, bool)] = &[("move.returning", false), ("move.returned", true)];

/// A home with every available kind of server, and a route over all of them back to the first.
fn home_with_servers() -> (Home, Vec<&'static str>) {
    let home = Home::new();
    let second = second_postgres(&home);
    let away = format!("sqlite:{}", home.path().join("away").display());
    let home = home.with_server("away", &away);
    match second {
        Some(second) => (home.with_server("second", &second), vec!["second", "away", "main"]),
        None => (home, vec!["away", "main"]),
    }
}

async fn find_tenant(home: &Home, id: &str) -> Tenant {
    let (main, _) = home.databases().open();
    tenants::find(&mut main.read().await.unwrap(), id.parse().unwrap()).await.unwrap().unwrap()
}

async fn find_move(home: &Home, id: &str) -> Option<Move> {
    let (main, _) = home.databases().open();
    moves::find(&mut main.read().await.unwrap(), id.parse().unwrap()).await.unwrap()
}

/// The servers that have a database of the tenant.
async fn servers_of(home: &Home, id: &str) -> Vec<String> {
    let (place, (_, directory)) = (find_tenant(home, id).await.place, home.databases().open());
    let mut found = Vec::new();
    for server in directory.servers() {
        if directory.exists(&TenantPlace { server: server.to_owned(), ..place.clone() }).await.unwrap() {
            found.push(server.to_owned());
        }
    }
    found
}

/// A scene on a home with several servers, whose tenant is on the server `main`.
async fn scene_on_main(home: Home) -> Scene {
    let scene = Scene::on(home, &[]).await;
    if find_tenant(&scene.home, &scene.tenant).await.place.server != "main" {
        scene.home.run(["tenants", "move", &scene.tenant, "--to", "main"]).expect(0);
        scene.home.run(["tenants", "move", &scene.tenant, "--drop-former"]).expect(0);
    }
    scene
}

/// Writes at one instance and reads the acknowledged changes at another one, until `stop`. Returns the number of documents that
/// were not deleted.
async fn write(tenant: String, one: Persona, two: Persona, n: usize, stop: Arc<AtomicBool>) -> usize {
    let mut kept = 0;
    for round in 0.. {
        let document = one.uploads(&tenant, "a.txt", format!("{n} {round}")).await.expect(201).id();
        let path = format!("/api/tenants/{tenant}/documents/{document}");
        two.get(&path).await.expect(200);
        two.put(&path, &json!({ "filename": "renamed.txt" })).await.expect(200);
        assert_eq!(one.get(&path).await.expect(200).data()["filename"], "renamed.txt");
        if round % 3 == 0 {
            one.delete(&path).await.expect(200);
            two.get(&path).await.expect_error(404, "document_not_found");
        } else {
            kept += 1;
        }
        if stop.load(Ordering::Relaxed) {
            return kept;
        }
    }
    kept
}

/// Reads until `stop`. Returns the longest wait.
async fn read(tenant: String, reader: Persona, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        reader.get(&format!("/api/tenants/{tenant}/documents?per_page=1")).await.expect(200);
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    longest
}

/// Seeded faults, each detected: no pause after the switch (an instance reads in the source database what another one has changed
/// in the target database); no second copy while writes are paused (changes during the first copy are lost).
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_moves_while_it_is_in_use() {
    let (home, route) = home_with_servers();
    let scene = scene_on_main(home).await;
    let Scene { home, alice, tenant, .. } = &scene;
    let (one, two) = (scene.server(), home.serve().await);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let (a, b) = if n % 2 == 0 { (one, &two) } else { (&two, one) };
            tokio::spawn(write(tenant.clone(), a.known(alice), b.known(alice), n, Arc::clone(&stop)))
        })
        .collect();
    let readers = [one, &two].map(|server| tokio::spawn(read(tenant.clone(), server.known(alice), Arc::clone(&stop))));
    let mut shortest_pause = u64::MAX;
    for server in &route {
        let moved = run_in_background(home, &["tenants", "move", tenant, "--to", server, "--json"]).await.expect(0).json();
        assert_eq!(moved["server"], *server);
        let paused = moved["writes_paused_for_ms"].as_u64().unwrap();
        println!("to {server}: {} rows, writes waited for {paused} ms", moved["tables"][0]["rows"]);
        shortest_pause = shortest_pause.min(paused);
        run_in_background(home, &["tenants", "move", tenant, "--drop-former"]).await.expect(0);
        assert_eq!(servers_of(home, tenant).await, [*server]);
    }
    stop.store(true, Ordering::Relaxed);
    let mut kept = 0;
    for writer in writers {
        kept += writer.await.unwrap();
    }
    for reader in readers {
        let longest = reader.await.unwrap();
        assert!(longest < Duration::from_millis(shortest_pause / 2), "reads waited for {longest:?} of {shortest_pause} ms");
    }
    let listed = alice.get(&format!("/api/tenants/{tenant}/documents?per_page=1")).await.expect(200);
    assert_eq!(listed.json["data"]["pagination"]["total"], kept, "every acknowledged document and no other");
    two.stop().await;
    scene.stop_and_check().await;
}

async fn run_in_background(home: &Home, arguments: &[&str]) -> CommandOutput {
    let mut command = home.command(arguments);
    tokio::task::spawn_blocking(move || CommandOutput::of(&mut command)).await.unwrap()
}

/// Who completes a move that was interrupted.
#[derive(Clone, Copy, Debug)]
enum CompletedBy {
    Server,
    Command,
}

/// A tenant with a document, and the servers between which it moves.
struct Crashes {
    scene: Scene,
    document: String,
    from: &'static str,
    to: &'static str,
}

impl Crashes {
    async fn new() -> Self {
        let (home, route) = home_with_servers();
        let scene = scene_on_main(home).await;
        let document = scene.alice.uploads(&scene.tenant, "kept.txt", "kept").await.expect(201).id();
        Self { scene, document, from: "main", to: route[0] }
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["tenants", "move", &self.scene.tenant][..], arguments].concat()
    }

    fn run(&self, arguments: &[&str]) -> CommandOutput {
        self.scene.home.run(self.arguments(arguments))
    }

    /// Runs a command again while the server is completing the interrupted move.
    fn run_when_free(&self, arguments: &[&str]) -> CommandOutput {
        let began = Instant::now();
        loop {
            let output = self.run(arguments);
            if !output.err.contains("another process is moving its database") || began.elapsed() > WAIT_TIMEOUT {
                return output;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn crash(&self, arguments: &[&str], failpoint: &str) {
        self.scene.home.crash(&self.arguments(arguments), failpoint);
    }

    /// Waits until no move is in progress.
    async fn completed(&self) {
        let began = Instant::now();
        while let Some(in_progress) = self.find_move().await.filter(|found| found.state != MoveState::Kept) {
            assert!(began.elapsed() < Duration::from_secs(60), "{in_progress:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn find_move(&self) -> Option<Move> {
        find_move(&self.scene.home, &self.scene.tenant).await
    }

    async fn find_tenant(&self) -> Tenant {
        find_tenant(&self.scene.home, &self.scene.tenant).await
    }

    async fn servers(&self) -> Vec<String> {
        servers_of(&self.scene.home, &self.scene.tenant).await
    }

    /// Asserts that the tenant is on this server, complete and writable.
    async fn assert_on(&self, server: &str, why: &str) {
        let Scene { alice, tenant, .. } = &self.scene;
        assert_eq!(self.find_tenant().await.place.server, server, "{why}");
        assert_eq!(alice.downloads(tenant, &self.document).await, b"kept", "{why}");
        alice.uploads(tenant, "more.txt", why).await.expect(201);
    }

    /// Drops the source database after a move, and turns around.
    fn turn(&mut self) {
        self.run(&["--drop-former"]).expect(0);
        std::mem::swap(&mut self.from, &mut self.to);
    }

    async fn end(self) {
        if self.from != "main" {
            self.run(&["--to", "main"]).expect(0);
            self.run(&["--drop-former"]).expect(0);
        }
        self.scene.stop_and_check().await;
    }
}

#[test]
fn a_crash_in_a_move_leaves_the_tenant_on_one_server_and_nothing_on_the_other() {
    repeatedly(async || {
        for completed_by in [CompletedBy::Server, CompletedBy::Command] {
            let mut crashes = Crashes::new().await;
            for (failpoint, is_moved) in MOVE {
                crash_in_move(&mut crashes, failpoint, *is_moved, completed_by).await;
            }
            crashes.end().await;
        }
    });
}

async fn crash_in_move(crashes: &mut Crashes, failpoint: &str, is_moved: bool, completed_by: CompletedBy) {
    let (to, why) = (crashes.to, format!("{failpoint}, completed by the {completed_by:?}"));
    crashes.crash(&["--to", to], failpoint);
    let crashed_at = Instant::now();
    let again = crashes.run(&["--to", to]);
    // On a slow machine, the lease may have expired by now.
    if failpoint != "move.resumed" && crashed_at.elapsed() < Duration::from_secs(10) {
        assert!(again.error_line(1).contains("another process is moving its database"), "{why}: {again:?}");
    }
    crashes.scene.home.expire_leases().await;
    match completed_by {
        CompletedBy::Server => {
            crashes.scene.restart().await;
            crashes.completed().await;
        }
        CompletedBy::Command => {
            let output = crashes.run_when_free(&["--to", to]).expect(0).out;
            assert_eq!(output.ends_with(&format!("is already on server {to}.\n")), is_moved, "{output:?}");
        }
    }
    if is_moved || matches!(completed_by, CompletedBy::Command) {
        crashes.assert_on(to, &why).await;
        crashes.turn();
    }
    crashes.assert_on(crashes.from, &format!("{why}, at the end")).await;
    assert_eq!(crashes.servers().await, [crashes.from], "{why}");
}

#[test]
fn a_crash_while_a_move_is_undone_or_its_source_database_dropped_is_repaired() {
    repeatedly(async || {
        let mut crashes = Crashes::new().await;
        let to = crashes.to;
        for failpoint in UNDO_MOVE {
            // Without a server, which could undo the move first.
            crashes.scene.stop().await;
            crashes.crash(&["--to", to], "move.sealed");
            crashes.scene.home.expire_leases().await;
            crashes.crash(&["--to", to], failpoint);
            crashes.scene.home.expire_leases().await;
            crashes.scene.start().await;
            crashes.completed().await;
            crashes.assert_on("main", failpoint).await;
            assert_eq!(crashes.servers().await, ["main"], "{failpoint}");
        }
        crashes.run(&["--to", to]).expect(0);
        crashes.crash(&["--drop-former"], "move.dropped");
        crashes.assert_on(to, "dropped").await;
        crashes.turn();
        assert_eq!(crashes.servers().await, [to]);
        crashes.end().await;
    });
}

#[test]
fn a_crash_in_a_rollback_leaves_the_tenant_in_one_of_its_databases() {
    repeatedly(async || {
        let mut crashes = Crashes::new().await;
        for (failpoint, is_back) in ROLLBACK {
            crashes.run(&["--to", crashes.to]).expect(0);
            let since = crashes.scene.alice.uploads(&crashes.scene.tenant, "since.txt", *failpoint).await.expect(201).id();
            let since = crashes.scene.documents(&format!("/{since}"));
            let rollback = ["--rollback", "--confirm", "Acme"];
            crashes.crash(&rollback, failpoint);
            crashes.scene.home.expire_leases().await;
            crashes.scene.restart().await;
            crashes.completed().await;
            if !is_back {
                crashes.scene.alice.get(&since).await.expect(200);
                crashes.run_when_free(&rollback).expect(0);
            }
            crashes.assert_on("main", failpoint).await;
            crashes.scene.alice.get(&since).await.expect_error(404, "document_not_found");
            assert_eq!(crashes.servers().await, ["main"], "{failpoint}");
        }
        // Without the checks of `stop_and_check`: a rollback leaves the objects of lost documents.
        crashes.scene.stop().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_on_a_lost_server_can_be_forgotten() {
    let crashes = Crashes::new().await;
    let to = crashes.to;
    crashes.run(&["--to", to]).expect(0);
    assert!(crashes.run(&["--rollback"]).error_line(1).contains("--confirm is not set"));
    assert!(crashes.run(&["--rollback", "--confirm", "Other"]).error_line(1).contains("nothing was changed"));
    let home = &crashes.scene.home;
    let variables = home.databases().environment();
    let (_, servers) = variables.iter().find(|(name, _)| *name == "TENANT_DATABASE_URLS").unwrap();
    let lost = servers.replace(&format!("main={}", main_url(home)), "main=postgres://postgres@127.0.0.1:1/postgres");
    let without_main = |arguments: &[&str]| {
        let mut command = home.command(crashes.arguments(arguments));
        CommandOutput::of(command.env("TENANT_DATABASE_URLS", &lost))
    };
    without_main(&["--drop-former"]).expect(1);
    // The old name of --rollback.
    without_main(&["--back", "--confirm", "Acme"]).expect(1);
    crashes.assert_on(to, "the source is unavailable").await;
    assert!(crashes.run(&["--forget"]).error_line(1).contains("server main is available: use --drop-former"));
    let checked = CommandOutput::of(home.command(["check"]).env("TENANT_DATABASE_URLS", servers.replace(&format!(",{to}="), ",other=")))
        .expect(1)
        .out;
    let unknown =
        format!("tenant databases ({to}): DOWN: server is unavailable: it has 1 tenants, but TENANT_DATABASE_URLS does not name it");
    assert!(checked.contains(&unknown), "{checked}");
    let forgotten = without_main(&["--forget"]).expect(0).out;
    assert!(forgotten.contains("on server main. If that server comes back, drop the database there yourself."), "{forgotten}");
    assert!(crashes.run(&["--forget"]).error_line(1).ends_with("no source database is kept"));

    // The server is back. Its database is not overwritten; the operator must drop it.
    assert!(crashes.run(&["--to", "main"]).error_line(1).contains("server main already has a database of this name"));
    let place = TenantPlace { server: "main".to_owned(), ..crashes.find_tenant().await.place };
    home.databases().open().1.drop_database(&place).await.unwrap();
    crashes.run(&["--to", "main"]).expect(0);
    crashes.run(&["--drop-former"]).expect(0);
    crashes.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_wait_for_the_maximum_pause_at_most() {
    let crashes = Crashes::new().await;
    let (_, directory) = crashes.scene.home.databases().open();
    let database = directory.open(&crashes.find_tenant().await.place).unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.execute("UPDATE documents SET filename = filename", Vec::new()).await.unwrap();
    let aborted = run_in_background(&crashes.scene.home, &crashes.arguments(&["--to", crashes.to, "--max-pause", "1"])).await;
    assert!(aborted.err.contains("longer than 1 s: see --max-pause"), "{aborted:?}");
    drop(tx);
    crashes.assert_on("main", "the last writer took too long").await;
    assert_eq!(crashes.servers().await, ["main"]);
    crashes.end().await;
}

/// Without any command: the lease expires, and the running server undoes the move.
#[tokio::test(flavor = "multi_thread")]
async fn writes_resume_within_a_minute_after_the_mover_crashed() {
    let crashes = Crashes::new().await;
    let alice = &crashes.scene.alice;
    crashes.crash(&["--to", crashes.to], "move.sealed");
    let began = Instant::now();
    let path = crashes.scene.documents(&format!("/{}", crashes.document));
    let refused = alice.put(&path, &json!({ "filename": "early.txt" })).await.expect_error(503, "tenant_moving");
    assert_eq!(refused.header("retry-after"), "2");
    alice.get(&path).await.expect(200);
    crashes.completed().await;
    assert!(began.elapsed() < Duration::from_secs(60));
    crashes.assert_on("main", "after a minute").await;
    crashes.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_move_states_its_reason() {
    let (home, route) = home_with_servers();
    let scene = scene_on_main(home).await;
    let Scene { home, tenant, .. } = &scene;
    let to = route[0];
    let run = |arguments: &[&str]| home.run([&["tenants", "move", "Acme"][..], arguments].concat());
    assert!(run(&[]).expect(2).err.contains("--to <SERVER>"));
    assert!(run(&["--to", to, "--drop-former"]).expect(2).err.contains("cannot be used with"));
    assert!(
        run(&["--to", "nowhere"]).error_line(1).contains("TENANT_DATABASE_URLS names no server \"nowhere\"; known servers: away, main")
    );
    assert!(run(&["--drop-former"]).error_line(1).ends_with("no source database is kept"));
    assert!(run(&["--to", "main"]).expect(0).out.ends_with("is already on server main.\n"));
    assert_eq!(run(&["--to", "main", "--json"]).expect(0).json()["moved"], false);
    assert!(run(&["--rollback"]).error_line(1).ends_with("no source database is kept"));

    // The target server has a database of this name.
    let place = TenantPlace { server: to.to_owned(), ..find_tenant(home, tenant).await.place };
    let (_, directory) = home.databases().open();
    directory.create(&place).await.unwrap();
    assert!(run(&["--to", to]).error_line(1).contains(&format!("server {to} already has a database of this name")));
    assert!(directory.exists(&place).await.unwrap(), "it is not dropped");
    directory.drop_database(&place).await.unwrap();

    // An inactive tenant can be moved. The command prints its progress.
    home.run(["tenants", "deactivate", "Acme"]).expect(0);
    let moved = run(&["--to", to]).expect(0);
    assert!(moved.err.contains("writes are paused\n") && moved.err.contains("both databases are identical\n"), "{moved:?}");
    assert!(moved.out.contains("documents: 0 rows, SHA-256 ") && moved.out.contains("--drop-former"), "{moved:?}");
    home.run(["tenants", "activate", "Acme"]).expect(0);
    let shown = home.run(["tenants", "show", "Acme"]).expect(0).out;
    assert!(shown.contains(&format!("server          {to}")) && shown.contains("its source database is kept on server main"), "{shown}");
    let shown: Value = home.run(["tenants", "show", "Acme", "--json"]).expect(0).json();
    assert_eq!((&shown["move"]["from"], &shown["move"]["state"]), (&json!("main"), &json!("kept")), "{shown}");
    assert!(run(&["--to", "main"]).error_line(1).contains("its source database is still kept on server main"));

    // A permanent deletion leaves nothing on either server.
    let deleted = home.run(["tenants", "delete", "Acme", "--hard", "--confirm", "Acme"]).expect(0);
    assert!(deleted.out.contains("row and memberships: gone"), "{deleted:?}");
    for server in ["main", to] {
        assert!(!directory.exists(&TenantPlace { server: server.to_owned(), ..place.clone() }).await.unwrap(), "{server}");
    }
    scene.stop_and_check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moving_tenant_cannot_be_deleted_and_an_unavailable_server_is_no_target() {
    let crashes = Crashes::new().await;
    let home = &crashes.scene.home;
    let delete = ["tenants", "delete", &crashes.scene.tenant, "--hard", "--confirm", "Acme"];
    crashes.crash(&["--to", crashes.to], "move.copied");
    assert!(home.run(delete).error_line(1).contains("it is being moved to another server"));
    home.expire_leases().await;
    let unavailable = format!("main={},{}=postgres://postgres@127.0.0.1:1/postgres", main_url(home), crashes.to);
    let mut command = home.command(crashes.arguments(&["--to", crashes.to]));
    let failed = CommandOutput::of(command.env("TENANT_DATABASE_URLS", unavailable));
    assert!(failed.error_line(1).contains("was not moved"), "{failed:?}");
    crashes.assert_on("main", "the target server is unavailable").await;

    // The deletion drops the target database of the interrupted move, too.
    home.run(delete).expect(0);
    let (_, directory) = home.databases().open();
    let tombstone = wait_for_tombstone(home, crashes.scene.tenant.parse().unwrap()).await;
    for server in ["main", crashes.to] {
        let place = TenantPlace { server: server.to_owned(), ..tombstone.place.clone() };
        assert!(!directory.exists(&place).await.unwrap(), "{server}");
    }
    crashes.scene.stop_and_check().await;
}

fn main_url(home: &Home) -> String {
    let variables = home.databases().environment();
    let (_, servers) = variables.iter().find(|(name, _)| *name == "TENANT_DATABASE_URLS").unwrap();
    servers.split(',').next().unwrap().trim_start_matches("main=").to_owned()
}
