//! What happens after the response: the [`Relay`] publishes events from the outboxes to the [`Bus`], and its consumers call
//! [`handle`] to process them, with one call of the services for each.
//!
//! An event is published at least once, in order within its ordering key: its tenant, or the platform for events without a
//! tenant. Consumers recognise duplicates by their ids.

mod backoff;
mod bus;
#[cfg(feature = "kafka")]
mod envelope;
mod handlers;
mod in_process;
#[cfg(feature = "kafka")]
mod kafka;
mod kafka_settings;
mod relay;

pub use bus::{Bus, Published};
pub use handlers::handle;
pub use in_process::{DeadLetterTopic, InProcess};
#[cfg(feature = "kafka")]
pub use kafka::{KafkaBus, KafkaDemo, KafkaProbe, KafkaWorker};
pub use kafka_settings::{KafkaSasl, KafkaSettings};
pub use relay::Relay;
