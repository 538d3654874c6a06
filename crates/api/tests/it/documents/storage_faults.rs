//! What users see when the object store is down, refuses, is slow, or breaks off: the table in docs/OPERATIONS.md.
//!
//! Between the app and the S3 store of `TEST_S3_ENDPOINT_URL` stands a proxy that fails as it is told to. Without that store, files are
//! tried in its place, as far as files can fail, and the tests of S3 say that they did nothing.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![expect(clippy::print_stdout, reason = "how long users wait is what the tests have to say")]

use std::{
    fs,
    io::{self, Write},
    sync::{Arc, Mutex, Once},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use domain::{Dependency, Error, Tenant};
use futures_util::{TryStreamExt, future::join_all};
use reqwest::{Method, multipart::Form};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{Answer, Behaviour, FaultyProxy, Persona, Reply, TestApp};
use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: usize = 1 << 20;

/// Within this time whoever needs the store is told that it is down: 16 s as it is documented, and what a busy machine adds.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// Within this time is served what needs no store.
const SERVED_WITHIN: Duration = Duration::from_secs(4);

struct World {
    app: TestApp,
    proxy: FaultyProxy,
    alice: Persona,
    acme: String,
}

impl World {
    /// An app whose store fails when it is to; none without a store.
    async fn new() -> Option<Self> {
        let objects = testkit::TestObjects::new(std::path::Path::new("/nonexistent"));
        let Some(target) = objects.s3_address() else {
            // Past the test runner, which shows what is printed only of tests that fail.
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let _ = writeln!(io::stderr(), "NOTHING TESTED by {name}: it needs an S3 store (TEST_S3_ENDPOINT_URL)");
            return None;
        };
        listen();
        let proxy = FaultyProxy::start(target).await;
        let app = TestApp::builder().storage_at(proxy.url()).start().await;
        let alice = app.user("alice").await;
        let acme = alice.creates_tenant("Acme").await;
        Some(Self { app, proxy, alice, acme })
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}/documents{rest}", self.acme)
    }

    async fn uploads(&self, name: &str, content: &[u8]) -> Reply {
        self.alice.uploads(&self.acme, name, content).await
    }

    async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = {
            let listed = self.alice.get(&self.path("")).await.expect(200);
            listed.items().iter().map(|document| document["filename"].as_str().unwrap().to_owned()).collect()
        };
        names.sort();
        names
    }

    async fn announces(&self, name: &str, content: &[u8]) -> Reply {
        let sha256: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let announcement = json!({ "filename": name, "mime_type": "text/plain", "size": content.len(), "sha256": sha256 });
        self.alice.post(&self.path("/uploads"), &announcement).await
    }

    async fn sends(&self, begun: &Reply, content: &[u8]) {
        for part in begun.data()["parts"].as_array().unwrap() {
            let number = |name: &str| usize::try_from(part[name].as_u64().unwrap()).unwrap();
            let (offset, size) = (number("offset"), number("size"));
            let bytes = content[offset..offset + size].to_vec();
            let sent = self.app.stranger().request(Method::PUT, part["url"].as_str().unwrap()).body(bytes);
            Reply::to(sent).await.expect(200);
        }
    }

    async fn completes(&self, begun: &Reply) -> Reply {
        let id = begun.data()["upload"]["id"].as_str().unwrap();
        Reply::to(self.alice.request(Method::POST, &self.path(&format!("/uploads/{id}/complete")))).await
    }

    /// Looks at an upload, which goes on with it, until it is a document; answers that.
    async fn until_completed(&self, id: &str) -> Value {
        let started = Instant::now();
        loop {
            let found = self.alice.get(&self.path(&format!("/uploads/{id}"))).await.expect(200);
            if found.data()["upload"]["state"] == "completed" {
                return found.data()["document"].clone();
            }
            assert_eq!(found.data()["upload"]["state"], "completing", "{}", found.json);
            assert!(started.elapsed() < Duration::from_secs(60), "it does not recover");
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn tenant(&self) -> Tenant {
        let tenants = self.app.services().operator.list_all_tenants().await.unwrap();
        tenants.into_iter().find(|tenant| tenant.id.to_string() == self.acme).unwrap()
    }

    async fn unfinished(&self) -> usize {
        let (storage, prefix) = (self.app.objects().open(), format!("tenants/{}", self.acme));
        storage.list_unfinished(&prefix).try_collect::<Vec<_>>().await.unwrap().len()
    }

    async fn objects(&self) -> usize {
        self.app.objects().list(&[self.tenant().await.id]).await.len()
    }

    /// Ends a test: after a collection with everything expired and settled, nothing is left but the documents of these contents,
    /// and nobody was told what is none of their business.
    async fn ends_with(self, documents: &[(&str, &[u8])]) {
        self.proxy.set_and_drop(Behaviour::Pass);
        self.app.clock().advance(8 * DAY);
        self.app.services().operator.collect_garbage(&self.tenant().await).await.unwrap();
        let alice = self.alice.logged_in().await;
        let listed = alice.get(&self.path("")).await.expect(200);
        let mut expected: Vec<_> = documents.iter().map(|(name, _)| *name).collect();
        let mut names: Vec<_> = listed.items().iter().map(|document| document["filename"].as_str().unwrap()).collect();
        expected.sort_unstable();
        names.sort_unstable();
        assert_eq!(names, expected);
        for document in listed.items() {
            let (_, content) = documents.iter().find(|(name, _)| document["filename"] == *name).unwrap();
            assert!(alice.downloads(&self.acme, document["id"].as_str().unwrap()).await == *content, "{}", document["filename"]);
        }
        assert_eq!((self.objects().await, self.unfinished().await), (documents.len(), 0));
        let log = LOG.lock().unwrap().clone();
        for secret in self.secrets() {
            assert!(!log.contains(&secret), "{secret} is logged");
        }
    }

    /// What neither answers nor the log may say.
    fn secrets(&self) -> Vec<String> {
        let (id, secret) = self.app.objects().s3_credentials().unwrap();
        vec![self.proxy.address().to_string(), id, secret]
    }

    /// Whether it is told as it should be that the store is down.
    #[track_caller]
    fn assert_told(&self, reply: Timed) {
        let Timed { reply, took } = reply;
        let reply = reply.expect_error(503, "service_unavailable");
        assert_eq!(reply.json["error"]["details"], json!({ "dependency": "object storage" }));
        assert!((1..=60).contains(&reply.header("retry-after").parse().unwrap()));
        let text = String::from_utf8_lossy(&reply.bytes);
        assert!(self.secrets().iter().all(|secret| !text.contains(secret)) && !text.contains("://"), "{text}");
        assert!(took < TOLD_WITHIN, "told after {took:?}");
    }
}

/// A reply and how long it took.
struct Timed {
    reply: Reply,
    took: Duration,
}

async fn timed(replying: impl Future<Output = Reply>) -> Timed {
    let started = Instant::now();
    Timed { reply: replying.await, took: started.elapsed() }
}

/// What is logged while these tests run.
static LOG: Mutex<String> = Mutex::new(String::new());

struct ToLog;

impl Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for ToLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

/// Keeps what is logged at the levels that a production has.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let level = tracing_subscriber::filter::LevelFilter::INFO;
        tracing_subscriber::fmt().with_ansi(false).with_max_level(level).with_writer(ToLog).init();
    });
}

