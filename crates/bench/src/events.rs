//! Events on Kafka: their latency, the throughput of a backlog, and the cost of idle tenants.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use domain::{Clock, SystemClock, Timestamp};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedHeaders, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::{
    environment::Environment,
    fixture::{Tenant, User},
    histogram::Histogram,
    load::{Connection, Request},
    process::{Server, Tenantry},
    progress,
    report::{Bound, Report, millis},
};

/// The topic of the benchmark's events: audited downloads.
const TOPIC: &str = "audit.log";
/// The number of connections of the steady rate, and the rate in events per second.
const STEADY_CLIENTS: u32 = 10;
const PER_SECOND: u32 = 500;
/// The number of connections that record the backlog.
const BACKLOG_CLIENTS: usize = 16;
/// The address of no broker.
const UNREACHABLE: &str = "127.0.0.1:1";
/// The maximum time of any wait.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// How often to ask the brokers for the end of the topic.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long to wait until tenants count as idle: their events are published, and their dirty flags are cleared.
const IDLE_AFTER: Duration = Duration::from_secs(100);
/// How long to measure idle tenants.
const IDLE_PERIOD: Duration = Duration::from_secs(60);
/// Rounds of a backlog, whose median is reported.
const ROUNDS: usize = 3;
/// Bytes of each tenant's document.
const SMALL: usize = 1_000;

/// The size of the benchmark.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A Kafka broker, `host:port`
    #[arg(long)]
    kafka: String,
    /// Number of events of a backlog
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(u64).range(1_000..=10_000_000))]
    backlog: u64,
    /// Number of tenants of these events
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=10_000))]
    tenants: u16,
    /// Number of idle tenants; 0 skips their measurement
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u16).range(0..=20_000))]
    idle: u16,
}

/// Measures events in an empty environment.
pub(crate) async fn measure(options: &Options, environment: &Environment, tenantry: &Tenantry, seconds: Duration) -> Result<Report> {
    let Options { kafka, backlog, tenants, idle } = options;
    let engine = environment.engine();
    let heading = format!("{engine}, backlogs of {backlog} events over {tenants} tenants");
    let report = Report::new(heading, json!({ "engine": engine, "backlog": backlog, "tenants": tenants }))?;
    let prefix = format!("bench-{}.", Uuid::new_v4().simple());
    let topic = Topic { servers: kafka.clone(), name: format!("{prefix}{TOPIC}") };
    let mut bench = Bench { options, tenantry, on_kafka: settings(kafka, &prefix), topic, report };

    progress("tenants");
    let server = tenantry.start_with(&bench.on_kafka)?;
    let mut api = Connection::open(server.address).await?;
    let user = User::register(&mut api, "events@example.com").await?;
    let downloads = downloads(&mut api, &user, *tenants).await?;
    bench.measure_steady_rate(&server, &downloads, seconds).await?;
    server.stop()?;
    bench.measure_backlogs(&settings(UNREACHABLE, &prefix), &downloads).await?;
    if *idle > 0 {
        bench.measure_idle_tenants(&user).await?;
    }
    Ok(bench.report)
}

/// A run, and its report so far.
struct Bench<'a> {
    options: &'a Options,
    tenantry: &'a Tenantry,
    on_kafka: Settings<'a>,
    topic: Topic,
    report: Report,
}

