//! Publishing to Kafka.

use std::{sync::Arc, time::Duration};

use domain::{Error, Event, EventKind, Result};
use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::RwLock;
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

/// The maximum number of a key's events in flight to the brokers, and of keys with events in flight. All of these events are in
/// memory.
const BATCH_SIZE: u32 = 400;
const KEY_CONCURRENCY: usize = 128;
/// The size of the library's queue of messages in flight, in KiB.
const QUEUE_KIB: &str = "65536";
/// The delay while the queue is full, and after an error.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(10);
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The message key of events without a tenant.
const PLATFORM_KEY: &str = "platform";
/// The maximum number of published bytes of a dead letter, and of its error. Brokers with default settings reject larger
/// messages.
const MAX_LETTER_BYTES: usize = 256 << 10;
const MAX_ERROR_BYTES: usize = 4 << 10;

/// Publishes to Kafka: at least once, in order within each key, acknowledged by all in-sync replicas.
pub struct KafkaBus {
    /// The current producer. Replaced after an error that is fatal to a producer.
    producer: RwLock<Arc<Client>>,
    settings: KafkaSettings,
    services: EventServices,
}

type Client = Detached<ThreadedProducer<Logged>>;

/// The state of a message that the library holds until its delivery has succeeded or failed.
pub(super) struct InFlight {
    /// Its index in the batch.
    index: usize,
    /// Why it was not delivered. It counts as failed until the brokers acknowledge it.
    failure: Option<KafkaError>,
    /// Reports a failed delivery. Once all senders are dropped, every message of the batch has its outcome.
    failures: UnboundedSender<(usize, KafkaError)>,
}

impl InFlight {
    fn new(index: usize, failures: UnboundedSender<(usize, KafkaError)>) -> Box<Self> {
        Box::new(Self { index, failure: Some(KafkaError::Canceled), failures })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(error) = self.failure.take() {
            // The receiver may be gone after a shutdown.
            _ = self.failures.send((self.index, error));
        }
    }
}

/// Why an event was not published.
enum Failure {
    /// The event's own fault, if it was sent alone.
    Permanent(String),
    /// The fault of the brokers or the connection.
    Transient(String),
}

impl KafkaBus {
    /// Creates a bus, without connecting yet.
    ///
    /// # Errors
    /// When librdkafka rejects the settings.
    pub fn new(settings: KafkaSettings, services: EventServices) -> Result<Self> {
        let producer = RwLock::new(Arc::new(create_producer(&settings)?));
        Ok(Self { producer, settings, services })
    }

    fn producer(&self) -> Arc<Client> {
        Arc::clone(&self.producer.read())
    }

    /// Replaces a producer after a fatal error. Its messages in flight have failed and are sent again.
    fn replace_if_ended(&self, producer: &Arc<Client>) {
        let Some((_, reason)) = producer.client().fatal_error() else { return };
        let mut current = self.producer.write();
        if !Arc::ptr_eq(&current, producer) {
            return;
        }
        tracing::warn!(reason, "fatal producer error; replacing the producer");
        match create_producer(&self.settings) {
            Ok(another) => *current = Arc::new(another),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot create a producer"),
        }
    }

    /// Publishes an event or message that could not be handled, with the error.
    ///
    /// # Errors
    /// When the delivery fails.
    pub(super) async fn send_dead_letter(&self, kind: EventKind, key: OrderingKey, value: &[u8], error: &str) -> Result<()> {
        let (value, error) = (&value[..value.len().min(MAX_LETTER_BYTES)], &error.as_bytes()[..error.len().min(MAX_ERROR_BYTES)]);
        let headers = OwnedHeaders::new().insert(Header { key: "error", value: Some(error) });
        let (producer, topic) = (self.producer(), self.settings.dead_letter_topic(kind));
        let (failures, failed) = unbounded_channel();
        let sent = send(&producer, &topic, &key_of(key), value, headers, InFlight::new(0, failures)).await;
        let failure = sent.err().or(first_of(failed).await.map(|(_, error)| error));
        self.replace_if_ended(&producer);
        failure.map_or(Ok(()), |error| Err(unavailable(error)))
    }

