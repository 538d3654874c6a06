//! Apache Kafka as the bus: one topic per event type. A tenant's events share a partition, which keeps their order.

mod consumer;
mod demo;
mod producer;

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::{Dependency, Error, EventKind, Result};
use rdkafka::{
    ClientConfig, ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::KafkaError,
    producer::{BaseProducer, DeliveryResult, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use secrecy::ExposeSecret;

pub use consumer::KafkaWorker;
pub use demo::KafkaDemo;
pub use producer::KafkaBus;

use crate::KafkaSettings;

/// The timeout for the creation of topics.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a probe of the brokers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a probe's result stays valid.
const PROBE_TTL: Duration = Duration::from_secs(1);
/// More events than the library queues at once.
const MAX_QUEUED_EVENTS: usize = 100;
/// The delay before topic creation is retried.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// The retention of dead letters in milliseconds: 30 days.
const DEAD_LETTER_RETENTION: &str = "2592000000";

impl KafkaSettings {
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", &self.client_id)
            .set("security.protocol", &self.security_protocol)
            // Topics are created explicitly, with the settings that they need.
            .set("allow.auto.create.topics", "false")
            // Reconnect soon after a broker has recovered.
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "30000");
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", &sasl.mechanism)
                .set("sasl.username", &sasl.username)
                .set("sasl.password", sasl.password.expose_secret());
        }
        if let Some(location) = &self.ca_location {
            config.set("ssl.ca.location", location.to_string_lossy());
        }
        config
    }

    /// The topic of an event type.
    fn topic(&self, kind: EventKind) -> String {
        format!("{}{}", self.topic_prefix, kind.as_str())
    }

    /// The dead-letter topic of an event type.
    fn dead_letter_topic(&self, kind: EventKind) -> String {
        format!("{}.dlq", self.topic(kind))
    }

    /// Creates the missing topics as soon as the brokers are reachable. Where the brokers don't permit that, their operator must
    /// create the topics.
    pub async fn make_topics(&self) {
        while let Err(error) = self.try_create_topics().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot create topics; will retry");
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn try_create_topics(&self) -> Result<()> {
        let admin = self.admin()?;
        let dead_letters = [("retention.ms", DEAD_LETTER_RETENTION)];
        let mut outcome = Ok(());
        for kind in EventKind::ALL {
            // Create as many topics as possible, even if some fail.
            let created = self.make_topic(&admin, &self.topic(kind), self.partitions, &[]).await;
            let letters = self.make_topic(&admin, &self.dead_letter_topic(kind), self.partitions, &dead_letters).await;
            outcome = outcome.and(created).and(letters);
        }
        outcome
    }

    fn admin(&self) -> Result<Detached<AdminClient<Logged>>> {
        Ok(Detached::new(self.client().create_with_context(Logged).map_err(refused)?))
    }

    async fn make_topic(&self, admin: &AdminClient<Logged>, name: &str, partitions: u16, options: &[(&str, &str)]) -> Result<()> {
        let replication = TopicReplication::Fixed(self.replication_factor.map_or(-1, i32::from));
        let mut topic = NewTopic::new(name, partitions.into(), replication);
        // With three replicas one broker may be down, and published events are still on two.
        let in_sync = self.replication_factor.filter(|factor| *factor > 2).map(|factor| (factor - 1).to_string());
        if let Some(in_sync) = &in_sync {
            topic = topic.set("min.insync.replicas", in_sync);
        }
        for (name, value) in options {
            topic = topic.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        for created in admin.create_topics(&[topic], &options).await.map_err(unavailable)? {
            match created {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed)) => {
                    tracing::warn!(topic, "not authorized to create the topic; it must already exist");
                }
                Err((topic, code)) => return Err(unavailable(format!("cannot create topic {topic}: {code}"))),
            }
        }
        Ok(())
    }
}

/// Probes whether the brokers are reachable.
pub struct KafkaProbe {
    client: Arc<Detached<BaseProducer<FirstError>>>,
    /// The time and the error, if any, of the last probe. The lock allows one probe at a time.
    last: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

impl KafkaProbe {
    /// Creates a probe, without connecting yet.
    ///
    /// # Errors
    /// When librdkafka rejects the settings.
    pub fn new(settings: &KafkaSettings) -> Result<Self> {
        let client = settings.client().create_with_context(FirstError::default()).map_err(refused)?;
        Ok(Self { client: Arc::new(Detached::new(client)), last: tokio::sync::Mutex::default() })
    }

    /// Checks that the brokers are reachable, or were within the last second.
    ///
    /// # Errors
    /// When no broker answers within two seconds.
    pub async fn check(&self) -> Result<()> {
        let mut last = self.last.lock().await;
        let problem = match &*last {
            Some((asked_at, problem)) if asked_at.elapsed() < PROBE_TTL => problem.clone(),
            _ => {
                let problem = self.topics().await.err();
                *last = Some((Instant::now(), problem.clone()));
                problem
            }
        };
        problem.map_or(Ok(()), |problem| Err(unavailable(problem)))
    }

    /// The names of all topics.
    async fn topics(&self) -> Result<Vec<String>, String> {
        let client = Arc::clone(&self.client);
        let asked = tokio::task::spawn_blocking(move || {
            let found = client.client().fetch_metadata(None, PROBE_TIMEOUT);
            // Let the library deliver its queued errors.
            (0..MAX_QUEUED_EVENTS).for_each(|_| client.poll(Duration::ZERO));
            let first_error = client.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
            let found = found.map_err(|error| first_error.unwrap_or_else(|| error.to_string()))?;
            Ok(found.topics().iter().map(|topic| topic.name().to_owned()).collect())
        });
        asked.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// A client that is dropped on a thread of its own, since the library may take long and would block a thread of the runtime.
struct Detached<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Detached<T> {
    const fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for Detached<T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "only drop takes it out")]
    fn deref(&self) -> &T {
        self.0.as_ref().expect("the client exists until drop")
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        // If no thread can be spawned, the closure and with it the client are dropped here.
        drop(std::thread::Builder::new().name("kafka-drop".to_owned()).spawn(move || drop(client)));
    }
}

/// Logs the library's connection errors: the library reconnects by itself.
#[derive(Clone, Copy, Default)]
struct Logged;

impl ClientContext for Logged {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        log(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Logged {}

/// Keeps the first error that the library reports, for the result of the probe.
#[derive(Default)]
struct FirstError(Mutex<Option<String>>);

impl ClientContext for FirstError {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down follows from the errors before it.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        }
    }
}

impl ProducerContext for FirstError {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Logs a message of the library. Its errors come through [`log_error`], too.
fn log(facility: &str, message: &str) {
    tracing::debug!(facility, message, "librdkafka");
}

fn log_error(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        // `make_topics` creates the topics.
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => tracing::debug!(reason, "Kafka topic does not exist"),
        // Repeats often, and follows from the errors of the single brokers.
        Some(RDKafkaErrorCode::AllBrokersDown) => tracing::debug!(reason, "no Kafka broker is reachable"),
        _ => tracing::warn!(reason, "cannot reach Kafka"),
    }
}

/// The error when the library rejects the settings.
fn refused(error: KafkaError) -> Error {
    Error::internal(error)
}

fn unavailable(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { dependency: Dependency::EventBus, source: reason.into() }
}
