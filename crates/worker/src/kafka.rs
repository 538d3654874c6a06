//! Apache Kafka as the bus: a topic for each type of event, in whose partitions a tenant's events follow each other.

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

/// How long the brokers have to make topics.
const SOON: Duration = Duration::from_secs(10);
/// How long they have to say that they are there.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer counts.
const FRESH: Duration = Duration::from_secs(1);
/// More than the library has to say at once.
const EVENTS_SAID: usize = 100;
/// How long it is waited before topics are asked for again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a dead letter is kept, in milliseconds: a month.
const DEAD_LETTER_RETENTION: &str = "2592000000";

impl KafkaSettings {
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", &self.client_id)
            .set("security.protocol", &self.security_protocol)
            // They are made with what they need, or not at all.
            .set("allow.auto.create.topics", "false")
            // Of a broker that is back, it is learned soon.
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

    /// The topic of a type of event.
    fn topic(&self, kind: EventKind) -> String {
        format!("{}{}", self.topic_prefix, kind.as_str())
    }

    /// The topic of what could not be handled.
    fn dead_letter_topic(&self, kind: EventKind) -> String {
        format!("{}.dlq", self.topic(kind))
    }

    /// Makes the topics that are missing, as soon as the brokers are there. Where they don't let us, whoever runs them has to make
    /// them.
    pub async fn make_topics(&self) {
        while let Err(error) = self.try_make_topics().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "topics can't be made; it is tried again");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn try_make_topics(&self) -> Result<()> {
        let admin = self.admin()?;
        let dead_letters = [("retention.ms", DEAD_LETTER_RETENTION)];
        let mut outcome = Ok(());
        for kind in EventKind::ALL {
            // Those that can be made are needed, whatever is wrong with others.
            let made = self.make_topic(&admin, &self.topic(kind), self.partitions, &[]).await;
            let letters = self.make_topic(&admin, &self.dead_letter_topic(kind), self.partitions, &dead_letters).await;
            outcome = outcome.and(made).and(letters);
        }
        outcome
    }

    fn admin(&self) -> Result<Detached<AdminClient<Logged>>> {
        Ok(Detached::new(self.client().create_with_context(Logged).map_err(refused)?))
    }

    async fn make_topic(&self, admin: &AdminClient<Logged>, name: &str, partitions: u16, options: &[(&str, &str)]) -> Result<()> {
        let replication = TopicReplication::Fixed(self.replication_factor.map_or(-1, i32::from));
        let mut topic = NewTopic::new(name, partitions.into(), replication);
        // A broker of three may be away, and what is published is still on two.
        let in_sync = self.replication_factor.filter(|factor| *factor > 2).map(|factor| (factor - 1).to_string());
        if let Some(in_sync) = &in_sync {
            topic = topic.set("min.insync.replicas", in_sync);
        }
        for (name, value) in options {
            topic = topic.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(SOON));
        for made in admin.create_topics(&[topic], &options).await.map_err(unavailable)? {
            match made {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed)) => {
                    tracing::warn!(topic, "the brokers don't let us make topics: it has to be there already");
                }
                Err((topic, code)) => return Err(unavailable(format!("topic {topic} can't be made: {code}"))),
            }
        }
        Ok(())
    }
}

/// Asks the brokers, again and again, whether they are there.
pub struct KafkaProbe {
    client: Arc<Detached<BaseProducer<Heard>>>,
    /// When it was asked last, and what was wrong then. One asks at a time.
    last: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

impl KafkaProbe {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the library refuses the settings.
    pub fn new(settings: &KafkaSettings) -> Result<Self> {
        let client = settings.client().create_with_context(Heard::default()).map_err(refused)?;
        Ok(Self { client: Arc::new(Detached::new(client)), last: tokio::sync::Mutex::default() })
    }

    /// Whether they are there, or were a moment ago.
    ///
    /// # Errors
    /// When none answers within two seconds.
    pub async fn check(&self) -> Result<()> {
        let mut last = self.last.lock().await;
        let problem = match &*last {
            Some((asked_at, problem)) if asked_at.elapsed() < FRESH => problem.clone(),
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
            let found = client.client().fetch_metadata(None, PATIENCE);
            // Has the library say what it has to say.
            (0..EVENTS_SAID).for_each(|_| client.poll(Duration::ZERO));
            let heard = client.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
            let found = found.map_err(|error| heard.unwrap_or_else(|| error.to_string()))?;
            Ok(found.topics().iter().map(|topic| topic.name().to_owned()).collect())
        });
        asked.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// A client whose end nobody waits for: the library may take its time with that, and would keep a thread of the runtime.
struct Detached<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Detached<T> {
    const fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for Detached<T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "it is taken out at the end")]
    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        // Without another thread, it is dropped here.
        drop(std::thread::Builder::new().name("kafka-end".to_owned()).spawn(move || drop(client)));
    }
}

/// What the library says of its connections goes to the log: it mends them by itself.
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

/// Keeps the first thing that the library says is wrong, for the answer.
#[derive(Default)]
struct Heard(Mutex<Option<String>>);

impl ClientContext for Heard {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // That all are down follows of what was said before.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        }
    }
}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// What is wrong is told as an error, too.
fn log(facility: &str, message: &str) {
    tracing::debug!(facility, message, "of Kafka");
}

fn log_error(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        // Topics are made, or will be.
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => tracing::debug!(reason, "a topic of Kafka is not there"),
        // Said again and again; it follows of what was said of each.
        Some(RDKafkaErrorCode::AllBrokersDown) => tracing::debug!(reason, "no broker of Kafka is there"),
        _ => tracing::warn!(reason, "Kafka can't be spoken to"),
    }
}

/// The library does not take the settings.
fn refused(error: KafkaError) -> Error {
    Error::internal(error)
}

fn unavailable(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { dependency: Dependency::EventBus, source: reason.into() }
}
