//! The demo on Kafka: a producer, and a consumer of every topic that begins with `demo.`.

use std::collections::HashSet;

use domain::{Error, FieldErrors, Result, Timestamp};
use futures_util::{FutureExt, future::BoxFuture};
use rdkafka::{
    Message,
    admin::AdminClient,
    consumer::{Consumer, StreamConsumer},
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use services::{DEMO_PREFIX, DEMO_TOPICS, DemoBus, DemoMessage, DemoReceived};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Detached, KafkaProbe, Logged, refused, unavailable};
use crate::KafkaSettings;

/// The delivery timeout of a message in milliseconds: a client waits for the response.
const DELIVERY_TIMEOUT_MS: &str = "5000";
/// How soon the consumer discovers a new topic, in milliseconds.
const METADATA_REFRESH_MS: &str = "5000";
/// The headers for a message's id and time, which are not part of its content.
const ID: &str = "ce_id";
const TIME: &str = "ce_time";

/// A producer and a consumer of the demo topics.
pub struct KafkaDemo {
    settings: KafkaSettings,
    producer: Detached<FutureProducer<Logged>>,
    admin: Detached<AdminClient<Logged>>,
    probe: KafkaProbe,
    /// The known demo topics. The lock allows the creation of one topic at a time.
    topics: Mutex<HashSet<String>>,
    received: DemoReceived,
}

impl KafkaDemo {
    /// Starts to receive existing and new messages of the topics.
    ///
    /// # Errors
    /// When librdkafka rejects the settings.
    pub fn start(settings: KafkaSettings) -> Result<Self> {
        let consumer: StreamConsumer<Logged> = settings
            .client()
            // Each instance receives every message, and commits no offsets.
            .set("group.id", format!("{}-demo-{}", settings.group_id, Uuid::new_v4()))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS)
            .set("queued.max.messages.kbytes", "1024")
            .create_with_context(Logged)
            .map_err(refused)?;
        let escape = |text: &str| text.replace('.', "\\.");
        let pattern = format!("^{}{}.*", escape(&settings.topic_prefix), escape(DEMO_PREFIX));
        consumer.subscribe(&[&pattern]).map_err(unavailable)?;
        let producer = settings.producer().set("message.timeout.ms", DELIVERY_TIMEOUT_MS).create_with_context(Logged).map_err(refused)?;
        let (admin, probe, received) = (settings.admin()?, KafkaProbe::new(&settings)?, DemoReceived::default());
        tokio::spawn(receive(Detached::new(consumer), settings.topic_prefix.clone(), received.clone()));
        Ok(Self { settings, producer: Detached::new(producer), admin, probe, topics: Mutex::default(), received })
    }

    /// Creates a topic, unless it exists.
    async fn ensure_topic(&self, topic: &str) -> Result<()> {
        let mut known = self.topics.lock().await;
        if known.contains(topic) {
            return Ok(());
        }
        let demo_prefix = format!("{}{DEMO_PREFIX}", self.settings.topic_prefix);
        let found = self.probe.topics().await.map_err(unavailable)?;
        let found = found.iter().filter(|topic| topic.starts_with(&demo_prefix));
        known.extend(found.map(|topic| topic[self.settings.topic_prefix.len()..].to_owned()));
        if known.contains(topic) {
            return Ok(());
        }
        if known.len() >= DEMO_TOPICS {
            let mut errors = FieldErrors::default();
            errors.add("topic", "must be an existing topic: the maximum number of demo topics is reached");
            return Err(Error::Invalid(errors));
        }
        self.settings.make_topic(&self.admin, &format!("{}{topic}", self.settings.topic_prefix), 1, &[]).await?;
        known.insert(topic.to_owned());
        Ok(())
    }

    async fn send(&self, message: &DemoMessage) -> Result<()> {
        self.ensure_topic(&message.topic).await?;
        let (topic, id, time) =
            (format!("{}{}", self.settings.topic_prefix, message.topic), message.id.to_string(), message.at.to_string());
        let headers = OwnedHeaders::new().insert(Header { key: ID, value: Some(&id) }).insert(Header { key: TIME, value: Some(&time) });
        let mut record = FutureRecord::to(&topic).payload(&message.message).headers(headers);
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        let sent = self.producer.send_result(record).map_err(|(error, _)| unavailable(error))?;
        match sent.await {
            Ok(delivery) => delivery.map(drop).map_err(|(error, _)| unavailable(error)),
            Err(canceled) => Err(unavailable(canceled)),
        }
    }
}

/// Receives messages until the runtime ends and drops the consumer.
async fn receive(consumer: Detached<StreamConsumer<Logged>>, prefix: String, received: DemoReceived) {
    loop {
        match consumer.recv().await {
            Ok(message) => received.push(demo_message(&message, &prefix)),
            // Errors queue up like messages. A delay after each would postpone the recovery for long.
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the demo consumer cannot receive messages"),
        }
    }
}

/// Converts a message, which another program may have produced.
fn demo_message(message: &BorrowedMessage<'_>, prefix: &str) -> DemoMessage {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = |name: &str| message.headers()?.iter().find(|header| header.key == name)?.value.map(text);
    let sent_at = message.timestamp().to_millis().map(|millis| Timestamp::from_micros(millis.saturating_mul(1_000)));
    DemoMessage {
        id: header(ID).and_then(|id| id.parse::<Uuid>().ok()).unwrap_or_default().into(),
        topic: message.topic().strip_prefix(prefix).unwrap_or(message.topic()).to_owned(),
        key: message.key().map(text),
        message: message.payload().map(text).unwrap_or_default(),
        at: header(TIME).and_then(|time| Timestamp::parse(&time)).or(sent_at).unwrap_or(Timestamp::from_micros(0)),
    }
}

impl DemoBus for KafkaDemo {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn produce<'a>(&'a self, message: &'a DemoMessage) -> BoxFuture<'a, Result<()>> {
        self.send(message).boxed()
    }

    fn received(&self, limit: usize) -> Vec<DemoMessage> {
        self.received.latest(limit)
    }

    fn check(&self) -> BoxFuture<'_, Result<()>> {
        self.probe.check().boxed()
    }
}
