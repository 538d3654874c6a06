//! SIGKILL during uploads and deletions: no acknowledged change is lost or undone.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{
    Method,
    multipart::{Form, Part},
};
use testkit::Persona;

use crate::process::{Home, WAIT_TIMEOUT};

const WRITERS: u64 = 8;

/// What a writer knows about a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// The upload was acknowledged.
    Exists,
    /// A deletion was sent and not acknowledged.
    Unknown,
    /// The deletion was acknowledged.
    Deleted,
}

/// The known documents by id, with the seeds of their contents.
type Ledger = Arc<Mutex<BTreeMap<String, (u64, Known)>>>;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_changes_survive_a_sigkill() {
    // Seeded fault, detected: `finish_upload` stored the object after the commit (step b after step c). This test reported
    // "document upload.bin: its object is Err(NotFound)" for two unacknowledged uploads.
    #[expect(clippy::disallowed_methods, reason = "the environment of a test run decides how long")]
    let rounds: u64 = std::env::var("KILL_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    let home = Home::new();
    let mut server = home.serve().await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let everything = Ledger::default();
    for round in 0..rounds {
        let ledger = Ledger::default();
        let alice = server.known(&alice);
        let seeds = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let random = Random(round * WRITERS + writer);
                tokio::spawn(write(alice.clone(), tenant.clone(), ledger.clone(), Arc::clone(&seeds), random))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(Random(round).below(450) + 30)).await;
        // The collector runs, too, and is killed with the server.
        let mut collector = home.command(["gc"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(20 + Random(round).next() % 40)).await;
        server.kill();
        collector.kill().unwrap();
        collector.wait().unwrap();
        for writer in writers {
            writer.await.unwrap();
        }

        let restarted = Instant::now();
        server = home.serve().await;
        let healthy_after = restarted.elapsed();
        let alice = server.known(&alice);
        let known = ledger.lock().unwrap().clone();
        for (id, (seed, known)) in &known {
            check(&alice, &tenant, id, *seed, *known).await;
        }
        let count = |state| known.values().filter(|(_, known)| *known == state).count();
        println!(
            "round {round}: {} exist, {} deleted, {} unknown; healthy {healthy_after:?} after the restart",
            count(Known::Exists),
            count(Known::Deleted),
            count(Known::Unknown)
        );
        everything.lock().unwrap().extend(known);
    }
    assert!(everything.lock().unwrap().len() > 10, "too few documents for a meaningful test");

    home.run(["gc"]).expect(0);
    let alice = server.known(&alice);
    let everything = everything.lock().unwrap().clone();
    for (id, (seed, known)) in everything {
        check(&alice, &tenant, &id, seed, known).await;
    }
    server.stop().await;
    home.assert_consistent().await;
}

/// Uploads and deletes documents until the server is killed.
async fn write(alice: Persona, tenant: String, ledger: Ledger, seeds: Arc<AtomicUsize>, mut random: Random) {
    let documents = format!("/api/tenants/{tenant}/documents");
    let mut mine = Vec::new();
    loop {
        if !mine.is_empty() && random.below(4) == 0 {
            let id: String = mine.swap_remove(usize::try_from(random.below(mine.len() as u64)).unwrap());
            let set = |known| ledger.lock().unwrap().get_mut(&id).unwrap().1 = known;
            set(Known::Unknown);
            match alice.request(Method::DELETE, &format!("{documents}/{id}")).timeout(WAIT_TIMEOUT).send().await {
                Ok(response) => assert_eq!(response.status(), 200),
                Err(_) => return,
            }
            set(Known::Deleted);
        } else {
            // Every third document has the content of an earlier one.
            let seed = match random.below(3) {
                0 => random.below(4),
                _ => 4 + seeds.fetch_add(1, Ordering::Relaxed) as u64,
            };
            let part = Part::bytes(content(seed)).file_name("upload.bin");
            let upload = alice.request(Method::POST, &documents).multipart(Form::new().part("file", part));
            let sent = upload.timeout(WAIT_TIMEOUT).send().await;
            let Ok(response) = sent else { return };
            assert_eq!(response.status(), 201);
            // A truncated response acknowledges nothing.
            let Ok(body) = response.json::<serde_json::Value>().await else { return };
            let id = body["data"]["id"].as_str().unwrap().to_owned();
            ledger.lock().unwrap().insert(id.clone(), (seed, Known::Exists));
            mine.push(id);
        }
    }
}

async fn check(alice: &Persona, tenant: &str, id: &str, seed: u64, known: Known) {
    let found = alice.get(&format!("/api/tenants/{tenant}/documents/{id}")).await;
    match (known, found.status.as_u16()) {
        (Known::Exists | Known::Unknown, 200) => {
            assert!(alice.downloads(tenant, id).await == content(seed), "document {id} has the wrong content");
        }
        (Known::Deleted | Known::Unknown, 404) => {}
        (known, status) => panic!("document {id} is {known:?}, but has status {status}: {}", found.json),
    }
}

/// A content of 2 KB to 3 MB, usually a small one.
fn content(seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_add(1_000_000));
    let size = match random.below(8) {
        0 => 2_000 + random.below(3_000_000),
        _ => 2_000 + random.below(100_000),
    };
    (0..size.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(usize::try_from(size).unwrap()).collect()
}

/// SplitMix64, a reproducible sequence of random numbers.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
