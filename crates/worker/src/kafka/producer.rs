//! What is published to Kafka.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use domain::{Error, Event, EventKind, Result};
use futures_util::{FutureExt, future::BoxFuture};
use rdkafka::{
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use services::{EventServices, OrderingKey};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Detached, Logged, refused, unavailable};
use crate::{
    KafkaSettings,
    bus::{Bus, Published},
    envelope,
    in_process::DeadLetterTopic,
};

/// How many events of a key are on their way to the brokers at once, and of how many keys: all of them are in memory.
const BATCH: u32 = 400;
const KEYS_AT_ONCE: usize = 128;
/// How much of what is on its way the library keeps, in KiB.
const QUEUE: &str = "65536";
/// How long to wait where that is full, or after an error.
const FULL: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_secs(1);
/// The key of events that concern no tenant.
const PLATFORM: &str = "platform";
/// How much of a dead letter, and of what is said about it, is published: more is too much for a broker as it comes.
const LETTER: usize = 256 << 10;
const ERROR: usize = 4 << 10;

/// Publishes to Kafka: at least once, in order for each key, acknowledged by all replicas in sync.
pub struct KafkaBus {
    /// Another one after an error that ends a producer.
    producer: RwLock<Arc<Client>>,
    settings: KafkaSettings,
    services: EventServices,
}

type Client = Detached<ThreadedProducer<Logged>>;

/// What the library keeps of a message until the brokers have it or never will.
pub(super) struct OnItsWay {
    /// Which of its batch it is.
    place: usize,
    /// What became of it: it did not arrive, unless the brokers say so.
    failure: Option<KafkaError>,
    /// Tells what did not arrive. Without senders left, all of the batch is decided about.
    failures: UnboundedSender<(usize, KafkaError)>,
}

impl OnItsWay {
    fn new(place: usize, failures: UnboundedSender<(usize, KafkaError)>) -> Box<Self> {
        Box::new(Self { place, failure: Some(KafkaError::Canceled), failures })
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(error) = self.failure.take() {
            // Whoever waited may have been stopped.
            _ = self.failures.send((self.place, error));
        }
    }
}

/// Why an event was not published.
enum Failure {
    /// Its own fault, unless others were with it.
    Own(String),
    /// The brokers', or the connection's.
    Passing(String),
}

impl KafkaBus {
    /// Prepares to publish. Connects to nothing yet.
    ///
    /// # Errors
    /// When the library refuses the settings.
    pub fn new(settings: KafkaSettings, services: EventServices) -> Result<Self> {
        let producer = RwLock::new(Arc::new(make(&settings)?));
        Ok(Self { producer, settings, services })
    }

    fn producer(&self) -> Arc<Client> {
        Arc::clone(&self.producer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces a producer that has ended: what it had on its way has failed, and is sent again.
    fn replace_if_ended(&self, producer: &Arc<Client>) {
        let Some((_, reason)) = producer.client().fatal_error() else { return };
        let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, producer) {
            return;
        }
        tracing::warn!(reason, "the producer has ended, and another goes on");
        match make(&self.settings) {
            Ok(another) => *current = Arc::new(another),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "no producer can be made"),
        }
    }

    /// Publishes what could not be handled, with why.
    ///
    /// # Errors
    /// When the library refuses it.
    pub(super) async fn send_dead_letter(&self, kind: EventKind, key: OrderingKey, value: &[u8], error: &str) -> Result<()> {
        let (value, error) = (&value[..value.len().min(LETTER)], &error.as_bytes()[..error.len().min(ERROR)]);
        let headers = OwnedHeaders::new().insert(Header { key: "error", value: Some(error) });
        let (producer, topic) = (self.producer(), self.settings.dead_letter_topic(kind));
        let (failures, failed) = unbounded_channel();
        let sent = send(&producer, &topic, &key_of(key), value, headers, OnItsWay::new(0, failures)).await;
        let failure = sent.err().or(first_of(failed).await.map(|(_, error)| error));
        self.replace_if_ended(&producer);
        failure.map_or(Ok(()), |error| Err(unavailable(error)))
    }

    async fn publish_all(&self, key: OrderingKey, events: &[Event]) -> Published {
        let (mut count, mut failure) = self.send_all(key, events).await;
        if let (Some(Failure::Own(_)), Some(event)) = (&failure, events.get(count).filter(|_| events.len() > 1)) {
            // The brokers refuse those that came with it, too: whose fault it is, is seen when it comes alone.
            let (sent, of_it_alone) = self.send_all(key, std::slice::from_ref(event)).await;
            (count, failure) = (count + sent, of_it_alone);
        }
        let error = match (failure, events.get(count)) {
            (None, _) => return Published { count, pause: None },
            (Some(Failure::Own(error)), Some(event)) => match self.services.dead_letter(event, error, 1).await {
                Ok(()) => return Published { count: count + 1, pause: None },
                Err(error) => error.with_causes(),
            },
            (Some(Failure::Own(error) | Failure::Passing(error)), _) => error,
        };
        tracing::warn!(error, "Kafka does not take events; they are sent again");
        Published { count, pause: Some(PAUSE) }
    }