impl Bench<'_> {
    /// Measures the latency of events at a steady rate.
    async fn measure_steady_rate(&mut self, server: &Server, downloads: &Arc<[Request]>, seconds: Duration) -> Result<()> {
        progress("a steady rate");
        let consumer = self.topic.consume(&self.topic.ends()?)?;
        let count = u64::from(PER_SECOND) * seconds.as_secs() * 2;
        let cpu = server.cpu_time()?;
        let began = Instant::now();
        let receiving = tokio::task::spawn_blocking(move || latencies(&consumer, count));
        let (responses, arrivals) = tokio::join!(record_steadily(server.address, downloads, count), receiving);
        let (responses, arrivals) = (responses?, arrivals??);
        let report = &mut self.report;
        report.add("events per second", count as f64 / began.elapsed().as_secs_f64());
        report.add("response to the request, p50 ms", millis(responses.percentile(50)));
        report.add("event to consumer, p50 ms", millis(arrivals.percentile(50)));
        report.add_with_bound("event to consumer, p99 ms", millis(arrivals.percentile(99)), Bound::AtMost(50.0));
        report.add("CPU time of the server per event, ms", millis(server.cpu_time()? - cpu) / count as f64);
        Ok(())
    }

    /// Measures how fast a backlog is published, beside a bare producer.
    async fn measure_backlogs(&mut self, without_kafka: &Settings<'_>, downloads: &Arc<[Request]>) -> Result<()> {
        let mut rounds = Vec::new();
        for round in 1..=ROUNDS {
            progress(&format!("backlog {round} of {ROUNDS}"));
            let server = self.tenantry.start_with(without_kafka)?;
            record(server.address, downloads, self.options.backlog).await?;
            server.stop()?;
            rounds.push(self.measure_backlog().await?);
        }
        rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        let median = &rounds[ROUNDS / 2];
        self.report.add("backlog, events per second", median.relayed);
        self.report.add("producer alone, the same messages per second", median.produced);
        self.report.add_with_bound("backlog / producer alone", median.ratio(), Bound::AtLeast(0.5));
        self.report.add("CPU time of the server per event of the backlog, ms", median.cpu_ms);
        Ok(())
    }

    /// Publishes the backlog in the outboxes, then sends the same messages with a bare producer.
    async fn measure_backlog(&self) -> Result<BacklogRound> {
        let backlog = self.options.backlog;
        let begin = self.topic.ends()?;
        let server = self.tenantry.start_with(&self.on_kafka)?;
        let cpu = server.cpu_time()?;
        let (topic, from) = (self.topic.clone(), begin.clone());
        let elapsed = tokio::task::spawn_blocking(move || topic.time_to(&from, backlog)).await??;
        let cpu = server.cpu_time()? - cpu;
        server.stop()?;
        let topic = self.topic.clone();
        let produce_again = move || {
            // The consumer is dropped before the messages are sent again.
            let messages = receive(&topic.consume(&begin)?, backlog)?;
            produce(&topic, &messages)
        };
        let produced = tokio::task::spawn_blocking(produce_again).await??;
        let relayed = backlog as f64 / elapsed.as_secs_f64();
        Ok(BacklogRound { relayed, produced, cpu_ms: millis(cpu) / backlog as f64 })
    }

    /// Measures the CPU use of a server and a worker with idle tenants.
    async fn measure_idle_tenants(&mut self, user: &User) -> Result<()> {
        progress("idle tenants");
        let server = self.tenantry.start_with(&self.on_kafka)?;
        let mut api = Connection::open(server.address).await?;
        for _ in 0..self.options.idle {
            Tenant::create(&mut api, user).await?;
        }
        server.stop()?;
        let server = self.tenantry.start_with(&self.on_kafka)?;
        let worker = self.tenantry.start_worker(&self.on_kafka)?;
        tokio::time::sleep(IDLE_AFTER).await;
        let before = (server.cpu_time()?, worker.cpu_time()?);
        tokio::time::sleep(IDLE_PERIOD).await;
        let after = (server.cpu_time()?, worker.cpu_time()?);
        let percent = |cpu: Duration| cpu.as_secs_f64() / IDLE_PERIOD.as_secs_f64() * 100.0;
        self.report.add("server with idle tenants, % of a core", percent(after.0 - before.0));
        self.report.add("worker with idle tenants, % of a core", percent(after.1 - before.1));
        worker.stop()?;
        server.stop()
    }
}

/// Rates in events per second, and CPU time per event.
struct BacklogRound {
    relayed: f64,
    produced: f64,
    cpu_ms: f64,
}

impl BacklogRound {
    fn ratio(&self) -> f64 {
        self.relayed / self.produced
    }
}

/// Creates tenants with a document each. Returns requests to download the documents, each of which records an event.
async fn downloads(api: &mut Connection, user: &User, tenants: u16) -> Result<Arc<[Request]>> {
    let mut downloads = Vec::new();
    for _ in 0..tenants {
        let tenant = Tenant::create(api, user).await?;
        let document = user.upload_document(api, &tenant, SMALL).await?;
        downloads.push(user.get_download(&tenant, document));
    }
    Ok(downloads.into())
}

/// Variables of the server.
type Settings<'a> = [(&'static str, &'a str); 3];

fn settings<'a>(servers: &'a str, prefix: &'a str) -> Settings<'a> {
    [("KAFKA_BOOTSTRAP_SERVERS", servers), ("KAFKA_TOPIC_PREFIX", prefix), ("DEMO_ROUTES", "false")]
}

/// Records events at a steady rate. Returns the latencies of the requests.
async fn record_steadily(address: SocketAddr, downloads: &Arc<[Request]>, count: u64) -> Result<Histogram> {
    let mut all = Histogram::default();
    let each = (0..STEADY_CLIENTS).map(|n| {
        let downloads = Arc::clone(downloads);
        async move {
            let mut connection = Connection::open(address).await?;
            let mut answered = Histogram::default();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * STEADY_CLIENTS / PER_SECOND);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for round in 0..count / u64::from(STEADY_CLIENTS) {
                ticks.tick().await;
                let which = usize::try_from(round)? * STEADY_CLIENTS as usize + n as usize;
                let began = Instant::now();
                let (status, _) = connection.exchange(&downloads[which % downloads.len()]).await?;
                ensure!(status == 200, "the response to a download has status {status}");
                answered.record(began.elapsed());
            }
            Ok::<_, anyhow::Error>(answered)
        }
    });
    for answered in futures_util::future::try_join_all(each).await? {
        all.merge(&answered);
    }
    Ok(all)
}

/// Records events as fast as the server accepts them.
async fn record(address: SocketAddr, downloads: &Arc<[Request]>, count: u64) -> Result<()> {
    let left = Arc::new(AtomicU64::new(count));
    let each = (0..BACKLOG_CLIENTS).map(|_| {
        let (downloads, left) = (Arc::clone(downloads), Arc::clone(&left));
        async move {
            let mut connection = Connection::open(address).await?;
            while let Ok(n) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
                let (status, _) = connection.exchange(&downloads[usize::try_from(n)? % downloads.len()]).await?;
                ensure!(status == 200, "the response to a download has status {status}");
            }
            Ok::<_, anyhow::Error>(())
        }
    });
    futures_util::future::try_join_all(each).await.map(drop)
}

