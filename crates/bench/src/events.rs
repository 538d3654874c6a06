//! Events on Kafka: how soon they are there, how fast a backlog goes, and what idle tenants cost.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use comfy_table::{Table, presets};
use domain::{Clock, SystemClock, Timestamp};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedHeaders, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::{
    fixture::{Tenant, User},
    histogram::Histogram,
    load::{Connection, Request},
    place::Place,
    process::{Server, Tenantry},
    progress,
};

/// What each event of the benchmark is: a download that is audited.
const TOPIC: &str = "audit.log";
/// Connections over which events come at a steady rate, and how many events per second that is.
const STEADY: u32 = 10;
const PER_SECOND: u32 = 500;
/// Connections that make the backlog.
const BUSY: usize = 16;
/// A broker that is away.
const NOWHERE: &str = "127.0.0.1:1";
/// How long whatever is waited for may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the brokers are asked how much of it is there.
const ASKED: Duration = Duration::from_millis(20);
/// How often a backlog is measured, for the median.
const ROUNDS: usize = 3;
/// Bytes of each tenant's document.
const SMALL: usize = 1_000;

/// How many of what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A Kafka broker, `host:port`
    #[arg(long)]
    kafka: String,
    /// Events of a backlog
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(u64).range(1_000..=10_000_000))]
    backlog: u64,
    /// Tenants that they are of
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=10_000))]
    tenants: u16,
    /// Tenants that are there and do nothing; 0 leaves that out
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u16).range(0..=20_000))]
    idle: u16,
}

/// The figures of events.
#[derive(Serialize)]
pub(crate) struct Events {
    engine: &'static str,
    backlog: u64,
    tenants: u16,
    findings: Vec<(&'static str, f64)>,
}

/// Measures events in an empty place.
pub(crate) async fn measure(options: &Options, place: &Place, tenantry: &Tenantry, seconds: Duration) -> Result<Events> {
    let mut findings = Vec::new();
    let prefix = format!("bench-{}.", Uuid::new_v4().simple());
    let elsewhere = settings(NOWHERE, &prefix);
    let on_kafka = settings(&options.kafka, &prefix);
    let topic = Topic { servers: options.kafka.clone(), name: format!("{prefix}{TOPIC}") };

    progress("tenants");
    let server = tenantry.start_with(&on_kafka)?;
    let mut api = Connection::open(server.address).await?;
    let user = User::register(&mut api, "events@example.com").await?;
    let mut downloads = Vec::new();
    for _ in 0..options.tenants {
        let tenant = Tenant::create(&mut api, &user).await?;
        let document: Uuid = user.uploaded(&mut api, &tenant, SMALL).await?;
        downloads.push(user.get_download(&tenant, document));
    }
    let downloads: Arc<[Request]> = downloads.into();

    progress("a steady rate");
    let consumer = topic.consume(&topic.ends()?)?;
    let count = u64::from(PER_SECOND) * seconds.as_secs() * 2;
    let cpu = server.cpu_time()?;
    let began = Instant::now();
    let (told, arrived) =
        tokio::join!(steadily(server.address, &downloads, count), tokio::task::spawn_blocking(move || latencies(&consumer, count)));
    let answered = told?;
    let arrived = arrived??;
    findings.push(("events per second", count as f64 / began.elapsed().as_secs_f64()));
    findings.push(("answer to the request, p50 ms", millis(answered.percentile(50))));
    findings.push(("event to consumer, p50 ms", millis(arrived.percentile(50))));
    findings.push(("event to consumer, p99 ms (at most 50)", millis(arrived.percentile(99))));
    findings.push(("processor time of the server for each, ms", millis(server.cpu_time()? - cpu) / count as f64));
    server.stop()?;

    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        progress(&format!("backlog {round} of {ROUNDS}"));
        let server = tenantry.start_with(&elsewhere)?;
        tell(server.address, &downloads, options.backlog).await?;
        server.stop()?;
        let begin = topic.ends()?;
        let server = tenantry.start_with(&on_kafka)?;
        let (cpu, backlog, arriving, from) = (server.cpu_time()?, options.backlog, topic.clone(), begin.clone());
        let elapsed = tokio::task::spawn_blocking(move || arriving.time_to(&from, backlog)).await??;
        let cpu = server.cpu_time()? - cpu;
        server.stop()?;
        let relayed = backlog as f64 / elapsed.as_secs_f64();
        let plain = topic.clone();
        let again = move || {
            // Whoever received them is gone when they are sent again.
            let messages = receive(&plain.consume(&begin)?, backlog)?;
            produce(&plain, &messages)
        };
        let produced = tokio::task::spawn_blocking(again).await??;
        ratios.push((relayed / produced, relayed, produced, millis(cpu) / backlog as f64));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, relayed, produced, cpu) = ratios[ROUNDS / 2];
    findings.push(("backlog, events per second", relayed));
    findings.push(("producer alone, the same messages per second", produced));
    findings.push(("backlog / producer alone (at least 0.5)", ratio));
    findings.push(("processor time of the server for each of the backlog, ms", cpu));