    /// Sends events. Answers how many arrived, from the first on, and what became of the one after them.
    async fn send_all(&self, key: OrderingKey, events: &[Event]) -> (usize, Option<Failure>) {
        let (producer, key) = (self.producer(), key_of(key));
        let (failures, failed) = unbounded_channel();
        let mut refused = None;
        for (place, event) in events.iter().enumerate() {
            let (topic, value) = (self.settings.topic(event.kind), envelope::encode(event));
            let on_its_way = OnItsWay::new(place, failures.clone());
            if let Err(error) = send(&producer, &topic, &key, &value, headers(event), on_its_way).await {
                // Nothing that comes after it may overtake it.
                refused = Some((place, error));
                break;
            }
        }
        drop(failures);
        // With a gap, the producer has ended: those after it did not arrive, either.
        let failure = [refused, first_of(failed).await].into_iter().flatten().min_by_key(|(place, _)| *place);
        self.replace_if_ended(&producer);
        failure.map_or((events.len(), None), |(place, error)| (place, Some(failure_of(&error))))
    }
}

/// The first of a batch that did not arrive, once everything was decided about.
async fn first_of(mut failed: UnboundedReceiver<(usize, KafkaError)>) -> Option<(usize, KafkaError)> {
    let mut first = None;
    while let Some((place, error)) = failed.recv().await {
        if first.as_ref().is_none_or(|(before, _)| place < *before) {
            first = Some((place, error));
        }
    }
    first
}

impl ProducerContext for Logged {
    type DeliveryOpaque = Box<OnItsWay>;

    fn delivery(&self, outcome: &DeliveryResult<'_>, mut message: Box<OnItsWay>) {
        message.failure = outcome.as_ref().err().map(|(error, _)| error.clone());
    }
}

fn make(settings: &KafkaSettings) -> Result<Client> {
    let producer = settings
        .producer()
        // Nothing is given up: an event that was, would be overtaken by those after it. A broker that is away is waited for, and
        // one that refuses an event ends the producer.
        .set("message.timeout.ms", "0")
        .set("enable.gapless.guarantee", "true")
        .create_with_context(Logged)
        .map_err(refused)?;
    Ok(Detached::new(producer))
}

/// Hands a message to the library, which sends it as soon as it can.
async fn send(
    producer: &Client,
    topic: &str,
    key: &str,
    value: &[u8],
    headers: OwnedHeaders,
    on_its_way: Box<OnItsWay>,
) -> Result<(), KafkaError> {
    let mut record = BaseRecord::with_opaque_to(topic, on_its_way).key(key).payload(value).headers(headers);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
            Err((error, _)) => return Err(error),
        }
        tokio::time::sleep(FULL).await;
    }
}

/// What decides on the partition.
fn key_of(tenant_id: OrderingKey) -> String {
    tenant_id.map_or_else(|| PLATFORM.to_owned(), |id| id.to_string())
}

fn failure_of(error: &KafkaError) -> Failure {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord) => Failure::Own(error.to_string()),
        _ => Failure::Passing(error.to_string()),
    }
}

impl KafkaSettings {
    /// How whatever is published goes out: once into its partition, in order, to all replicas in sync.
    pub(super) fn producer(&self) -> rdkafka::ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", &self.compression)
            // As the clients in Java do it: theirs find a key in the same partition.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "2")
            .set("batch.size", "131072")
            .set("queue.buffering.max.kbytes", QUEUE);
        config
    }
}

/// What an event is, in the binary mode of CloudEvents 1.0's Kafka binding, with its Distributed Tracing extension.
fn headers(event: &Event) -> OwnedHeaders {
    let (id, time) = (event.id.to_string(), event.at.to_string());
    let always = [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_type", event.kind.as_str()),
        ("ce_source", "/tenantry"),
        ("ce_time", &time),
        ("content-type", "application/json"),
    ];
    let traceparent = event.traceparent.as_deref().map(|value| (envelope::TRACEPARENT, value));
    let headers = OwnedHeaders::new_with_capacity(always.len() + 1);
    always.into_iter().chain(traceparent).fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

impl Bus for KafkaBus {
    fn publish<'a>(&'a self, key: OrderingKey, events: &'a [Event]) -> BoxFuture<'a, Published> {
        self.publish_all(key, events).boxed()
    }

    fn batch(&self) -> u32 {
        BATCH
    }

    fn keys_at_once(&self) -> usize {
        KEYS_AT_ONCE
    }
}

impl DeadLetterTopic for KafkaBus {
    fn send<'a>(&'a self, event: &'a Event, error: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move { self.send_dead_letter(event.kind, event.tenant_id, &envelope::encode(event), error).await }.boxed()
    }
}
