//! A bus that remembers what it was given.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{Event, EventId, EventKind};
use futures_util::{FutureExt, future::BoxFuture};
use models::tenants;
use services::{EventServices, OrderingKey};
use testkit::{TestApp, TestKafka};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{Bus, DeadLetterTopic, InProcess, KafkaBus, KafkaSettings, KafkaWorker, Published, Relay};

/// How long is waited for what takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Recorder {
    seen: Mutex<Vec<(Event, Instant)>>,
    is_down: AtomicBool,
    /// How long it takes for each event.
    takes: Duration,
}

impl Recorder {
    pub(crate) fn slow(takes: Duration) -> Self {
        Self { takes, ..Self::default() }
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    pub(crate) fn seen(&self) -> Vec<Event> {
        self.seen.lock().unwrap().iter().map(|(event, _)| event.clone()).collect()
    }

    /// When this event came first.
    pub(crate) fn seen_at(&self, id: EventId) -> Option<Instant> {
        self.seen.lock().unwrap().iter().find(|(event, _)| event.id == id).map(|(_, at)| *at)
    }

    /// The first deliveries of a key's events, and how many there were of each.
    pub(crate) fn first_deliveries(&self, key: OrderingKey) -> (Vec<Event>, HashMap<EventId, usize>) {
        let (mut first, mut counts) = (Vec::new(), HashMap::new());
        for event in self.seen().into_iter().filter(|event| event.tenant_id == key) {
            let count = counts.entry(event.id).or_insert(0);
            *count += 1;
            if *count == 1 {
                first.push(event);
            }
        }
        (first, counts)
    }
}

impl Bus for Recorder {
    fn publish<'a>(&'a self, _: OrderingKey, events: &'a [Event]) -> BoxFuture<'a, Published> {
        async move {
            for (count, event) in events.iter().enumerate() {
                tokio::time::sleep(self.takes).await;
                if self.is_down.load(Ordering::Relaxed) {
                    return Published { count, pause: Some(Duration::from_millis(50)) };
                }
                self.seen.lock().unwrap().push((event.clone(), Instant::now()));
            }
            Published { count: events.len(), pause: None }
        }
        .boxed()
    }

    fn batch(&self) -> u32 {
        10
    }

    fn keys_at_once(&self) -> usize {
        8
    }
}

/// A relay at work, and a worker where there is a broker between the two. Stopped, the relay has flushed.
pub(crate) struct Running {
    stop: CancellationToken,
    relay: JoinHandle<()>,
    broker: Option<(TestKafka, JoinHandle<domain::Result<()>>)>,
}

impl Running {
    pub(crate) fn start(services: &EventServices, bus: Arc<dyn Bus>) -> Self {
        let stop = CancellationToken::new();
        Self { relay: tokio::spawn(Relay::new(services.clone(), bus).run(stop.clone())), stop, broker: None }
    }

    /// Has events handled, by the bus that the test run is for.
    pub(crate) async fn handling(app: &TestApp) -> Self {
        match TestKafka::find() {
            None => Self::start(&app.services().events, Arc::new(InProcess::new(app.services().events.clone()))),
            Some(kafka) => {
                let bus = kafka_bus(app, &kafka).await;
                let letters = Arc::clone(&bus) as Arc<dyn DeadLetterTopic>;
                let handler = Arc::new(InProcess::with_dead_letter_topic(app.services().events.clone(), letters));
                Self::on_kafka(app, kafka, bus, handler)
            }
        }
    }

    /// Has events handled by this, with Kafka between.
    pub(crate) fn on_kafka(app: &TestApp, kafka: TestKafka, bus: Arc<KafkaBus>, handler: Arc<dyn Bus>) -> Self {
        let worker = KafkaWorker::new(kafka_settings(&kafka), Arc::clone(&bus), handler).unwrap();
        let running = Self::start(&app.services().events, bus);
        let worker = tokio::spawn(worker.run(running.stop.clone()));
        Self { broker: Some((kafka, worker)), ..running }
    }

    /// The broker between the relay and the worker.
    pub(crate) fn kafka(&self) -> Option<&TestKafka> {
        self.broker.as_ref().map(|(kafka, _)| kafka)
    }

    /// Waits until everything that was told, and what follows of it, is handled.
    pub(crate) async fn drained(&self, app: &TestApp) {
        let Some((kafka, _)) = &self.broker else { return drained(app).await };
        let (began, mut quiet) = (Instant::now(), 0);
        // What is handled tells of more, and between two looks that may be on its way.
        while quiet < 3 {
            drained(app).await;
            let asked = kafka.clone();
            let lag = tokio::task::spawn_blocking(move || asked.lag(&EventKind::ALL.map(EventKind::as_str))).await.unwrap();
            quiet = if lag == 0 { quiet + 1 } else { 0 };
            assert!(began.elapsed() < PATIENCE, "{lag} messages are not handled");
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.relay.await.unwrap();
        if let Some((_, worker)) = self.broker {
            worker.await.unwrap().unwrap();
        }
    }
}

/// A producer, once its topics are there.
pub(crate) async fn kafka_bus(app: &TestApp, kafka: &TestKafka) -> Arc<KafkaBus> {
    let settings = kafka_settings(kafka);
    settings.make_topics().await;
    Arc::new(KafkaBus::new(settings, app.services().events.clone()).unwrap())
}

fn kafka_settings(kafka: &TestKafka) -> KafkaSettings {
    KafkaSettings {
        bootstrap_servers: kafka.servers().to_owned(),
        client_id: "tests".to_owned(),
        compression: "lz4".to_owned(),
        security_protocol: "PLAINTEXT".to_owned(),
        sasl: None,
        ca_location: None,
        topic_prefix: kafka.prefix().to_owned(),
        partitions: 3,
        replication_factor: None,
        group_id: kafka.prefix().to_owned(),
        session_timeout: Duration::from_secs(2),
        auto_offset_reset: "earliest".to_owned(),
    }
}

/// Waits until nothing waits to be published.
pub(crate) async fn drained(app: &TestApp) {
    let began = Instant::now();
    loop {
        let status = app.services().operator.outbox_status().await.unwrap();
        if status.backlogs.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The database of a tenant.
pub(crate) async fn database_of(app: &TestApp, tenant: &str) -> models::TenantDatabase {
    let (main, directory) = app.databases().open();
    let found = tenants::find(&mut main.read().await.unwrap(), tenant.parse().unwrap()).await.unwrap().unwrap();
    directory.open(&found.place).unwrap()
}

/// Makes as if nobody had looked into a tenant's files, as after direct uploads.
pub(crate) async fn unprocess(app: &TestApp, tenant: &str) {
    let mut tx = database_of(app, tenant).await.begin().await.unwrap();
    tx.execute("UPDATE files SET processed_at = NULL, detected_mime_type = NULL", Vec::new()).await.unwrap();
    tx.commit().await.unwrap();
}
