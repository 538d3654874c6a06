//! The event bus: Kafka or this process, with the demonstration, the probe and the relay that use it.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use api::Probe;
use services::{DemoBus, DemoInProcess, EventServices};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use worker::{Bus, InProcess, KafkaSettings, Relay};

use crate::config::Config;

/// How long publishing the last events may take at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// The bus that events are published on.
///
/// # Errors
/// When the configuration names Kafka and this program was built without it, or Kafka's settings are invalid.
pub fn bus(config: &Config, services: &EventServices) -> Result<Arc<dyn Bus>> {
    match &config.kafka {
        None => Ok(Arc::new(InProcess::new(services.clone()))),
        Some(settings) => kafka::bus(settings, services),
    }
}

/// The bus of the demonstration, if it is enabled.
///
/// # Errors
/// As [`bus`].
pub fn demo(config: &Config) -> Result<Option<Arc<dyn DemoBus>>> {
    Ok(match &config.kafka {
        _ if !config.server.demo_routes => None,
        None => Some(Arc::new(DemoInProcess::default())),
        Some(settings) => Some(kafka::demo(settings)?),
    })
}

/// A probe of the brokers, if Kafka is used.
///
/// # Errors
/// As [`bus`].
pub fn probe(config: &Config) -> Result<Option<Arc<Probe>>> {
    config.kafka.as_ref().map(kafka::probe).transpose()
}

/// A running relay.
pub struct Publishing {
    stop: CancellationToken,
    relay: JoinHandle<()>,
}

impl Publishing {
    /// Starts publishing on a bus.
    pub fn start(services: &EventServices, bus: Arc<dyn Bus>) -> Self {
        let stop = CancellationToken::new();
        Self { relay: tokio::spawn(Relay::new(services.clone(), bus).run(stop.clone())), stop }
    }

    /// Publishes the events recorded so far, for some seconds at most, and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        if timeout(FLUSH_TIMEOUT, self.relay).await.is_err() {
            tracing::warn!("some events were not published before shutdown; they stay in the outbox");
        }
    }
}

/// Handles events from Kafka until `stop` is cancelled.
///
/// # Errors
/// As [`bus`], or when subscribing to the topics fails.
pub async fn work(settings: &KafkaSettings, services: &EventServices, stop: CancellationToken) -> Result<()> {
    kafka::work(settings, services, stop).await
}

#[cfg(feature = "kafka")]
mod kafka {
    use anyhow::Context;
    use futures_util::FutureExt;
    use services::DependencyStatus;
    use tokio_util::task::AbortOnDropHandle;
    use worker::{DeadLetterTopic, KafkaBus, KafkaDemo, KafkaProbe, KafkaWorker};

    use super::{Arc, Bus, CancellationToken, DemoBus, EventServices, InProcess, KafkaSettings, Probe, Publishing, Result};

    /// The context of errors of the client library.
    const SETTINGS: &str = "set up Kafka (check the settings KAFKA_*)";

    pub(super) fn bus(settings: &KafkaSettings, services: &EventServices) -> Result<Arc<dyn Bus>> {
        let bus = KafkaBus::new(settings.clone(), services.clone()).context(SETTINGS)?;
        let settings = settings.clone();
        tokio::spawn(async move { settings.make_topics().await });
        Ok(Arc::new(bus))
    }

    pub(super) fn demo(settings: &KafkaSettings) -> Result<Arc<dyn DemoBus>> {
        Ok(Arc::new(KafkaDemo::start(settings.clone()).context(SETTINGS)?))
    }

    pub(super) fn probe(settings: &KafkaSettings) -> Result<Arc<Probe>> {
        let probe = Arc::new(KafkaProbe::new(settings).context(SETTINGS)?);
        Ok(Arc::new(move || {
            let probe = Arc::clone(&probe);
            async move { DependencyStatus { name: "Kafka".to_owned(), problem: probe.check().await.err() } }.boxed()
        }))
    }

    pub(super) async fn work(settings: &KafkaSettings, services: &EventServices, stop: CancellationToken) -> Result<()> {
        let bus = Arc::new(KafkaBus::new(settings.clone(), services.clone()).context(SETTINGS)?);
        let dead_letters = Arc::clone(&bus) as Arc<dyn DeadLetterTopic>;
        let handler = Arc::new(InProcess::with_dead_letter_topic(services.clone(), dead_letters));
        let worker = KafkaWorker::new(settings.clone(), Arc::clone(&bus), handler).context(SETTINGS)?;
        // Handling an event may record further events.
        let relay = Publishing::start(services, bus);
        // The worker finds topics that do not exist yet once they are created.
        let creating = AbortOnDropHandle::new(tokio::spawn({
            let settings = settings.clone();
            async move { settings.make_topics().await }
        }));
        let worked = worker.run(stop).await;
        drop(creating);
        relay.stop().await;
        Ok(worked?)
    }
}

/// Fails in a program that was built without Kafka.
#[cfg(not(feature = "kafka"))]
mod kafka {
    use super::{Arc, Bus, CancellationToken, DemoBus, EventServices, KafkaSettings, Probe, Result};

    const MISSING: &str = "this program was built without Kafka (the cargo feature `kafka`), but KAFKA_BOOTSTRAP_SERVERS is set";

    pub(super) fn bus(_: &KafkaSettings, _: &EventServices) -> Result<Arc<dyn Bus>> {
        anyhow::bail!(MISSING)
    }

    pub(super) fn demo(_: &KafkaSettings) -> Result<Arc<dyn DemoBus>> {
        anyhow::bail!(MISSING)
    }

    pub(super) fn probe(_: &KafkaSettings) -> Result<Arc<Probe>> {
        anyhow::bail!(MISSING)
    }

    pub(super) async fn work(_: &KafkaSettings, _: &EventServices, _: CancellationToken) -> Result<()> {
        anyhow::bail!(MISSING)
    }
}