/// So many bytes that are nobody else's.
fn content(size: usize) -> Vec<u8> {
    let seed = domain::random_bytes::<32>();
    seed.iter().copied().cycle().zip(0_u32..).map(|(byte, n)| byte ^ n.to_le_bytes()[1]).take(size).collect()
}

/// Everything that users, operators and the collector do, while the store fails in one way.
async fn while_it_fails(behaviour: Behaviour) {
    let Some(world) = World::new().await else { return };
    let (kept, large, announced) = (content(3000), content(20 * MIB), content(6 * MIB));
    let document = world.uploads("kept", &kept).await.expect(201);
    let spare = world.uploads("spare", b"spare").await.expect(201);
    let begun = world.announces("announced", &announced).await.expect(201);
    world.sends(&begun, &announced).await;
    let spares_file = format!("/api/tenants/{}/files/{}", world.acme, spare.data()["file_id"].as_str().unwrap());

    world.proxy.set_and_drop(behaviour);
    let (small, in_parts, version, beginning, completing, ready, (), ()) = tokio::join!(
        timed(world.uploads("small", b"small")),
        timed(world.uploads("large", &large)),
        timed(Reply::to(world.alice.request(Method::PUT, &world.path(&format!("/{}/content", document.id()))).body("other"))),
        timed(world.announces("never", b"never")),
        timed(world.completes(&begun)),
        timed(Reply::to(world.app.stranger().request(Method::GET, "/health/ready"))),
        // The rest works, and doesn't wait for the store.
        async {
            let found = timed(world.alice.get(&world.path(&format!("/{}", document.id())))).await;
            let url = timed(world.alice.get(&world.path(&format!("/{}/download?redirect=false", document.id())))).await;
            let again = timed(world.uploads("copy", &kept)).await;
            let deleted = timed(world.alice.delete(&world.path(&format!("/{}", spare.id())))).await;
            let made = timed(world.alice.post("/api/tenants", &json!({ "name": "Other" }))).await;
            for (Timed { reply, took }, status) in [(found, 200), (url, 200), (again, 201), (deleted, 200), (made, 201)] {
                reply.expect(status);
                assert!(took < SERVED_WITHIN, "served after {took:?}");
            }
            // The file is gone for good; its object, when the store is back.
            let Timed { reply, took } = timed(world.alice.delete(&spares_file)).await;
            reply.expect(200);
            assert!(took < TOLD_WITHIN, "deleted after {took:?}");
            world.alice.get(&spares_file).await.expect(404);
        },
        async {
            let tenant = world.tenant().await;
            let verified = world.app.services().operator.verify_tenant(&tenant, true, &|_| ()).await;
            assert!(matches!(verified, Err(Error::Unavailable { dependency: Dependency::ObjectStorage, .. })), "{verified:?}");
        },
    );
    for told in [small, in_parts, version, beginning, completing] {
        println!("{}: told after {:.1?}", std::thread::current().name().unwrap_or_default(), told.took);
        world.assert_told(told);
    }
    let not_ready = ready.reply.expect_error(503, "not_ready");
    assert_eq!(not_ready.json["error"]["details"]["object storage"], "down", "{}", not_ready.json);
    assert!(ready.took < SERVED_WITHIN && !not_ready.header("retry-after").is_empty(), "{:?}", ready.took);
    assert!(LOG.lock().unwrap().contains("a dependency is unavailable"), "the log is read at all");
    assert_eq!(world.names().await, ["copy", "kept"]);
    world.app.clock().advance(Duration::from_secs(2 * 3600));
    let collected = world.app.services().operator.collect_garbage(&world.tenant().await).await;
    assert!(matches!(collected, Err(Error::Unavailable { dependency: Dependency::ObjectStorage, .. })), "{collected:?}");

    world.proxy.set_and_drop(Behaviour::Pass);
    let world = World { alice: world.alice.logged_in().await, ..world };
    world.uploads("after", b"after").await.expect(201);
    world.uploads("large", &large).await.expect(201);
    world.completes(&begun).await.expect(200);
    world.app.stranger().get("/health/ready").await.expect(200);
    let tenant = world.tenant().await;
    let verified = world.app.services().operator.verify_tenant(&tenant, true, &|_| ()).await.unwrap();
    assert_eq!(verified.findings.len(), 0, "{:?}", verified.findings);
    assert_eq!(world.names().await, ["after", "announced", "copy", "kept", "large"]);
    let id = world.alice.get(&world.path("?filename=copy")).await.expect(200).items()[0]["id"].as_str().unwrap().to_owned();
    world.alice.delete(&world.path(&format!("/{id}"))).await.expect(200);
    world.ends_with(&[("after", b"after"), ("announced", &announced), ("kept", &kept), ("large", &large)]).await;
}

