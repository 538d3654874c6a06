//! `tenantry worker`

use std::process::ExitCode;

use anyhow::{Context, Result};
use api::metrics;
use services::Services;
use tokio_util::sync::CancellationToken;

use crate::{
    assembly::assemble,
    commands::{
        eprint,
        serve::{release_leases, serve_metrics, stop_on_signals},
    },
    config::Config,
    events,
};

/// Handles events from Kafka until SIGTERM or SIGINT.
///
/// # Errors
/// When the main database cannot be migrated, or Kafka's settings are invalid.
pub async fn run(config: &Config) -> Result<ExitCode> {
    let Some(kafka) = &config.kafka else {
        eprint("tenantry: KAFKA_BOOTSTRAP_SERVERS is not set: `tenantry serve` handles events itself, and a worker has nothing to do");
        return Ok(ExitCode::from(2));
    };
    let (Services { users, operator, events: event_services }, main) = assemble(config)?;
    main.migrate().await.context("migrate the main database")?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop, "finishing events in flight")?;
    serve_metrics(config, metrics::worker_router(users, events::probe(config)?), &stop)?;
    let following = tokio::spawn({
        let operator = operator.clone();
        async move { operator.follow_access_changes().await }
    });
    tracing::info!("handling events from Kafka at {} in consumer group {}", kafka.bootstrap_servers, kafka.group_id);
    events::work(kafka, &event_services, stop).await?;
    following.abort();
    release_leases(&operator).await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
