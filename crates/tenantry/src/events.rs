//! Which bus events are published on, and what hangs on it.

use std::sync::Arc;

use anyhow::Result;
use services::{DemoBus, DemoInProcess, Dependency, Services};
use tokio_util::sync::CancellationToken;
use worker::{Bus, InProcess, KafkaSettings};

use crate::config::Config;

/// The bus that events are published on.
///
/// # Errors
/// When the configuration asks for what this program can't do.
pub fn bus(config: &Config, services: &Services) -> Result<Arc<dyn Bus>> {
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

/// Asks the broker whether it is there.
pub async fn check(settings: &KafkaSettings) -> Dependency {
    Dependency { name: "Kafka".to_owned(), problem: kafka::check(settings).await.err() }
}

/// Handles events until it is to stop.
///
/// # Errors
/// When the configuration asks for what this program can't do, or the topics can't be subscribed to.
pub async fn work(settings: &KafkaSettings, services: &Services, stop: CancellationToken) -> Result<()> {
    kafka::work(settings, services, stop).await
}

#[cfg(feature = "kafka")]
mod kafka {
    use anyhow::Context;
    use worker::{DeadLetterTopic, KafkaBus, KafkaDemo, KafkaWorker, Relay};

    use super::{Arc, Bus, CancellationToken, DemoBus, InProcess, KafkaSettings, Result, Services};

    /// What to look at when the library does not take the settings.
    const SETTINGS: &str = "prepare Kafka (see the settings KAFKA_*)";

    pub(super) fn bus(settings: &KafkaSettings, services: &Services) -> Result<Arc<dyn Bus>> {
        let bus = KafkaBus::new(settings.clone(), services.clone()).context(SETTINGS)?;
        let settings = settings.clone();
        tokio::spawn(async move { settings.make_topics().await });
        Ok(Arc::new(bus))
    }

    pub(super) fn demo(settings: &KafkaSettings) -> Result<Arc<dyn DemoBus>> {
        Ok(Arc::new(KafkaDemo::start(settings.clone()).context(SETTINGS)?))
    }

    pub(super) async fn check(settings: &KafkaSettings) -> domain::Result<()> {
        settings.check().await
    }

    pub(super) async fn work(settings: &KafkaSettings, services: &Services, stop: CancellationToken) -> Result<()> {
        let bus = Arc::new(KafkaBus::new(settings.clone(), services.clone()).context(SETTINGS)?);
        let dead_letters = Arc::clone(&bus) as Arc<dyn DeadLetterTopic>;
        let handler = Arc::new(InProcess::with_dead_letter_topic(services.clone(), dead_letters));
        let worker = KafkaWorker::new(settings.clone(), Arc::clone(&bus), handler).context(SETTINGS)?;
        let relay_stop = CancellationToken::new();
        // What is handled tells of more.
        let relay = tokio::spawn(Relay::new(services.clone(), bus).run(relay_stop.clone()));
        if stop.run_until_cancelled(settings.make_topics()).await.is_some() {
            worker.run(stop).await?;
        }
        relay_stop.cancel();
        relay.await?;
        Ok(())
    }
}

/// A program that was built without Kafka says so.
#[cfg(not(feature = "kafka"))]
mod kafka {
    use super::{Arc, Bus, CancellationToken, DemoBus, KafkaSettings, Result, Services};

    const MISSING: &str = "this program was built without Kafka (the cargo feature `kafka`), but KAFKA_BOOTSTRAP_SERVERS is set";

    pub(super) fn bus(_: &KafkaSettings, _: &Services) -> Result<Arc<dyn Bus>> {
        anyhow::bail!(MISSING)
    }

    pub(super) fn demo(_: &KafkaSettings) -> Result<Arc<dyn DemoBus>> {
        anyhow::bail!(MISSING)
    }

    pub(super) async fn check(_: &KafkaSettings) -> domain::Result<()> {
        Err(domain::Error::internal(MISSING))
    }

    pub(super) async fn work(_: &KafkaSettings, _: &Services, _: CancellationToken) -> Result<()> {
        anyhow::bail!(MISSING)
    }
}