/// At once, since most of the time is waiting: each in a thread that bears its name.
#[test]
fn while_the_store_fails_users_are_told_and_the_rest_works() {
    let failures = [
        ("refuses connections", Behaviour::Refuse),
        ("never answers", Behaviour::BlackHole),
        ("breaks down", Behaviour::Answer(Answer::internal_error())),
        ("wants to be left alone", Behaviour::Answer(Answer::slow_down())),
        ("lets us in no more", Behaviour::Answer(Answer::access_denied())),
        ("has no bucket", Behaviour::Answer(Answer::s3(404, "NoSuchBucket", "The specified bucket does not exist"))),
    ];
    let threads = failures.map(|(name, behaviour)| {
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(while_it_fails(behaviour));
        };
        (name, std::thread::Builder::new().name(format!("the store {name}")).spawn(work).unwrap())
    });
    let failed: Vec<_> = threads.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect();
    assert!(failed.is_empty(), "while the store {failed:?}, something is not as it should be: see above");
}

#[tokio::test]
async fn what_fails_in_passing_is_tried_again() {
    let Some(world) = World::new().await else { return };
    let (large, announced) = (content(20 * MIB), content(100_000));
    world.proxy.set(Behaviour::AnswerFirst(3, Answer::slow_down()));
    world.uploads("a", b"a").await.expect(201);
    world.proxy.set(Behaviour::AnswerFirst(3, Answer::internal_error()));
    world.uploads("b", &large).await.expect(201);
    world.proxy.set(Behaviour::AnswerFirst(2, Answer::slow_down()));
    let begun = world.announces("c", &announced).await.expect(201);
    world.sends(&begun, &announced).await;
    world.proxy.set(Behaviour::AnswerFirst(2, Answer::internal_error()));
    world.completes(&begun).await.expect(200);
    // Cut off in their bodies, until the network is mended.
    for (name, content, limit) in [("d", content(60_000), 20_000), ("e", content(20 * MIB), 5 * MIB as u64)] {
        world.proxy.set(Behaviour::ResetRequestAfter(limit));
        let mended = async {
            sleep(Duration::from_secs(2)).await;
            world.proxy.set(Behaviour::Pass);
        };
        let (uploaded, ()) = tokio::join!(world.uploads(name, &content), mended);
        let id = uploaded.expect(201).id();
        assert!(world.alice.downloads(&world.acme, &id).await == content);
        world.alice.delete(&world.path(&format!("/{id}"))).await.expect(200);
    }
    world.ends_with(&[("a", b"a"), ("b", &large), ("c", &announced)]).await;
}

