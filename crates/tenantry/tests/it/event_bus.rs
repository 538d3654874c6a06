//! Events during crashes of processes and outages of brokers: on Kafka if the test run has one, else in the process.

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
    events::{PUBLISH, act, drained, find_unhandled, leave_unprocessed, status},
    process::{CommandOutput, Home, Server, WAIT_TIMEOUT},
    scene::FAILPOINT,
};

/// The number of kills at random moments.
const KILLS: usize = 12;
/// The number of concurrent clients.
const CLIENTS: usize = 8;
/// Held by the test that uses the second broker.
static SECOND_BROKER: Mutex<()> = Mutex::const_new(());

#[expect(clippy::disallowed_methods, reason = "the environment of a test run decides how much")]
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

/// Creates tenants.
async fn create_tenants(alice: &Persona, count: usize) -> Vec<String> {
    let creations = stream::iter(0..count).map(|n| async move { alice.creates_tenant(&format!("T{n}")).await });
    creations.buffered(CLIENTS).collect().await
}

/// The work of clients: downloads of one document in each tenant, and some uploads and deletions.
struct Job {
    alice: Persona,
    tenants: Vec<(String, String)>,
    next: AtomicUsize,
}

impl Job {
    /// Sends requests to the next tenant. Returns whether there was a response.
    async fn work(&self, server: &str, n: usize) -> bool {
        let (alice, (tenant, document)) = (self.alice.at_base(server), &self.tenants[n % self.tenants.len()]);
        if n.is_multiple_of(10) {
            return act(&alice, tenant, n).await;
        }
        // A download is the cheapest request that records an event.
        let path = format!("/api/tenants/{tenant}/documents/{document}/download?redirect=false");
        alice.request(reqwest::Method::GET, &path).send().await.is_ok()
    }
}