    async fn publish_all(&self, key: OrderingKey, events: &[Event]) -> Published {
        let (mut count, mut failure) = self.send_all(key, events).await;
        if let (Some(Failure::Permanent(_)), Some(event)) = (&failure, events.get(count).filter(|_| events.len() > 1)) {
            // The brokers also reject the events that were sent with the faulty one. Sending it alone shows whether it is at
            // fault.
            let (sent, alone) = self.send_all(key, std::slice::from_ref(event)).await;
            (count, failure) = (count + sent, alone);
        }
        let error = match (failure, events.get(count)) {
            (None, _) => return Published { count, pause: None },
            (Some(Failure::Permanent(error)), Some(event)) => match self.services.dead_letter(event, error, 1).await {
                Ok(()) => return Published { count: count + 1, pause: None },
                Err(error) => error.with_causes(),
            },
            (Some(Failure::Permanent(error) | Failure::Transient(error)), _) => error,
        };
        tracing::warn!(error, "cannot publish events to Kafka; will retry");
        Published { count, pause: Some(RETRY_DELAY) }
    }

    /// Sends events. Returns how many, counted from the first, were delivered, and why the next one failed.
    async fn send_all(&self, key: OrderingKey, events: &[Event]) -> (usize, Option<Failure>) {
        let (producer, key) = (self.producer(), key_of(key));
        let (failures, failed) = unbounded_channel();
        let mut refused = None;
        for (index, event) in events.iter().enumerate() {
            let (topic, value) = (self.settings.topic(event.kind), envelope::encode(event));
            let in_flight = InFlight::new(index, failures.clone());
            if let Err(error) = send(&producer, &topic, &key, &value, headers(event), in_flight).await {
                // No later event may overtake it.
                refused = Some((index, error));
                break;
            }
        }
        drop(failures);
        // A gap is fatal to the producer, so the events after it were not delivered either.
        let failure = [refused, first_of(failed).await].into_iter().flatten().min_by_key(|(index, _)| *index);
        self.replace_if_ended(&producer);
        failure.map_or((events.len(), None), |(index, error)| (index, Some(failure_of(&error))))
    }
}

/// Waits for the outcome of a whole batch. Returns its first failed message.
async fn first_of(mut failed: UnboundedReceiver<(usize, KafkaError)>) -> Option<(usize, KafkaError)> {
    let mut first = None;
    while let Some((index, error)) = failed.recv().await {
        if first.as_ref().is_none_or(|(before, _)| index < *before) {
            first = Some((index, error));
        }
    }
    first
}

impl ProducerContext for Logged {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, outcome: &DeliveryResult<'_>, mut message: Box<InFlight>) {
        message.failure = outcome.as_ref().err().map(|(error, _)| error.clone());
    }
}

fn create_producer(settings: &KafkaSettings) -> Result<Client> {
    let producer = settings
        .producer()
        // No event times out, since later events would overtake it. The producer waits for an unreachable broker, and a rejected
        // event is fatal to the producer.
        .set("message.timeout.ms", "0")
        .set("enable.gapless.guarantee", "true")
        .create_with_context(Logged)
        .map_err(refused)?;
    Ok(Detached::new(producer))
}

/// Enqueues a message in the library, which sends it as soon as possible.
async fn send(
    producer: &Client,
    topic: &str,
    key: &str,
    value: &[u8],
    headers: OwnedHeaders,
    in_flight: Box<InFlight>,
) -> Result<(), KafkaError> {
    let mut record = BaseRecord::with_opaque_to(topic, in_flight).key(key).payload(value).headers(headers);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
            Err((error, _)) => return Err(error),
        }
        tokio::time::sleep(QUEUE_FULL_DELAY).await;
    }
}

/// The message key, which determines the partition.
fn key_of(tenant_id: OrderingKey) -> String {
    tenant_id.map_or_else(|| PLATFORM_KEY.to_owned(), |id| id.to_string())
}

fn failure_of(error: &KafkaError) -> Failure {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord) => Failure::Permanent(error.to_string()),
        _ => Failure::Transient(error.to_string()),
    }
}

impl KafkaSettings {
    /// The configuration of all producers: each message is written once to its partition, in order, to all in-sync replicas.
    pub(super) fn producer(&self) -> rdkafka::ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", &self.compression)
            // The partitioner of the Java clients, so that they find a key in the same partition.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "2")
            .set("batch.size", "131072")
            .set("queue.buffering.max.kbytes", QUEUE_KIB);
        config
    }
}

/// An event's attributes in the binary mode of the Kafka binding of CloudEvents 1.0, with the Distributed Tracing extension.
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
        BATCH_SIZE
    }

    fn keys_at_once(&self) -> usize {
        KEY_CONCURRENCY
    }
}

impl DeadLetterTopic for KafkaBus {
    fn send<'a>(&'a self, event: &'a Event, error: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move { self.send_dead_letter(event.kind, event.tenant_id, &envelope::encode(event), error).await }.boxed()
    }
}