#[tokio::test]
async fn uploads_that_are_cut_off_leave_nothing() {
    let Some(world) = World::new().await else { return };
    let (small, large) = (content(60_000), content(20 * MIB));
    // In the head, in the body, in a part of a large one.
    for (limit, content) in [(30, &small), (20_000, &small), (5 * MIB as u64, &large)] {
        world.proxy.set_and_drop(Behaviour::ResetRequestAfter(limit));
        let told = timed(world.uploads("cut off", content)).await;
        println!("told after {:.1?}", told.took);
        world.assert_told(told);
        world.proxy.set(Behaviour::Pass);
        assert_eq!((world.names().await.len(), world.unfinished().await), (0, 0));
    }
    // Swallowed from the middle on: the parts that are under way are not waited for.
    world.proxy.set_and_drop(Behaviour::Throttle(4 * MIB as u64));
    let swallowing = async {
        sleep(Duration::from_millis(1500)).await;
        world.proxy.set(Behaviour::BlackHole);
    };
    let (told, ()) = tokio::join!(timed(world.uploads("swallowed", &large)), swallowing);
    println!("told after {:.1?}", told.took);
    world.assert_told(Timed { took: told.took - Duration::from_millis(1500), ..told });
    world.ends_with(&[]).await;
}

#[tokio::test]
async fn what_breaks_off_while_it_is_read_is_never_taken_for_whole() {
    let Some(world) = World::new().await else { return };
    let (direct, resumable) = (content(5 * MIB), content(9 * MIB));
    let tenant = world.tenant().await;
    let begun = world.announces("direct", &direct).await.expect(201);
    world.sends(&begun, &direct).await;
    let metadata = format!("filename {},filetype {}", STANDARD.encode("resumable"), STANDARD.encode("text/plain"));
    let tus = |method, path: &str| world.alice.request(method, path).header("tus-resumable", "1.0.0");
    let creation = tus(Method::POST, &world.path("/tus")).header("upload-length", resumable.len()).header("upload-metadata", metadata);
    let url = Reply::to(creation).await.expect(201).header("location").to_owned();

    // A few bytes of each answer: no number of attempts is enough.
    world.proxy.set_and_drop(Behaviour::ResetResponseAfter(50_000));
    let patch = tus(Method::PATCH, &url).header("upload-offset", 0).header("content-type", "application/offset+octet-stream");
    let (completing, patched) = tokio::join!(timed(world.completes(&begun)), timed(Reply::to(patch.body(resumable.clone()))));
    println!("direct {} after {:.1?}, tus {} after {:.1?}", completing.reply.status, completing.took, patched.reply.status, patched.took);
    world.assert_told(completing);
    // All bytes are here, the document comes later.
    let patched = patched.reply.expect(204);
    assert_eq!((patched.header("upload-offset"), patched.header("content-location")), ("9437184", ""));
    assert_eq!(world.names().await, [""; 0]);

    // The store is back: whoever looks has them completed. One reset in the middle is not noticed.
    world.proxy.set_and_drop(Behaviour::ResetResponseAfter(3 * MIB as u64));
    let document = world.until_completed(begun.data()["upload"]["id"].as_str().unwrap()).await;
    assert_eq!(document["filename"], "direct");
    world.proxy.set(Behaviour::Pass);
    let id = url.rsplit('/').next().unwrap();
    assert_eq!(world.until_completed(id).await["filename"], "resumable");

    // Nor does an operator who has every object read hear of a damaged one.
    world.proxy.set_and_drop(Behaviour::ResetResponseAfter(50_000));
    let verified = world.app.services().operator.verify_tenant(&tenant, true, &|_| ()).await;
    assert!(matches!(verified, Err(Error::Unavailable { dependency: Dependency::ObjectStorage, .. })), "{verified:?}");
    world.proxy.set(Behaviour::Pass);
    assert_eq!(world.app.services().operator.verify_tenant(&tenant, true, &|_| ()).await.unwrap().findings, []);
    world.ends_with(&[("direct", &direct), ("resumable", &resumable)]).await;
}