/// Clients at work, until their server is killed.
struct Work {
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Work {
    fn start(server: &Server, job: &Arc<Job>) -> Self {
        let clients = (0..CLIENTS).map(|_| {
            let (server, job) = (server.base.clone(), Arc::clone(job));
            tokio::spawn(async move { while job.work(&server, job.next.fetch_add(1, Ordering::Relaxed)).await {} })
        });
        Self { clients: clients.collect() }
    }

    async fn finished(self) {
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// The events of all outboxes, published or not, by ordering key, in order.
async fn recorded_events(home: &Home) -> HashMap<Option<TenantId>, Vec<Event>> {
    let (main, directory) = home.databases().open();
    let mut connection = main.read().await.unwrap();
    let mut events: HashMap<_, Vec<Event>> = HashMap::new();
    let latest_first = outbox::list(&mut connection, 10_000_000).await.unwrap();
    latest_first.into_iter().rev().for_each(|event| events.entry(event.tenant_id).or_default().push(event));
    for tenant in tenants::list(&mut connection).await.unwrap() {
        let mut connection = directory.open(&tenant.place).unwrap().read().await.unwrap();
        let latest_first = outbox::list(&mut connection, 10_000_000).await.unwrap();
        events.entry(Some(tenant.id)).or_default().extend(latest_first.into_iter().rev());
    }
    events
}

async fn read(kafka: &TestKafka, kind: EventKind) -> Vec<Delivered> {
    let kafka = kafka.clone();
    tokio::task::spawn_blocking(move || kafka.read(kind.as_str())).await.unwrap()
}

/// Asserts that Kafka has every recorded event and no other, and that the first messages of each tenant's events are in order.
async fn assert_published(home: &Home, kafka: &TestKafka) {
    let recorded = recorded_events(home).await;
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
        for (key, events) in &recorded {
            let expected: Vec<_> = events.iter().filter(|event| event.kind == kind).map(|event| event.id.to_string()).collect();
            let key = key.map_or_else(|| "platform".to_owned(), |id| id.to_string());
            let found = first.remove(&key).unwrap_or_default();
            assert_eq!(found.len(), expected.len(), "{kind:?} of {key}: lost or unrecorded");
            if let Some(n) = (0..found.len()).find(|n| found[*n] != expected[*n]) {
                let event = |id: &String| events.iter().position(|event| event.id.to_string() == *id).map(|n| &events[n]);
                panic!("{kind:?} of {key}, event {n}: {:?} instead of {:?}", event(&found[n]), event(&expected[n]));
            }
        }
        assert_eq!(first, HashMap::new(), "unrecorded");
    }
    println!("{messages} messages, {duplicates} of them duplicates");
}

/// Waits until all events, and the events that their handlers record, are handled. Fails when the lag stops shrinking.
async fn all_handled(home: &Home) {
    let (mut quiet, mut least) = (0, i64::MAX);
    let mut began = Instant::now();
    // Handlers record further events, which may be in flight between two polls.
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
        assert!(began.elapsed() < 3 * WAIT_TIMEOUT, "{lag} messages are not handled");
    }
}

/// Records events in the databases of all tenants, as a server does that is killed before it publishes any.
async fn record_events(home: &Home, count: usize) {
    let (main, directory) = home.databases().open();
    let all = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
    let of_each = count.div_ceil(all.len());
    let recording = all.into_iter().map(|tenant| {
        let (main, database) = (main.clone(), directory.open(&tenant.place).unwrap());
        async move {
            let now = || domain::Clock::now(&domain::SystemClock);
            let mut tx = main.begin().await.unwrap();
            dirty_tenants::mark(&mut tx, tenant.id, now());
            tx.commit().await.unwrap();
            let mut tx = database.begin().await.unwrap();
            for n in 0..of_each {
                // Increasing times define their order.
                let (id, at) = (EventId::generate(&domain::SystemClock), now().plus(Duration::from_micros(n as u64)));
                let data = format!(r#"{{"action":"a.b","n":{n}}}"#);
                let event = Event { id, kind: EventKind::AuditLog, tenant_id: Some(tenant.id), user_id: None, at, data, traceparent: None };
                outbox::push(&mut tx, &event);
            }
            tx.commit().await.unwrap();
        }
    });
    stream::iter(recording).buffer_unordered(CLIENTS).collect::<Vec<()>>().await;
}

/// Seeded faults, each detected on Kafka: an offset stored when its event is received instead of after it was handled; events marked
/// as published before the brokers have them. (With a third of the events, the first fault was not detected.)
#[tokio::test(flavor = "multi_thread")]
async fn recorded_events_survive_kills_of_servers_and_workers() {
    let home = Home::new().with_events_on(TestKafka::find());
    let (tenants, events) = (number("EVENT_TENANTS", 200), number("EVENTS", 20_000));
    let mut server = home.serve().await;
    let mut workers: Vec<_> = home.worker(&[]).await.into_iter().collect();
    let alice = server.user("alice").await;
    let tenants = create_tenants(&alice, tenants).await;
    let uploading = stream::iter(tenants).map(|tenant| async {
        let document = alice.uploads(&tenant, "a.txt", "a").await.expect(201).id();
        (tenant, document)
    });
    let tenants = uploading.buffered(CLIENTS).collect().await;
    let job = Arc::new(Job { alice, tenants, next: AtomicUsize::new(0) });

    // Crashes at every failpoint, under load.
    for failpoint in PUBLISH {
        let crash = [(FAILPOINT, *failpoint)];
        server.kill();
        workers.into_iter().for_each(Server::kill);
        home.expire_leases().await;
        let handles = failpoint.contains("processing");
        if handles {
            let kind = if *failpoint == "file.processing" { EventKind::FileProcess } else { EventKind::DocumentUploaded };
            leave_unprocessed(&home, kind).await;
        }
        let in_worker = handles && home.kafka().is_some();
        server = if in_worker { home.serve().await } else { home.spawn(&crash) };
        workers = home.worker(if in_worker { &crash } else { &[] }).await.into_iter().collect();
        if in_worker {
            let work = Work::start(&server, &job);
            workers[0].assert_aborted(failpoint).await;
            server.signal(rustix::process::Signal::KILL);
            server.exited().await;
            work.finished().await;
        } else {
            // It may abort at once, handling the events that its predecessor left.
            let work = server.listens().await.then(|| Work::start(&server, &job));
            server.assert_aborted(failpoint).await;
            if let Some(work) = work {
                work.finished().await;
            }
        }
        server = home.serve().await;
        let work = Work::start(&server, &job);
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal(rustix::process::Signal::KILL);
        server.exited().await;
        work.finished().await;
    }

    // Kills at random moments: of a worker, then of the server.
    for kill in 0..KILLS {
        home.expire_leases().await;
        record_events(&home, events.div_ceil(KILLS)).await;
        server = home.serve().await;
        while workers.len() < 2
            && let Some(worker) = home.worker(&[]).await
        {
            workers.push(worker);
        }
        let work = Work::start(&server, &job);
        tokio::time::sleep(Duration::from_millis(500 + 370 * (kill as u64 % 7))).await;
        if kill % 3 != 0 && !workers.is_empty() {
            workers.remove(0).kill();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        server.signal(rustix::process::Signal::KILL);
        server.exited().await;
        work.finished().await;
    }

    workers.into_iter().for_each(Server::kill);
    server.kill();
    home.expire_leases().await;
    server = home.serve().await;
    let worker = home.worker(&[]).await;
    all_handled(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    if let Some(kafka) = home.kafka() {
        assert_published(&home, kafka).await;
    }
    if let Some(worker) = worker {
        worker.stop().await;
    }
    home.stop_and_check(server).await;
}

/// Stops or starts the second broker.
fn broker(action: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/services.sh");
    assert!(Command::new(script).arg(action).status().unwrap().success(), "{action}");
}

async fn readiness(server: &Server) -> Value {
    let response = crate::process::client().get(format!("{}/health/ready", server.base)).send().await.unwrap();
    response.json().await.unwrap()
}

/// Sends requests for a period. Returns their durations, sorted.
async fn timed(server: &Server, alice: &Persona, tenants: &[String], first: usize, period: Duration) -> Vec<Duration> {
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < period {
        let (n, sent) = (first + times.len(), Instant::now());
        assert!(act(&server.known(alice), &tenants[n % tenants.len()], n).await);
        times.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_broker_does_not_affect_users_and_its_backlog_is_published_in_order() {
    let _alone = SECOND_BROKER.lock().await;
    let Some(kafka) = TestKafka::second() else { return };
    let outage = Duration::from_secs(number("KAFKA_AWAY", 20) as u64);
    let home = Home::new().with_events_on(Some(kafka.clone()));
    let server = home.serve().await;
    let worker = home.worker(&[]).await.unwrap();
    let alice = server.user("alice").await;
    let tenants = create_tenants(&alice, 10).await;
    all_handled(&home).await;
    assert_eq!(readiness(&worker).await["data"]["dependencies"]["Kafka"], "up");
    timed(&server, &alice, &tenants, 0, Duration::from_secs(1)).await;
    let before = timed(&server, &alice, &tenants, 100_000, Duration::from_secs(5)).await;

    broker("kafka-stop");
    let meanwhile = timed(&server, &alice, &tenants, 200_000, outage).await;
    let of_server = readiness(&server).await;
    let status_of_server = (&of_server["data"]["status"], &of_server["data"]["dependencies"]["Kafka"]);
    assert_eq!(status_of_server, (&json!("ready"), &json!("down")), "the API needs no broker");
    let of_worker = readiness(&worker).await;
    assert_eq!(of_worker["error"]["details"]["Kafka"], "down", "{of_worker}");
    let waiting = status(&home)["waiting"].as_u64().unwrap();
    assert!(waiting >= 2 * meanwhile.len() as u64, "{waiting} events are unpublished after {} actions", meanwhile.len());
    let down = home.run(["check"]);
    assert!(down.code == Some(1) && down.out.contains("Kafka: DOWN"), "{down:?}");
    // A server can start and stop during the outage.
    home.serve().await.stop().await;
    broker("kafka-start");
    all_handled(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    assert_published(&home, &kafka).await;
    let (usual, in_outage) = (before[before.len() / 2], meanwhile[meanwhile.len() / 2]);
    println!("median duration of an action: {usual:?}, and {in_outage:?} during the outage");
    assert!(in_outage < 3 * usual + Duration::from_millis(50), "users were affected: {in_outage:?} instead of {usual:?}");
    worker.stop().await;
    home.stop_and_check(server).await;
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
async fn the_login_to_brokers_uses_tls() {
    let _alone = SECOND_BROKER.lock().await;
    let Some(kafka) = TestKafka::second() else { return };
    #[expect(clippy::disallowed_methods, reason = "the environment of a test run names its brokers")]
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
    all_handled(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    let check = |variables: &[(&str, &str)]| CommandOutput::of(home.command(["check"]).envs(variables.iter().copied()));
    assert!(check(&login(&password)).expect(0).out.contains("Kafka: up"));
    let refused = check(&login("wrong")).out;
    assert!(refused.contains("Kafka: DOWN") && refused.to_lowercase().contains("authentication failed"), "{refused}");
    // Signed by an authority that the system does not know.
    let unknown_ca = check(&login(&password)[..3]).out;
    assert!(unknown_ca.contains("Kafka: DOWN") && unknown_ca.contains("certificate verify failed"), "{unknown_ca}");
    worker.stop().await;
    home.stop_and_check(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_needs_a_broker_and_a_server_does_not() {
    let home = Home::new();
    assert!(home.run(["worker"]).error_line(2).contains("KAFKA_BOOTSTRAP_SERVERS"));
    let unreachable = [("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")];
    let server = home.serve_with(&unreachable).await;
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
    let check = CommandOutput::of(home.command(["check"]).envs(unreachable));
    assert!(check.code == Some(1) && check.out.contains("Kafka: DOWN: event bus is unavailable: "), "{check:?}");
    // It stops without the broker; the next server, without Kafka, handles its events.
    server.stop().await;
    let server = home.serve_with(&[("DEMO_ROUTES", "false")]).await;
    drained(&home).await;
    server.stranger().get("/api/demo/kafka/health").await.expect_error(404, "not_found");
    home.stop_and_check(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_uses_the_real_bus() {
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
            assert!(began.elapsed() < WAIT_TIMEOUT, "{received}");
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
