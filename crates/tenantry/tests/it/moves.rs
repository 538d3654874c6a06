//! Tenants' databases on their way to other servers.

use std::{
    os::unix::process::ExitStatusExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{Move, MoveState, Tenant};
use models::{moves, tenants};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Persona;

use crate::{
    placement::second_postgres,
    process::{Home, PATIENCE, Ran, Server, repeatedly},
};

/// A move: the tenant is in its new place afterwards, or in the old one.
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
/// A move that was interrupted is taken back.
pub(crate) const UNDO_MOVE: &[&str] = &["move.abandoned", "move.unsealed", "move.dropped"];
/// The return to the former database: the tenant is there afterwards, or not.
pub(crate) const RETURN: &[(&str, bool)] = &[("move.returning", false), ("move.returned", true)];

/// A home with all kinds of servers that there are, and a way over all of them, back to the first.
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

async fn known(home: &Home, id: &str) -> Tenant {
    let (main, _) = home.databases().open();
    tenants::find(&mut main.read().await.unwrap(), id.parse().unwrap()).await.unwrap().unwrap()
}

async fn on_the_move(home: &Home, id: &str) -> Option<Move> {
    let (main, _) = home.databases().open();
    moves::find(&mut main.read().await.unwrap(), id.parse().unwrap()).await.unwrap()
}

/// On which servers there is a database of the tenant's.
async fn databases_of(home: &Home, id: &str) -> Vec<String> {
    let (place, (_, directory)) = (known(home, id).await.place, home.databases().open());
    let mut found = Vec::new();
    for server in directory.servers() {
        if directory.exists(&domain::TenantPlace { server: server.to_owned(), ..place.clone() }).await.unwrap() {
            found.push(server.to_owned());
        }
    }
    found
}

/// Makes a tenant on the server `main`.
async fn tenant_on_main(home: &Home, alice: &Persona) -> String {
    let id = alice.creates_tenant("Moving").await;
    // Wherever there was room.
    if known(home, &id).await.place.server != "main" {
        home.run(["tenants", "move", &id, "--to", "main"]).expect(0);
        home.run(["tenants", "move", &id, "--drop-former"]).expect(0);
    }
    id
}

/// Writes at one instance and reads at the other what was acknowledged, until told to stop. Answers how many documents stay.
async fn work(tenant: String, one: Persona, two: Persona, n: usize, stop: Arc<AtomicBool>) -> usize {
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

/// Reads until told to stop. Answers how long it had to wait at most.
async fn read_on(tenant: String, reader: Persona, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        reader.get(&format!("/api/tenants/{tenant}/documents?per_page=1")).await.expect(200);
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    longest
}

/// Planted once each, and caught: no pause after the switch (an instance reads in the old database what another has changed in
/// the new one); no second copy while writes are paused (what came during the first one is lost).
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_moves_while_people_work_in_it() {
    let (home, way) = home_with_servers();
    let (one, two) = (home.serve().await, home.serve().await);
    let alice = one.user("alice").await;
    let tenant = tenant_on_main(&home, &alice).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let (a, b) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
            tokio::spawn(work(tenant.clone(), a.known(&alice), b.known(&alice), n, Arc::clone(&stop)))
        })
        .collect();
    let readers = [&one, &two].map(|server| tokio::spawn(read_on(tenant.clone(), server.known(&alice), Arc::clone(&stop))));
    let mut shortest_pause = u64::MAX;
    for server in &way {
        let moved = run_aside(&home, &["tenants", "move", &tenant, "--to", server, "--json"]).await.expect(0).json();
        assert_eq!(moved["server"], *server);
        let paused = moved["writes_paused_for_ms"].as_u64().unwrap();
        println!("to {server}: {} rows, writes waited {paused} ms", moved["tables"][0]["rows"]);
        shortest_pause = shortest_pause.min(paused);
        run_aside(&home, &["tenants", "move", &tenant, "--drop-former"]).await.expect(0);
        assert_eq!(databases_of(&home, &tenant).await, [*server]);
    }
    stop.store(true, Ordering::Relaxed);
    let mut kept = 0;
    for writer in writers {
        kept += writer.await.unwrap();
    }
    for reader in readers {
        let longest = reader.await.unwrap();
        assert!(longest < Duration::from_millis(shortest_pause / 2), "reads waited: {longest:?} of {shortest_pause} ms");
    }
    let listed = alice.get(&format!("/api/tenants/{tenant}/documents?per_page=1")).await.expect(200);
    assert_eq!(listed.json["data"]["pagination"]["total"], kept, "every acknowledged document and no other");
    two.stop().await;
    home.settle(one).await;
}

