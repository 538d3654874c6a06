//! The demonstration on Kafka: a producer, and a consumer of every topic that begins with `demo.`.

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

/// How long a message may be on its way, in milliseconds: somebody waits for the answer.
const SENT_WITHIN: &str = "5000";
/// How soon the consumer learns of a new topic, in milliseconds.
const NEW_TOPICS: &str = "5000";
/// The headers that bear what is no part of a message's content.
const ID: &str = "ce_id";
const TIME: &str = "ce_time";

/// A producer and a consumer of the demonstration's topics.
pub struct KafkaDemo {
    settings: KafkaSettings,
    producer: Detached<FutureProducer<Logged>>,
    admin: Detached<AdminClient<Logged>>,
    probe: KafkaProbe,
    /// Topics of the demonstration that are there. One makes another at a time.
    topics: Mutex<HashSet<String>>,
    received: DemoReceived,
}

impl KafkaDemo {
    /// Begins to receive what is, and what comes, on the topics.
    ///
    /// # Errors
    /// When the library refuses the settings.
    pub fn start(settings: KafkaSettings) -> Result<Self> {
        let consumer: StreamConsumer<Logged> = settings
            .client()
            // Each instance receives everything, and leaves nothing behind.
            .set("group.id", format!("{}-demo-{}", settings.group_id, Uuid::new_v4()))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("topic.metadata.refresh.interval.ms", NEW_TOPICS)
            .set("queued.max.messages.kbytes", "1024")
            .create_with_context(Logged)
            .map_err(refused)?;
        let of_ours = |text: &str| text.replace('.', "\\.");
        let pattern = format!("^{}{}.*", of_ours(&settings.topic_prefix), of_ours(DEMO_PREFIX));
        consumer.subscribe(&[&pattern]).map_err(unavailable)?;
        let producer = settings.producer().set("message.timeout.ms", SENT_WITHIN).create_with_context(Logged).map_err(refused)?;
        let (admin, probe, received) = (settings.admin()?, KafkaProbe::new(&settings)?, DemoReceived::default());
        tokio::spawn(receive(Detached::new(consumer), settings.topic_prefix.clone(), received.clone()));
        Ok(Self { settings, producer: Detached::new(producer), admin, probe, topics: Mutex::default(), received })
    }

    /// Makes a topic, unless it is there.
    async fn ensure_topic(&self, topic: &str) -> Result<()> {
        let mut known = self.topics.lock().await;
        if known.contains(topic) {
            return Ok(());
        }
        let of_demo = format!("{}{DEMO_PREFIX}", self.settings.topic_prefix);
        let found = self.probe.topics().await.map_err(unavailable)?;
        let found = found.iter().filter(|topic| topic.starts_with(&of_demo));
        known.extend(found.map(|topic| topic[self.settings.topic_prefix.len()..].to_owned()));
        if known.contains(topic) {
            return Ok(());
        }
        if known.len() >= DEMO_TOPICS {
            let mut errors = FieldErrors::default();
            errors.add("topic", "must be one of those that there are: the demonstration has no room for more");
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

/// Receives until the consumer is dropped with the runtime.
async fn receive(consumer: Detached<StreamConsumer<Logged>>, prefix: String, received: DemoReceived) {
    loop {
        match consumer.recv().await {
            Ok(message) => received.push(demo_message(&message, &prefix)),
            // Errors queue up, as messages do: whoever waited after each would be deaf for long after a broker is back.
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the demonstration's consumer receives nothing"),
        }
    }
}

/// What a message says; whoever sent it may have used another program.
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
