//! SIGKILL in the middle of uploads and deletions: nothing that was acknowledged is lost or comes back.

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

use crate::process::{Home, PATIENCE};

const WRITERS: u64 = 8;

/// What a writer knows of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// The upload was acknowledged.
    There,
    /// A deletion was sent; nobody knows.
    Unknown,
    /// The deletion was acknowledged.
    Gone,
}

/// Documents by id, each with the seed of its content.
type Ledger = Arc<Mutex<BTreeMap<String, (u64, Known)>>>;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_sigkill() {
    // Planted once: `finish_upload` put the object after the commit (step b after step c). This test then said: "document
    // upload.bin: its object is Err(NotFound)", of two uploads that nobody had been answered.
    #[expect(clippy::disallowed_methods, reason = "how long to look is the environment's to say")]
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
        // The collector is at work, too, and dies with the server if it is not done.
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
        let answered_after = restarted.elapsed();
        let alice = server.known(&alice);
        let known = ledger.lock().unwrap().clone();
        for (id, (seed, known)) in &known {
            check(&alice, &tenant, id, *seed, *known).await;
        }
        let count = |state| known.values().filter(|(_, known)| *known == state).count();
        println!(
            "round {round}: {} there, {} gone, {} unknown; answered {answered_after:?} after the restart",
            count(Known::There),
            count(Known::Gone),
            count(Known::Unknown)
        );
        everything.lock().unwrap().extend(known);
    }
    assert!(everything.lock().unwrap().len() > 10, "too little was written to mean anything");

    home.run(["gc"]).expect(0);
    let alice = server.known(&alice);
    let everything = everything.lock().unwrap().clone();
    for (id, (seed, known)) in everything {
        check(&alice, &tenant, &id, seed, known).await;
    }
    server.stop().await;
    assert_eq!(home.broken().await, Vec::<String>::new());
}

/// Uploads and deletes until the server is gone.
async fn write(alice: Persona, tenant: String, ledger: Ledger, seeds: Arc<AtomicUsize>, mut random: Random) {
    let documents = format!("/api/tenants/{tenant}/documents");
    let mut mine = Vec::new();
    loop {
        if !mine.is_empty() && random.below(4) == 0 {
            let id: String = mine.swap_remove(usize::try_from(random.below(mine.len() as u64)).unwrap());
            let note = |known| ledger.lock().unwrap().get_mut(&id).unwrap().1 = known;
            note(Known::Unknown);
            match alice.request(Method::DELETE, &format!("{documents}/{id}")).timeout(PATIENCE).send().await {
                Ok(answer) => assert_eq!(answer.status(), 200),
                Err(_) => return,
            }
            note(Known::Gone);
        } else {
            // Every third has the content of one before it.
            let seed = match random.below(3) {
                0 => random.below(4),
                _ => 4 + seeds.fetch_add(1, Ordering::Relaxed) as u64,
            };
            let part = Part::bytes(content(seed)).file_name("upload.bin");
            let upload = alice.request(Method::POST, &documents).multipart(Form::new().part("file", part));
            let sent = upload.timeout(PATIENCE).send().await;
            let Ok(answer) = sent else { return };
            assert_eq!(answer.status(), 201);
            // Acknowledged is what arrived whole.
            let Ok(body) = answer.json::<serde_json::Value>().await else { return };
            let id = body["data"]["id"].as_str().unwrap().to_owned();
            ledger.lock().unwrap().insert(id.clone(), (seed, Known::There));
            mine.push(id);
        }
    }
}

async fn check(alice: &Persona, tenant: &str, id: &str, seed: u64, known: Known) {
    let found = alice.get(&format!("/api/tenants/{tenant}/documents/{id}")).await;
    match (known, found.status.as_u16()) {
        (Known::There, 200) | (Known::Unknown, 200) => {
            assert!(alice.downloads(tenant, id).await == content(seed), "document {id} has another content");
        }
        (Known::Gone | Known::Unknown, 404) => {}
        (known, status) => panic!("document {id} is {known:?}, but answers {status}: {}", found.json),
    }
}

/// 2 KB to 3 MB, most of them small.
fn content(seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_add(1_000_000));
    let size = match random.below(8) {
        0 => 2_000 + random.below(3_000_000),
        _ => 2_000 + random.below(100_000),
    };
    (0..size.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(usize::try_from(size).unwrap()).collect()
}

/// SplitMix64: the same numbers for the same seed.
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
