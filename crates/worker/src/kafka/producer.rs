//! What is published to Kafka.

use std::time::Duration;

use domain::{Error, Event, EventKind, Result};
use futures_util::{FutureExt, future::BoxFuture};
use rdkafka::{
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{DeliveryFuture, FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
};
use services::{EventKey, Services};

use super::{Logged, is_its_own, refused, unavailable};
use crate::{
    KafkaSettings,
    bus::{Bus, Published},
    envelope,
    in_process::DeadLetterTopic,
};

/// How many events of a key are on their way to the brokers at once, and of how many keys: all of them are in memory.
const BATCH: u32 = 500;
const KEYS_AT_ONCE: usize = 64;
/// How much of what is on its way the library keeps, in KiB.
const QUEUE: &str = "65536";
/// How long to wait where that is full, or after an error.
const FULL: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_secs(1);
/// The key of events that concern no tenant.
const PLATFORM: &str = "platform";

/// Publishes to Kafka: at least once, in order for each key, acknowledged by all replicas in sync.
pub struct KafkaBus {
    producer: FutureProducer<Logged>,
    settings: KafkaSettings,
    services: Services,
}

impl KafkaBus {
    /// Prepares to publish. Connects to nothing yet.
    ///
    /// # Errors
    /// When the library refuses the settings.
    pub fn new(settings: KafkaSettings, services: Services) -> Result<Self> {
        let producer = settings
            .producer()
            // Nothing is given up: an event that was, would be overtaken by those after it. A broker that is away is waited for.
            .set("message.timeout.ms", "0")
            .create_with_context(Logged)
            .map_err(refused)?;
        Ok(Self { producer, settings, services })
    }

    /// Hands a message to the library, which sends it as soon as it can.
    async fn send(&self, topic: &str, key: EventKey, value: &[u8], headers: OwnedHeaders) -> Result<DeliveryFuture, KafkaError> {
        let key = key.map_or_else(|| PLATFORM.to_owned(), |id| id.to_string());
        let mut record = FutureRecord::to(topic).key(&key).payload(value).headers(headers);
        loop {
            match self.producer.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
                Err((error, _)) => return Err(error),
            }
            tokio::time::sleep(FULL).await;
        }
    }

    async fn send_event(&self, event: &Event) -> Result<DeliveryFuture, KafkaError> {
        self.send(&self.settings.topic(event.kind), event.tenant_id, &envelope::encode(event), headers(event)).await
    }

    /// Publishes what could not be handled, with why.
    ///
    /// # Errors
    /// When the library refuses it.
    pub(super) async fn send_dead_letter(&self, kind: EventKind, key: EventKey, value: &[u8], error: &str) -> Result<()> {
        let headers = OwnedHeaders::new().insert(Header { key: "error", value: Some(error) });
        let sent = async { delivered(self.send(&self.settings.dead_letter_topic(kind), key, value, headers).await?).await };
        sent.await.map_err(unavailable)
    }

    async fn publish_all(&self, events: &[Event]) -> Published {
        let mut deliveries = Vec::with_capacity(events.len());
        for event in events {
            deliveries.push(self.send_event(event).await);
        }
        let (mut count, mut failure) = (0, None);
        for (event, sent) in events.iter().zip(deliveries) {
            let outcome = match sent {
                Ok(delivery) => delivered(delivery).await,
                Err(error) => Err(error),
            };
            // Those after the first that failed are waited for, too, and published again.
            let Some(error) = outcome.err().map(|error| (is_its_own(&error), error.to_string())) else {
                count += usize::from(failure.is_none());
                continue;
            };
            if failure.is_some() {
                continue;
            }
            failure = match error {
                (true, error) => self.services.park(event, error, 1).await.err().map(|error| error.with_causes()),
                (false, error) => Some(error),
            };
            count += usize::from(failure.is_none());
        }
        if let Some(error) = &failure {
            tracing::warn!(error, "Kafka does not take events; they are sent again");
        }
        Published { count, pause: failure.map(|_| PAUSE) }
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
            .set("queue.buffering.max.kbytes", QUEUE);
        config
    }
}

pub(super) async fn delivered(delivery: DeliveryFuture) -> Result<(), KafkaError> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(error),
        Err(_) => Err(KafkaError::Canceled),
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
    fn publish<'a>(&'a self, _: EventKey, events: &'a [Event]) -> BoxFuture<'a, Published> {
        self.publish_all(events).boxed()
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