    if options.idle > 0 {
        progress("idle tenants");
        let server = tenantry.start_with(&on_kafka)?;
        let mut api = Connection::open(server.address).await?;
        for _ in 0..options.idle {
            Tenant::create(&mut api, &user).await?;
        }
        server.stop()?;
        let server = tenantry.start_with(&on_kafka)?;
        let worker = tenantry.start_worker(&on_kafka)?;
        // What they had to tell is told, and their marks are old and gone.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let period = Duration::from_secs(60);
        let of = |server: &Server| server.cpu_time();
        let before = (of(&server)?, of(&worker)?);
        tokio::time::sleep(period).await;
        let after = (of(&server)?, of(&worker)?);
        let percent = |cpu: Duration| cpu.as_secs_f64() / period.as_secs_f64() * 100.0;
        findings.push(("server with idle tenants, % of a core", percent(after.0 - before.0)));
        findings.push(("worker with idle tenants, % of a core", percent(after.1 - before.1)));
        worker.stop()?;
        server.stop()?;
    }
    Ok(Events { engine: place.engine(), backlog: options.backlog, tenants: options.tenants, findings })
}

fn settings<'a>(servers: &'a str, prefix: &'a str) -> [(&'static str, &'a str); 3] {
    [("KAFKA_BOOTSTRAP_SERVERS", servers), ("KAFKA_TOPIC_PREFIX", prefix), ("DEMO_ROUTES", "false")]
}

