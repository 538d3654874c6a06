//! Apache Kafka as the bus: a topic for each type of event, in whose partitions a tenant's events follow each other.

mod consumer;
mod demo;
mod producer;

use std::time::Duration;

use domain::{Error, EventKind, Result};
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
        for kind in EventKind::ALL {
            self.make_topic(&admin, &self.topic(kind), &[]).await?;
            self.make_topic(&admin, &self.dead_letter_topic(kind), &dead_letters).await?;
        }
        Ok(())
    }

    fn admin(&self) -> Result<AdminClient<Logged>> {
        self.client().create_with_context(Logged).map_err(refused)
    }

    async fn make_topic(&self, admin: &AdminClient<Logged>, name: &str, options: &[(&str, &str)]) -> Result<()> {
        let replication = TopicReplication::Fixed(self.replication_factor.map_or(-1, i32::from));
        let mut topic = NewTopic::new(name, self.partitions.into(), replication);
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

    /// Asks the brokers whether they are there.
    ///
    /// # Errors
    /// When none answers within two seconds.
    pub async fn check(&self) -> Result<()> {
        let config = self.client();
        let asked = tokio::task::spawn_blocking(move || {
            let producer: BaseProducer<_> = config.create_with_context(Quiet).map_err(refused)?;
            producer.client().fetch_metadata(None, PATIENCE).map(drop).map_err(unavailable)
        });
        asked.await.map_err(Error::internal)?
    }
}

/// What the library says of its connections goes to the log: it mends them by itself.
#[derive(Clone, Copy, Default)]
struct Logged;

impl ClientContext for Logged {
    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Logged {}

/// Says what is wrong by its answer.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

fn log_error(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        // Topics are made, or will be.
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => tracing::debug!(reason, "a topic of Kafka is not there"),
        _ => tracing::warn!(reason, "Kafka can't be spoken to"),
    }
}

/// The library does not take the settings.
fn refused(error: KafkaError) -> Error {
    Error::internal(error)
}

fn unavailable(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { dependency: "event bus", source: reason.into() }
}

/// Whether this is the message's own fault: it would fail again.
fn is_its_own(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord))
}