/// The median time of some reads of a document's metadata, and of a change to it.
async fn median_read(world: &World, document: &str) -> Duration {
    let path = world.path(&format!("/{document}"));
    let mut times = Vec::new();
    for n in 0..30 {
        times.push(timed(world.alice.get(&path)).await);
        let renamed = timed(world.alice.put(&path, &json!({ "filename": format!("name {n}") }))).await;
        renamed.reply.expect(200);
    }
    times.sort_by_key(|timed| timed.took);
    times.swap_remove(15).took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_store_holds_up_nobody_else() {
    let Some(world) = World::new().await else { return };
    let world = Arc::new(world);
    let document = world.uploads("name", b"content").await.expect(201).id();
    let before = median_read(&world, &document).await;

    // More uploads than a tenant has connections to its database, in one request and in parts; the parts take longer than the store's
    // silence is trusted without a question.
    world.proxy.set_and_drop(Behaviour::Throttle(600_000));
    let contents: Vec<Vec<u8>> = (0..12).map(|n| content(if n == 0 { 18 * MIB } else { 2 * MIB })).collect();
    let uploads: Vec<_> = contents
        .iter()
        .enumerate()
        .map(|(n, content)| {
            let (world, content) = (Arc::clone(&world), content.clone());
            tokio::spawn(async move { timed(world.uploads(&format!("slow {n}"), &content)).await })
        })
        .collect();
    sleep(Duration::from_millis(1500)).await;
    let during = median_read(&world, &document).await;
    assert!(uploads.iter().all(|upload| !upload.is_finished()), "all are under way");
    println!("median {before:.1?} before, {during:.1?} while twelve uploads wait for the store");
    assert!(during < (before * 10).max(Duration::from_millis(50)), "{during:?} instead of {before:?}");
    for uploaded in join_all(uploads).await {
        let Timed { reply, took } = uploaded.unwrap();
        println!("a slow upload: {took:.1?}");
        reply.expect(201);
    }

    world.proxy.set_and_drop(Behaviour::Delay(Duration::from_secs(3)));
    world.uploads("delayed", b"delayed").await.expect(201);
    let names: Vec<String> = (0..12).map(|n| format!("slow {n}")).collect();
    let mut documents: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    documents.extend([("name 29", &b"content"[..]), ("delayed", b"delayed")]);
    let world = Arc::into_inner(world).unwrap();
    world.ends_with(&documents).await;
}

/// As far as files can fail.
#[tokio::test]
async fn a_folder_of_objects_that_is_gone() {
    let app = TestApp::builder().objects_as_files().start().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let kept = alice.uploads(&acme, "kept", "kept").await.expect(201).id();
    let (folder, aside) = (app.home().join("objects"), app.home().join("aside"));
    // Not there any more, and then something else in its place.
    for in_its_place in [false, true] {
        fs::rename(&folder, &aside).unwrap();
        if in_its_place {
            fs::write(&folder, "no folder").unwrap();
        }
        for content in [&b"small"[..], &content(3 * MIB)] {
            let told = alice.uploads(&acme, "new", content).await.expect_error(503, "service_unavailable");
            assert_eq!(told.json["error"]["details"]["dependency"], "object storage");
            assert!(!told.header("retry-after").is_empty() && !told.json.to_string().contains("objects"), "{}", told.json);
        }
        app.stranger().get("/health/ready").await.expect_error(503, "not_ready");
        alice.get(&format!("/api/tenants/{acme}/documents/{kept}")).await.expect(200);
        if in_its_place {
            fs::remove_file(&folder).unwrap();
        } else {
            let _ = fs::remove_dir_all(&folder);
        }
        fs::rename(&aside, &folder).unwrap();
        assert_eq!(alice.downloads(&acme, &kept).await, b"kept");
        app.stranger().get("/health/ready").await.expect(200);
        let form = Form::new().part("file", reqwest::multipart::Part::bytes(content(3 * MIB)).file_name("after"));
        alice.uploads_form(&acme, form).await.expect(201);
    }
}