/// Tells events at a steady rate. Answers how long the requests took.
async fn steadily(address: SocketAddr, downloads: &Arc<[Request]>, count: u64) -> Result<Histogram> {
    let mut all = Histogram::default();
    let each = (0..STEADY).map(|n| {
        let downloads = Arc::clone(downloads);
        async move {
            let mut connection = Connection::open(address).await?;
            let mut answered = Histogram::default();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * STEADY / PER_SECOND);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for round in 0..count / u64::from(STEADY) {
                ticks.tick().await;
                let which = usize::try_from(round)? * STEADY as usize + n as usize;
                let began = Instant::now();
                let (status, _) = connection.exchange(&downloads[which % downloads.len()]).await?;
                ensure!(status == 200, "a download is answered with {status}");
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

/// Tells so many events, as fast as they are taken.
async fn tell(address: SocketAddr, downloads: &Arc<[Request]>, count: u64) -> Result<()> {
    let left = Arc::new(AtomicU64::new(count));
    let each = (0..BUSY).map(|_| {
        let (downloads, left) = (Arc::clone(downloads), Arc::clone(&left));
        async move {
            let mut connection = Connection::open(address).await?;
            while let Ok(n) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
                let (status, _) = connection.exchange(&downloads[usize::try_from(n)? % downloads.len()]).await?;
                ensure!(status == 200, "a download is answered with {status}");
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

/// A message as it came.
struct Told {
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

    /// Where each partition ends, once the topic is there.
    fn ends(&self) -> Result<TopicPartitionList> {
        let (consumer, began) = (self.client().create::<BaseConsumer>()?, Instant::now());
        loop {
            let found = consumer.fetch_metadata(Some(&self.name), PATIENCE)?;
            let mut partitions = TopicPartitionList::new();
            for partition in found.topics().iter().flat_map(|topic| topic.partitions()) {
                partitions.add_partition_offset(&self.name, partition.id(), Offset::End)?;
            }
            if partitions.count() > 0 {
                return Ok(consumer.offsets_for_times(partitions, PATIENCE)?);
            }
            ensure!(began.elapsed() < PATIENCE, "the topic {} is not made", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Begins to receive from there on.
    fn consume(&self, from: &TopicPartitionList) -> Result<BaseConsumer> {
        let consumer: BaseConsumer = self.client().set("fetch.wait.max.ms", "10").create()?;
        consumer.assign(from)?;
        Ok(consumer)
    }

    /// How long it takes from the first message after these ends until there are so many. Nobody reads them meanwhile, and the
    /// brokers are seldom asked.
    fn time_to(&self, ends: &TopicPartitionList, count: u64) -> Result<Duration> {
        let consumer: BaseConsumer = self.client().create()?;
        let mut asked = ends.clone();
        asked.set_all_offsets(Offset::End)?;
        let (began, mut first) = (Instant::now(), None);
        loop {
            let there = messages(&consumer.offsets_for_times(asked.clone(), PATIENCE)?) - messages(ends);
            if there > 0 {
                first.get_or_insert_with(Instant::now);
            }
            if there >= i64::try_from(count)? {
                return Ok(first.map_or(Duration::ZERO, |first| first.elapsed()));
            }
            ensure!(began.elapsed() < PATIENCE, "only {there} of {count} events are there");
            std::thread::sleep(ASKED);
        }
    }
}

/// How many messages are before these offsets.
fn messages(offsets: &TopicPartitionList) -> i64 {
    offsets.elements().iter().filter_map(|partition| partition.offset().to_raw()).sum()
}

/// How long so many events were on their way, from their transaction to a consumer.
fn latencies(consumer: &BaseConsumer, count: u64) -> Result<Histogram> {
    let (mut latencies, began) = (Histogram::default(), Instant::now());
    while latencies.total() < count {
        ensure!(began.elapsed() < PATIENCE, "only {} of {count} events came", latencies.total());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let now = SystemClock.now();
        let message = message?;
        let value: Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
        let told = value["timestamp"].as_str().and_then(Timestamp::parse).context("an event has no time")?;
        latencies.record(Duration::from_micros(u64::try_from(now.micros() - told.micros()).unwrap_or(0)));
    }
    Ok(latencies)
}

/// Receives so many messages.
fn receive(consumer: &BaseConsumer, count: u64) -> Result<Vec<Told>> {
    let (mut told, began) = (Vec::new(), Instant::now());
    while (told.len() as u64) < count {
        ensure!(began.elapsed() < PATIENCE, "only {} of {count} events came", told.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        told.push(Told {
            key: message.key().unwrap_or_default().to_vec(),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: message.headers().map(BorrowedHeaders::detach).unwrap_or_default(),
        });
    }
    Ok(told)
}

/// Sends messages with nothing but the client library, set as the server's. Answers how many per second.
fn produce(topic: &Topic, messages: &[Told]) -> Result<f64> {
    let producer: BaseProducer = topic
        .client()
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("batch.size", "131072")
        .set("queue.buffering.max.kbytes", "65536")
        .create()?;
    // Connected, and known to the brokers.
    producer.send(BaseRecord::to(&topic.name).key("warm").payload("{}")).map_err(|(error, _)| error)?;
    producer.flush(PATIENCE)?;
    let began = Instant::now();
    for Told { key, value, headers } in messages {
        let mut record = BaseRecord::to(&topic.name).key(key).payload(value).headers(headers.clone());
        while let Err((error, back)) = producer.send(record) {
            ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "a message is refused: {error}");
            record = back;
            producer.poll(Duration::from_millis(1));
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE)?;
    Ok(messages.len() as f64 / began.elapsed().as_secs_f64())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Events {
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["", "found"]);
        for (what, value) in &self.findings {
            table.add_row([(*what).to_owned(), format!("{value:.3}")]);
        }
        write!(f, "{}, backlogs of {} events over {} tenants\n{table}", self.engine, self.backlog, self.tenants)
    }
}