/// A topic and its partitions.
#[derive(Clone)]
struct Topic {
    servers: String,
    name: String,
}

/// A received message.
struct Received {
    key: Vec<u8>,
    value: Vec<u8>,
    headers: OwnedHeaders,
}

impl Topic {
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("group.id", "bench").set("enable.auto.commit", "false");
        config
    }

    /// The end of each partition, once the topic exists.
    fn ends(&self) -> Result<TopicPartitionList> {
        let (consumer, began) = (self.client().create::<BaseConsumer>()?, Instant::now());
        loop {
            let found = consumer.fetch_metadata(Some(&self.name), WAIT_TIMEOUT)?;
            let mut partitions = TopicPartitionList::new();
            for partition in found.topics().iter().flat_map(|topic| topic.partitions()) {
                partitions.add_partition_offset(&self.name, partition.id(), Offset::End)?;
            }
            if partitions.count() > 0 {
                return Ok(consumer.offsets_for_times(partitions, WAIT_TIMEOUT)?);
            }
            ensure!(began.elapsed() < WAIT_TIMEOUT, "the topic {} was not created", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts to receive from these offsets.
    fn consume(&self, from: &TopicPartitionList) -> Result<BaseConsumer> {
        let consumer: BaseConsumer = self.client().set("fetch.wait.max.ms", "10").create()?;
        consumer.assign(from)?;
        Ok(consumer)
    }

    /// The time from the first message after these ends until there are `count` messages. No consumer reads them in the meantime,
    /// and the brokers are polled rarely, since both would slow down publishing.
    fn time_to(&self, ends: &TopicPartitionList, count: u64) -> Result<Duration> {
        let consumer: BaseConsumer = self.client().create()?;
        let mut current_ends = ends.clone();
        current_ends.set_all_offsets(Offset::End)?;
        let (began, mut first) = (Instant::now(), None);
        loop {
            let arrived = messages(&consumer.offsets_for_times(current_ends.clone(), WAIT_TIMEOUT)?) - messages(ends);
            if arrived > 0 {
                first.get_or_insert_with(Instant::now);
            }
            if arrived >= i64::try_from(count)? {
                return Ok(first.map_or(Duration::ZERO, |first| first.elapsed()));
            }
            ensure!(began.elapsed() < WAIT_TIMEOUT, "only {arrived} of {count} events arrived");
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The number of messages before these offsets.
fn messages(offsets: &TopicPartitionList) -> i64 {
    offsets.elements().iter().filter_map(|partition| partition.offset().to_raw()).sum()
}

/// The latencies of `count` events from their transaction to a consumer.
fn latencies(consumer: &BaseConsumer, count: u64) -> Result<Histogram> {
    let (mut latencies, began) = (Histogram::default(), Instant::now());
    while latencies.total() < count {
        ensure!(began.elapsed() < WAIT_TIMEOUT, "only {} of {count} events arrived", latencies.total());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let now = SystemClock.now();
        let message = message?;
        let value: Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
        let recorded = value["timestamp"].as_str().and_then(Timestamp::parse).context("an event has no time")?;
        latencies.record(Duration::from_micros(u64::try_from(now.micros() - recorded.micros()).unwrap_or(0)));
    }
    Ok(latencies)
}

/// Receives `count` messages.
fn receive(consumer: &BaseConsumer, count: u64) -> Result<Vec<Received>> {
    let (mut received, began) = (Vec::new(), Instant::now());
    while (received.len() as u64) < count {
        ensure!(began.elapsed() < WAIT_TIMEOUT, "only {} of {count} events arrived", received.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        received.push(Received {
            key: message.key().unwrap_or_default().to_vec(),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: message.headers().map(BorrowedHeaders::detach).unwrap_or_default(),
        });
    }
    Ok(received)
}

/// Sends messages with a bare producer that has the server's settings. Returns the rate in messages per second.
fn produce(topic: &Topic, messages: &[Received]) -> Result<f64> {
    let producer: BaseProducer = topic
        .client()
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "gzip")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("batch.size", "131072")
        .set("queue.buffering.max.kbytes", "65536")
        .create()?;
    // Connect before the measurement.
    producer.send(BaseRecord::to(&topic.name).key("warm").payload("{}")).map_err(|(error, _)| error)?;
    producer.flush(WAIT_TIMEOUT)?;
    let began = Instant::now();
    for Received { key, value, headers } in messages {
        let mut record = BaseRecord::to(&topic.name).key(key).payload(value).headers(headers.clone());
        while let Err((error, returned)) = producer.send(record) {
            ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "a message is refused: {error}");
            record = returned;
            producer.poll(Duration::from_millis(1));
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(WAIT_TIMEOUT)?;
    Ok(messages.len() as f64 / began.elapsed().as_secs_f64())
}