async fn run_aside(home: &Home, arguments: &[&str]) -> Ran {
    let mut command = home.command(arguments);
    tokio::task::spawn_blocking(move || Ran::of(&mut command)).await.unwrap()
}

/// Who ends a move that was interrupted.
#[derive(Clone, Copy, Debug)]
enum EndedBy {
    Server,
    Command,
}

struct Crashes {
    home: Home,
    server: Option<Server>,
    alice: Persona,
    tenant: String,
    document: String,
    /// Where the tenant is, and where it goes to.
    from: &'static str,
    to: &'static str,
}

impl Crashes {
    async fn new() -> Self {
        let (home, way) = home_with_servers();
        let server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = tenant_on_main(&home, &alice).await;
        let document = alice.uploads(&tenant, "kept.txt", "kept").await.expect(201).id();
        Self { home, server: Some(server), alice, tenant, document, from: "main", to: way[0] }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.home.run([&["tenants", "move", &self.tenant][..], arguments].concat())
    }

    /// The running server may be just about to end what was interrupted.
    fn run_patiently(&self, arguments: &[&str]) -> Ran {
        let began = Instant::now();
        loop {
            let ran = self.run(arguments);
            if !ran.err.contains("another process is moving its database") || began.elapsed() > PATIENCE {
                return ran;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    async fn crash(&self, arguments: &[&str], failpoint: &str) {
        let mut command = self.home.command([&["tenants", "move", &self.tenant][..], arguments].concat());
        let status = command.env("FAILPOINT", failpoint).output().unwrap().status;
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint} was not hit");
        println!("{failpoint}: hit once");
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    async fn start(&mut self) {
        self.server = Some(self.home.serve().await);
        self.alice = self.server.as_ref().unwrap().known(&self.alice);
    }

    /// Waits until nobody has to do anything for a move any more.
    async fn settled(&self) {
        let began = Instant::now();
        while on_the_move(&self.home, &self.tenant).await.is_some_and(|left| left.state != MoveState::Kept) {
            assert!(began.elapsed() < Duration::from_secs(60), "{:?}", on_the_move(&self.home, &self.tenant).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The tenant is on this server, whole, and people work in it.
    async fn is_on(&self, server: &str, why: &str) {
        assert_eq!(known(&self.home, &self.tenant).await.place.server, server, "{why}");
        assert_eq!(self.alice.downloads(&self.tenant, &self.document).await, b"kept", "{why}");
        self.alice.uploads(&self.tenant, "more.txt", why).await.expect(201);
    }

    /// What follows a move.
    fn moved(&mut self) {
        self.run(&["--drop-former"]).expect(0);
        std::mem::swap(&mut self.from, &mut self.to);
    }

    async fn end(mut self) {
        if self.from != "main" {
            self.run(&["--to", "main"]).expect(0);
            self.run(&["--drop-former"]).expect(0);
        }
        self.home.settle(self.server.take().unwrap()).await;
    }
}

#[test]
fn a_crash_in_a_move_leaves_the_tenant_on_one_server_and_nothing_on_the_other() {
    repeatedly(async || {
        for ended_by in [EndedBy::Server, EndedBy::Command] {
            let mut crashes = Crashes::new().await;
            for (failpoint, is_moved) in MOVE {
                let why = &format!("{failpoint}, ended by the {ended_by:?}");
                let to = crashes.to;
                crashes.crash(&["--to", to], failpoint).await;
                let crashed_at = Instant::now();
                let again = crashes.run(&["--to", to]);
                // A machine may stand still until the lease is over.
                if *failpoint != "move.resumed" && crashed_at.elapsed() < Duration::from_secs(10) {
                    assert!(again.complaint(1).contains("another process is moving its database"), "{why}: {again:?}");
                }
                // In the time after which nobody takes it for alive any more.
                crashes.home.forget_leases().await;
                match ended_by {
                    EndedBy::Server => {
                        crashes.restart().await;
                        crashes.settled().await;
                    }
                    EndedBy::Command => {
                        let told = crashes.run_patiently(&["--to", to]).expect(0).out;
                        assert_eq!(told.ends_with(&format!("is on server {to} already.\n")), *is_moved, "{told:?}");
                    }
                }
                if *is_moved || matches!(ended_by, EndedBy::Command) {
                    crashes.is_on(to, why).await;
                    crashes.moved();
                }
                crashes.is_on(crashes.from, &format!("{why}, at the end")).await;
                assert_eq!(databases_of(&crashes.home, &crashes.tenant).await, [crashes.from], "{why}");
            }
            crashes.end().await;
        }
    });
}

#[test]
fn a_crash_while_a_move_is_taken_back_or_its_former_database_dropped_is_made_good() {
    repeatedly(async || {
        let mut crashes = Crashes::new().await;
        for failpoint in UNDO_MOVE {
            let to = crashes.to;
            // Else it might be the server that takes the move back.
            crashes.stop().await;
            crashes.crash(&["--to", to], "move.sealed").await;
            crashes.home.forget_leases().await;
            crashes.crash(&["--to", to], failpoint).await;
            crashes.home.forget_leases().await;
            crashes.start().await;
            crashes.settled().await;
            crashes.is_on("main", failpoint).await;
            assert_eq!(databases_of(&crashes.home, &crashes.tenant).await, ["main"], "{failpoint}");
        }
        let to = crashes.to;
        crashes.run(&["--to", to]).expect(0);
        crashes.crash(&["--drop-former"], "move.dropped").await;
        crashes.is_on(to, "dropped").await;
        crashes.moved();
        assert_eq!(databases_of(&crashes.home, &crashes.tenant).await, [to]);
        crashes.end().await;
    });
}

#[test]
fn a_crash_in_a_return_leaves_the_tenant_in_one_of_its_databases() {
    repeatedly(async || {
        let mut crashes = Crashes::new().await;
        for (failpoint, has_returned) in RETURN {
            let to = crashes.to;
            crashes.run(&["--to", to]).expect(0);
            let path = format!("/api/tenants/{}/documents", crashes.tenant);
            let since = crashes.alice.uploads(&crashes.tenant, "since.txt", *failpoint).await.expect(201).id();
            let back = ["--back", "--confirm", "Moving"];
            crashes.crash(&back, failpoint).await;
            crashes.home.forget_leases().await;
            crashes.restart().await;
            crashes.settled().await;
            if !has_returned {
                crashes.alice.get(&format!("{path}/{since}")).await.expect(200);
                crashes.run_patiently(&back).expect(0);
            }
            crashes.is_on("main", failpoint).await;
            crashes.alice.get(&format!("{path}/{since}")).await.expect_error(404, "document_not_found");
            assert_eq!(databases_of(&crashes.home, &crashes.tenant).await, ["main"], "{failpoint}");
        }
        // Not settled: the objects of what was written since, and is lost as was said, are nobody's by now.
        crashes.server.unwrap().stop().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_for_good_holds_nobody() {
    let crashes = Crashes::new().await;
    let to = crashes.to;
    crashes.run(&["--to", to]).expect(0);
    assert!(crashes.run(&["--back"]).complaint(1).contains("--confirm is not set"));
    assert!(crashes.run(&["--back", "--confirm", "Other"]).complaint(1).contains("nothing was changed"));
    let variables = crashes.home.databases().environment();
    let (_, servers) = variables.iter().find(|(name, _)| *name == "TENANT_DATABASE_URLS").unwrap();
    let gone = servers.replace(&format!("main={}", main_url(&crashes.home)), "main=postgres://postgres@127.0.0.1:1/postgres");
    let without_main = |arguments: &[&str]| {
        let mut command = crashes.home.command([&["tenants", "move", &crashes.tenant][..], arguments].concat());
        Ran::of(command.env("TENANT_DATABASE_URLS", &gone))
    };
    without_main(&["--drop-former"]).expect(1);
    without_main(&["--back", "--confirm", "Moving"]).expect(1);
    crashes.is_on(to, "what it left can't be reached").await;
    assert!(crashes.run(&["--forget"]).complaint(1).contains("server main answers: use --drop-former"));
    let checked =
        Ran::of(crashes.home.command(["check"]).env("TENANT_DATABASE_URLS", servers.replace(&format!(",{to}="), ",other="))).expect(1).out;
    let unknown =
        format!("tenant databases ({to}): DOWN: server is unavailable: 1 tenants are there, and TENANT_DATABASE_URLS does not name it");
    assert!(checked.contains(&unknown), "{checked}");
    let forgotten = without_main(&["--forget"]).expect(0).out;
    assert!(forgotten.contains("on server main. Should that server come back, drop it there yourself."), "{forgotten}");
    assert!(crashes.run(&["--forget"]).complaint(1).ends_with("no former database of it is kept"));

    // The server is back. What it has is nobody's to overwrite, and the operator's to drop.
    assert!(crashes.run(&["--to", "main"]).complaint(1).contains("server main has a database of this name already"));
    let place = domain::TenantPlace { server: "main".to_owned(), ..known(&crashes.home, &crashes.tenant).await.place };
    crashes.home.databases().open().1.drop_database(&place).await.unwrap();
    crashes.run(&["--to", "main"]).expect(0);
    crashes.run(&["--drop-former"]).expect(0);
    crashes.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_do_not_wait_longer_than_they_may() {
    let crashes = Crashes::new().await;
    let (_, directory) = crashes.home.databases().open();
    let database = directory.open(&known(&crashes.home, &crashes.tenant).await.place).unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.execute("UPDATE documents SET filename = filename", Vec::new()).await.unwrap();
    let given_up = run_aside(&crashes.home, &["tenants", "move", &crashes.tenant, "--to", crashes.to, "--max-pause", "1"]).await;
    assert!(given_up.err.contains("longer than the 1 s that they may: see --max-pause"), "{given_up:?}");
    drop(tx);
    crashes.is_on("main", "the last writer took too long").await;
    assert_eq!(databases_of(&crashes.home, &crashes.tenant).await, ["main"]);
    crashes.end().await;
}

/// Nobody does anything: the lease runs out, and a server that runs all the time sees to it.
#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_within_a_minute_after_the_mover_died() {
    let crashes = Crashes::new().await;
    crashes.crash(&["--to", crashes.to], "move.sealed").await;
    let began = Instant::now();
    let path = format!("/api/tenants/{}/documents/{}", crashes.tenant, crashes.document);
    let refused = crashes.alice.put(&path, &json!({ "filename": "early.txt" })).await.expect_error(503, "tenant_moving");
    assert_eq!(refused.header("retry-after"), "2");
    crashes.alice.get(&path).await.expect(200);
    crashes.settled().await;
    assert!(began.elapsed() < Duration::from_secs(60));
    crashes.is_on("main", "after a minute").await;
    crashes.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_moved_is_told_why() {
    let (home, way) = home_with_servers();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let tenant = tenant_on_main(&home, &alice).await;
    let to = way[0];
    let run = |arguments: &[&str]| home.run([&["tenants", "move", "Moving"][..], arguments].concat());
    assert!(run(&[]).expect(2).err.contains("--to <SERVER>"));
    assert!(run(&["--to", to, "--drop-former"]).expect(2).err.contains("cannot be used with"));
    assert!(run(&["--to", "nowhere"]).complaint(1).contains("TENANT_DATABASE_URLS names no server \"nowhere\"; there are: away, main"));
    assert!(run(&["--drop-former"]).complaint(1).ends_with("no former database of it is kept"));
    assert!(run(&["--to", "main"]).expect(0).out.ends_with("is on server main already.\n"));
    assert_eq!(run(&["--to", "main", "--json"]).expect(0).json()["moved"], false);
    assert!(run(&["--back"]).complaint(1).ends_with("no former database of it is kept"));

    // Something else has the name there.
    let place = domain::TenantPlace { server: to.to_owned(), ..known(&home, &tenant).await.place };
    let (_, directory) = home.databases().open();
    directory.create(&place).await.unwrap();
    assert!(run(&["--to", to]).complaint(1).contains(&format!("server {to} has a database of this name already")));
    assert!(directory.exists(&place).await.unwrap(), "it is left alone");
    directory.drop_database(&place).await.unwrap();

    // An inactive tenant moves, too. Lines tell how far it is.
    home.run(["tenants", "deactivate", "Moving"]).expect(0);
    let moved = run(&["--to", to]).expect(0);
    assert!(moved.err.contains("writes wait from now on\n") && moved.err.contains("both databases are equal\n"), "{moved:?}");
    assert!(moved.out.contains("documents: 0 rows, SHA-256 ") && moved.out.contains("--drop-former"), "{moved:?}");
    home.run(["tenants", "activate", "Moving"]).expect(0);
    let shown = home.run(["tenants", "show", "Moving"]).expect(0).out;
    assert!(shown.contains(&format!("server          {to}")) && shown.contains("its former database is kept on server main"), "{shown}");
    let shown: Value = home.run(["tenants", "show", "Moving", "--json"]).expect(0).json();
    assert_eq!((&shown["move"]["from"], &shown["move"]["state"]), (&json!("main"), &json!("kept")), "{shown}");
    assert!(run(&["--to", "main"]).complaint(1).contains("its former database is still kept on server main"));

    // Deleted for good, it leaves nothing on either.
    let deleted = home.run(["tenants", "delete", "Moving", "--hard", "--confirm", "Moving"]).expect(0);
    assert!(deleted.out.contains("row and memberships: gone"), "{deleted:?}");
    for server in ["main", to] {
        assert!(!directory.exists(&domain::TenantPlace { server: server.to_owned(), ..place.clone() }).await.unwrap(), "{server}");
    }
    home.settle(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_on_the_move_is_not_deleted_and_a_server_that_is_down_takes_none() {
    let crashes = Crashes::new().await;
    let delete = ["tenants", "delete", &crashes.tenant, "--hard", "--confirm", "Moving"];
    crashes.crash(&["--to", crashes.to], "move.copied").await;
    assert!(crashes.home.run(delete).complaint(1).contains("it is being moved to another server"));
    crashes.home.forget_leases().await;
    let nowhere = format!("main={},{}=postgres://postgres@127.0.0.1:1/postgres", main_url(&crashes.home), crashes.to);
    let mut command = crashes.home.command(["tenants", "move", &crashes.tenant, "--to", crashes.to]);
    let failed = Ran::of(command.env("TENANT_DATABASE_URLS", nowhere));
    assert!(failed.complaint(1).contains("was not moved"), "{failed:?}");
    crashes.is_on("main", "the new server is down").await;

    // What an interrupted move began is dropped with it.
    crashes.home.run(delete).expect(0);
    let (_, directory) = crashes.home.databases().open();
    let tombstone = crate::failpoints::tombstone_of(&crashes.home, crashes.tenant.parse().unwrap()).await;
    for server in ["main", crashes.to] {
        let place = domain::TenantPlace { server: server.to_owned(), ..tombstone.place.clone() };
        assert!(!directory.exists(&place).await.unwrap(), "{server}");
    }
    crashes.home.settle(crashes.server.unwrap()).await;
}

fn main_url(home: &Home) -> String {
    let variables = home.databases().environment();
    let (_, servers) = variables.iter().find(|(name, _)| *name == "TENANT_DATABASE_URLS").unwrap();
    servers.split(',').next().unwrap().trim_start_matches("main=").to_owned()
}
