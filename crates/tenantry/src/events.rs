//! Which bus events are published on, and what hangs on it.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use api::Probe;
use services::{DemoBus, DemoInProcess, EventServices};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use worker::{Bus, InProcess, KafkaSettings, Relay};

use crate::config::Config;

/// How long publishing what was told until the end may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// The bus that events are published on.
///
/// # Errors
/// When the configuration asks for what this program can't do.
pub fn bus(config: &Config, services: &EventServices) -> Result<Arc<dyn Bus>> {
    match &config.kafka {
        None => Ok(Arc::new(InProcess::new(services.clone()))),
        Some(settings) => kafka::bus(settings, services),
    }
}

/// The same bus for the demonstration, where there is one.
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

/// Asks the broker whether it is there, where there is one.
///
/// # Errors
/// As [`bus`].
pub fn probe(config: &Config) -> Result<Option<Arc<Probe>>> {
    config.kafka.as_ref().map(kafka::probe).transpose()
}

/// A relay at work.
pub struct Publishing {
    stop: CancellationToken,
    relay: JoinHandle<()>,
}

impl Publishing {
    /// Begins to publish on a bus.
    pub fn begin(services: &EventServices, bus: Arc<dyn Bus>) -> Self {
        let stop = CancellationToken::new();
        Self { relay: tokio::spawn(Relay::new(services.clone(), bus).run(stop.clone())), stop }
    }

    /// Publishes what was told until now, unless that takes longer than some seconds.
    pub async fn end(self) {
        self.stop.cancel();
        if timeout(FLUSH_PATIENCE, self.relay).await.is_err() {
            tracing::warn!("events could not be published in time; whoever starts next does it");
        }
    }
}

/// Handles events until it is to stop.
///
/// # Errors
/// When the configuration asks for what this program can't do, or the topics can't be subscribed to.
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

    /// What to look at when the library does not take the settings.
    const SETTINGS: &str = "prepare Kafka (see the settings KAFKA_*)";

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
        // What is handled tells of more.
        let relay = Publishing::begin(services, bus);
        // Topics that are not there yet are found when they are.
        let making = AbortOnDropHandle::new(tokio::spawn({
            let settings = settings.clone();
            async move { settings.make_topics().await }
        }));
        let worked = worker.run(stop).await;
        drop(making);
        relay.end().await;
        Ok(worked?)
    }
}

/// A program that was built without Kafka says so.
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
