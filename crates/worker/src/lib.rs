//! What happens after the answer: events go from the outboxes to the [`Bus`] by the [`Relay`], and whoever takes them from there
//! has [`handle`] do what follows of them: one call of the services for each.
//!
//! An event is published at least once, in the order of its key: a tenant's events, or those that concern none. A duplicate is
//! recognised by its id.

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
