//! Events on their way through processes that die and brokers that go away: on Kafka where the test run has one, else in the
//! process.

use std::{
    collections::{HashMap, HashSet},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{Event, EventId, EventKind, TenantId};
use futures_util::{StreamExt, stream};
use models::{dirty_tenants, outbox, tenants};
use serde_json::{Value, json};
use testkit::{Delivered, Persona, TestKafka};
use tokio::sync::Mutex;

use crate::{
    events::{EVENTS, act, assert_crashed, drained, find_unhandled, leave_unprocessed, status},
    process::{Home, PATIENCE, Server},
};

/// How often somebody dies at any moment.
const DEATHS: usize = 12;
/// How many people work at the same time.
const PEOPLE: usize = 8;
/// The second broker is one test's at a time.
static SECOND_BROKER: Mutex<()> = Mutex::const_new(());

#[expect(clippy::disallowed_methods, reason = "how much to do is for whoever runs the tests to say")]
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

/// Makes so many tenants.
async fn make_tenants(alice: &Persona, count: usize) -> Vec<String> {
    let making = stream::iter(0..count).map(|n| async move { alice.creates_tenant(&format!("T{n}")).await });
    making.buffered(PEOPLE).collect().await
}

/// What people do, and in which tenants: the document of each that they download.
struct Job {
    alice: Persona,
    tenants: Vec<(String, String)>,
    next: AtomicUsize,
}

impl Job {
    /// Does something in the tenant whose turn it is. Answers whether it was answered.
    async fn work(&self, server: &str, n: usize) -> bool {
        let (alice, (tenant, document)) = (self.alice.at_base(server), &self.tenants[n % self.tenants.len()]);
        if n.is_multiple_of(10) {
            return act(&alice, tenant, n).await;
        }
        // The cheapest way to tell something.
        let path = format!("/api/tenants/{tenant}/documents/{document}/download?redirect=false");
        alice.request(reqwest::Method::GET, &path).send().await.is_ok()
    }
}

/// People at work, until their server dies.
struct Work {
    people: Vec<tokio::task::JoinHandle<()>>,
}

impl Work {
    fn begin(server: &Server, job: &Arc<Job>) -> Self {
        let people = (0..PEOPLE).map(|_| {
            let (server, job) = (server.base.clone(), Arc::clone(job));
            tokio::spawn(async move { while job.work(&server, job.next.fetch_add(1, Ordering::Relaxed)).await {} })
        });
        Self { people: people.collect() }
    }

    async fn ended(self) {
        for one in self.people {
            one.await.unwrap();
        }
    }
}

/// What the outboxes have told, published or not, by the events' key, in their order.
async fn told(home: &Home) -> HashMap<Option<TenantId>, Vec<Event>> {
    let (main, directory) = home.databases().open();
    let mut connection = main.read().await.unwrap();
    let mut told: HashMap<_, Vec<Event>> = HashMap::new();
    let latest_first = outbox::list(&mut connection, 10_000_000).await.unwrap();
    latest_first.into_iter().rev().for_each(|event| told.entry(event.tenant_id).or_default().push(event));
    for tenant in tenants::list(&mut connection).await.unwrap() {
        let mut connection = directory.open(&tenant.place).unwrap().read().await.unwrap();
        let latest_first = outbox::list(&mut connection, 10_000_000).await.unwrap();
        told.entry(Some(tenant.id)).or_default().extend(latest_first.into_iter().rev());
    }
    told
}

async fn read(kafka: &TestKafka, kind: EventKind) -> Vec<Delivered> {
    let kafka = kafka.clone();
    tokio::task::spawn_blocking(move || kafka.read(kind.as_str())).await.unwrap()
}

/// Every event that was told is on Kafka, none that was not, and each tenant's came in their order when they came first.
async fn assert_published(home: &Home, kafka: &TestKafka) {
    let told = told(home).await;
    let (mut messages, mut duplicates) = (0, 0);
    for kind in EventKind::ALL {
        let mut first: HashMap<String, Vec<String>> = HashMap::new();
        let mut seen = HashSet::new();
        for message in read(kafka, kind).await {
            messages += 1;
            let id = message.headers["ce_id"].clone();
            if seen.insert(id.clone()) {
                first.entry(message.key).or_default().push(id);
            } else {
                duplicates += 1;
            }
        }
        for (key, events) in &told {
            let expected: Vec<_> = events.iter().filter(|event| event.kind == kind).map(|event| event.id.to_string()).collect();
            let key = key.map_or_else(|| "platform".to_owned(), |id| id.to_string());
            let found = first.remove(&key).unwrap_or_default();
            assert_eq!(found.len(), expected.len(), "{kind:?} of {key}: lost or invented");
            if let Some(n) = (0..found.len()).find(|n| found[*n] != expected[*n]) {
                let place = |id: &String| events.iter().position(|event| event.id.to_string() == *id).map(|n| &events[n]);
                panic!("{kind:?} of {key}, event {n}: {:?} came instead of {:?}", place(&found[n]), place(&expected[n]));
            }
        }
        assert_eq!(first, HashMap::new(), "invented");
    }
    println!("{messages} messages, {duplicates} of them duplicates");
}

/// Waits until everything that was told, and what follows of it, is handled, as long as it becomes less.
async fn settled(home: &Home) {
    let (mut quiet, mut least) = (0, i64::MAX);
    let mut began = Instant::now();
    // What is handled tells of more, and between two looks that may be on its way.
    while quiet < 3 {
        drained(home).await;
        let lag = match home.kafka().cloned() {
            Some(kafka) => tokio::task::spawn_blocking(move || kafka.lag(&EventKind::ALL.map(EventKind::as_str))).await.unwrap(),
            None => 0,
        };
        quiet = if lag == 0 { quiet + 1 } else { 0 };
        if lag < least {
            (least, began) = (lag, Instant::now());
        }
        assert!(began.elapsed() < 3 * PATIENCE, "{lag} messages are not handled");
    }
}

/// Tells so many events in all, each in its tenant's database, as a server does that dies before it publishes any.
async fn tell_in_all(home: &Home, count: usize) {
    let (main, directory) = home.databases().open();
    let everything = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
    let of_each = count.div_ceil(everything.len());
    let telling = everything.into_iter().map(|tenant| {
        let (main, database) = (main.clone(), directory.open(&tenant.place).unwrap());
        async move {
            let now = || domain::Clock::now(&domain::SystemClock);
            let mut tx = main.begin().await.unwrap();
            dirty_tenants::mark(&mut tx, tenant.id, now());
            tx.commit().await.unwrap();
            let mut tx = database.begin().await.unwrap();
            for n in 0..of_each {
                // Their times tell their order.
                let (id, at) = (EventId::generate(&domain::SystemClock), now().plus(Duration::from_micros(n as u64)));
                let data = format!(r#"{{"action":"a.b","n":{n}}}"#);
                let event = Event { id, kind: EventKind::AuditLog, tenant_id: Some(tenant.id), user_id: None, at, data, traceparent: None };
                outbox::push(&mut tx, &event);
            }
            tx.commit().await.unwrap();
        }
    });
    stream::iter(telling).buffer_unordered(PEOPLE).collect::<Vec<()>>().await;
}

/// Planted once each, and caught on Kafka: an offset stored when its event is taken instead of when it was handled; events noted as
/// published before the brokers have them. (With a third of the events, the first was not.)
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_survives_the_death_of_servers_and_workers() {
    let home = Home::new().with_events_on(TestKafka::find());
    let (tenants, wanted) = (number("EVENT_TENANTS", 200), number("EVENTS", 20_000));
    let mut server = home.serve().await;
    let mut workers: Vec<_> = home.worker(&[]).await.into_iter().collect();
    let alice = server.user("alice").await;
    let tenants = make_tenants(&alice, tenants).await;
    let uploading = stream::iter(tenants).map(|tenant| async {
        let document = alice.uploads(&tenant, "a.txt", "a").await.expect(201).id();
        (tenant, document)
    });
    let tenants = uploading.buffered(PEOPLE).collect().await;
    let job = Arc::new(Job { alice, tenants, next: AtomicUsize::new(0) });

    // At every failpoint, while events flow.
    for failpoint in EVENTS {
        let doom = [("FAILPOINT", *failpoint)];
        server.kill();
        workers.into_iter().for_each(Server::kill);
        home.forget_leases().await;
        let handles = failpoint.contains("processing");
        if handles {
            // As a direct upload leaves it, into which nobody has looked.
            let asks = if *failpoint == "file.processing" { EventKind::FileProcess } else { EventKind::DocumentUploaded };
            leave_unprocessed(&home, asks).await;
        }
        let in_worker = handles && home.kafka().is_some();
        server = if in_worker { home.serve().await } else { home.serve_doomed(&doom) };
        workers = home.worker(if in_worker { &doom } else { &[] }).await.into_iter().collect();
        if in_worker {
            let work = Work::begin(&server, &job);
            assert_crashed(&mut workers[0], failpoint).await;
            server.signal(rustix::process::Signal::KILL);
            server.ended().await;
            work.ended().await;
        } else {
            // It may die of what the one before left.
            let work = server.listens().await.then(|| Work::begin(&server, &job));
            assert_crashed(&mut server, failpoint).await;
            if let Some(work) = work {
                work.ended().await;
            }
        }
        server = home.serve().await;
        let work = Work::begin(&server, &job);
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal(rustix::process::Signal::KILL);
        server.ended().await;
        work.ended().await;
    }

    // At any moment: the server, and one of two workers before it.
    for death in 0..DEATHS {
        home.forget_leases().await;
        tell_in_all(&home, wanted.div_ceil(DEATHS)).await;
        server = home.serve().await;
        while workers.len() < 2
            && let Some(worker) = home.worker(&[]).await
        {
            workers.push(worker);
        }
        let work = Work::begin(&server, &job);
        tokio::time::sleep(Duration::from_millis(500 + 370 * (death as u64 % 7))).await;
        if death % 3 != 0 && !workers.is_empty() {
            workers.remove(0).kill();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        server.signal(rustix::process::Signal::KILL);
        server.ended().await;
        work.ended().await;
    }

    workers.into_iter().for_each(Server::kill);
    server.kill();
    home.forget_leases().await;
    server = home.serve().await;
    let worker = home.worker(&[]).await;
    settled(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    if let Some(kafka) = home.kafka() {
        assert_published(&home, kafka).await;
    }
    if let Some(worker) = worker {
        worker.stop().await;
    }
    home.settle(server).await;
}

/// Stops or starts the second broker.
fn broker(action: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/services.sh");
    assert!(Command::new(script).arg(action).status().unwrap().success(), "{action}");
}

async fn readiness(server: &Server) -> Value {
    let answer = crate::process::client().get(format!("{}/health/ready", server.base)).send().await.unwrap();
    answer.json().await.unwrap()
}

/// Works for a while. Answers how long each act took, in order.
async fn timed(server: &Server, alice: &Persona, tenants: &[String], first: usize, period: Duration) -> Vec<Duration> {
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < period {
        let (n, asked) = (first + times.len(), Instant::now());
        assert!(act(&server.known(alice), &tenants[n % tenants.len()], n).await);
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_noticed_by_no_user_and_its_backlog_drains_in_order() {
    let _alone = SECOND_BROKER.lock().await;
    let Some(kafka) = TestKafka::second() else { return };
    let away = Duration::from_secs(number("KAFKA_AWAY", 20) as u64);
    let home = Home::new().with_events_on(Some(kafka.clone()));
    let server = home.serve().await;
    let worker = home.worker(&[]).await.unwrap();
    let alice = server.user("alice").await;
    let tenants = make_tenants(&alice, 10).await;
    settled(&home).await;
    assert_eq!(readiness(&worker).await["data"]["dependencies"]["Kafka"], "up");
    timed(&server, &alice, &tenants, 0, Duration::from_secs(1)).await;
    let before = timed(&server, &alice, &tenants, 100_000, Duration::from_secs(5)).await;

    broker("kafka-stop");
    let meanwhile = timed(&server, &alice, &tenants, 200_000, away).await;
    let of_server = readiness(&server).await;
    let said = (&of_server["data"]["status"], &of_server["data"]["dependencies"]["Kafka"]);
    assert_eq!(said, (&json!("ready"), &json!("down")), "the API needs no broker");
    let of_worker = readiness(&worker).await;
    assert_eq!(of_worker["error"]["details"]["Kafka"], "down", "{of_worker}");
    let waiting = status(&home)["waiting"].as_u64().unwrap();
    assert!(waiting >= 2 * meanwhile.len() as u64, "{waiting} events wait of {} acts", meanwhile.len());
    let down = home.run(["check"]);
    assert!(down.code == Some(1) && down.out.contains("Kafka: DOWN"), "{down:?}");
    // One that starts meanwhile does so, too, and one that stops does not wait for ever.
    home.serve().await.stop().await;
    broker("kafka-start");
    settled(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    assert_published(&home, &kafka).await;
    let (usual, then) = (before[before.len() / 2], meanwhile[meanwhile.len() / 2]);
    println!("half of the acts took up to {usual:?}, and {then:?} while the broker was away");
    assert!(then < 3 * usual + Duration::from_millis(50), "users noticed: {then:?} instead of {usual:?}");
    worker.stop().await;
    home.settle(server).await;
}

#[cfg(not(feature = "kafka-tls"))]
#[test]
fn a_program_without_openssl_refuses_tls_to_the_brokers() {
    let variables = [("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"), ("KAFKA_SECURITY_PROTOCOL", "SSL")];
    let refused = crate::process::Ran::of(Home::new().command(["serve"]).envs(variables));
    assert!(refused.complaint(2).contains("KAFKA_SECURITY_PROTOCOL is SSL"), "{refused:?}");
    assert!(refused.complaint(2).contains("`--features kafka-tls`"), "{refused:?}");
}

#[cfg(feature = "kafka-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_logged_in_to_by_tls() {
    let _alone = SECOND_BROKER.lock().await;
    let Some(kafka) = TestKafka::second() else { return };
    #[expect(clippy::disallowed_methods, reason = "which brokers a test run uses is the environment's to say")]
    let [servers, ca, password] = ["SASL_SSL", "CA", "PASSWORD"].map(|name| std::env::var(format!("TEST_SECOND_KAFKA_{name}")).unwrap());
    let home = Home::new().with_events_on(Some(kafka));
    let login = |password| {
        [
            ("KAFKA_BOOTSTRAP_SERVERS", servers.as_str()),
            ("KAFKA_SASL_USERNAME", "tenantry"),
            ("KAFKA_SASL_PASSWORD", password),
            ("KAFKA_SSL_CA_LOCATION", ca.as_str()),
        ]
    };
    let server = home.serve_with(&login(&password)).await;
    let worker = home.worker(&login(&password)).await.unwrap();
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    assert!(act(&alice, &tenant, 0).await);
    settled(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    let check = |variables: &[(&str, &str)]| crate::process::Ran::of(home.command(["check"]).envs(variables.iter().copied()));
    assert!(check(&login(&password)).expect(0).out.contains("Kafka: up"));
    let refused = check(&login("wrong")).out;
    assert!(refused.contains("Kafka: DOWN") && refused.to_lowercase().contains("authentication failed"), "{refused}");
    // Signed by nobody whom the system knows.
    let stranger = check(&login(&password)[..3]).out;
    assert!(stranger.contains("Kafka: DOWN") && stranger.contains("certificate verify failed"), "{stranger}");
    worker.stop().await;
    home.settle(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_needs_a_broker_and_a_server_does_not() {
    let home = Home::new();
    home.run(["worker"]).complaint(2).contains("KAFKA_BOOTSTRAP_SERVERS").then_some(()).unwrap();
    let nowhere = [("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")];
    let server = home.serve_with(&nowhere).await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    assert!(act(&alice, &tenant, 0).await);
    assert!(status(&home)["waiting"].as_u64().unwrap() >= 3);
    let stranger = server.stranger();
    stranger.get("/api/demo/kafka/health").await.expect_error(503, "service_unavailable");
    let sent = alice.post("/api/demo/kafka/produce", &json!({ "topic": "demo.a", "message": {} })).await;
    sent.expect_error(503, "service_unavailable");
    let empty = alice.get("/api/demo/kafka/consume").await.expect(200);
    assert_eq!(empty.data(), &json!({ "bus": "kafka", "status": "down", "messages": [] }));
    let check = crate::process::Ran::of(home.command(["check"]).envs(nowhere));
    assert!(check.code == Some(1) && check.out.contains("Kafka: DOWN: event bus is unavailable: "), "{check:?}");
    // It gives up waiting for the broker; who starts next, without one, handles what waits.
    server.stop().await;
    let server = home.serve_with(&[("DEMO_ROUTES", "false")]).await;
    drained(&home).await;
    server.stranger().get("/api/demo/kafka/health").await.expect_error(404, "not_found");
    home.settle(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_goes_by_the_real_bus() {
    let Some(kafka) = TestKafka::find() else { return };
    let home = Home::new().with_events_on(Some(kafka.clone()));
    let (one, two) = (home.serve().await, home.serve().await);
    let alice = one.user("alice").await;
    let sent = alice.post("/api/demo/kafka/produce", &json!({ "topic": "demo.a", "message": { "n": 1 }, "key": "k" })).await.expect(200);
    assert_eq!(sent.data()["status"], "published");
    for server in [&one, &two] {
        let began = Instant::now();
        let received = loop {
            let received = server.known(&alice).get("/api/demo/kafka/consume").await.expect(200).data().clone();
            if received["messages"] != json!([]) {
                break received;
            }
            assert!(began.elapsed() < PATIENCE, "{received}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let message = json!({
            "event_id": sent.data()["event_id"],
            "topic": "demo.a",
            "key": "k",
            "timestamp": sent.data()["timestamp"],
            "message": { "n": 1 },
        });
        assert_eq!(received, json!({ "bus": "kafka", "status": "up", "messages": [message] }));
    }
    let on_topic = tokio::task::spawn_blocking(move || kafka.read("demo.a")).await.unwrap();
    assert_eq!(on_topic[0].value, r#"{"n":1}"#);
    two.stop().await;
    one.stop().await;
}
