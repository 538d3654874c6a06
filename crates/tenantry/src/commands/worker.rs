//! `tenantry worker`

use std::process::ExitCode;

use anyhow::{Context, Result};
use api::metrics;
use services::Services;
use tokio_util::sync::CancellationToken;

use crate::{
    assembly::assemble,
    commands::{
        complain,
        serve::{give_up_leases, serve_metrics, stop_on_signals},
    },
    config::Config,
    events,
};

/// Handles events from Kafka until SIGTERM or SIGINT.
///
/// # Errors
/// When the main database can't be brought up to date, or Kafka's settings are not taken.
pub async fn run(config: &Config) -> Result<ExitCode> {
    let Some(kafka) = &config.kafka else {
        complain(
            "tenantry: without KAFKA_BOOTSTRAP_SERVERS, `tenantry serve` handles events itself, and there is nothing for a worker to do",
        );
        return Ok(ExitCode::from(2));
    };
    let (Services { users, operator, events: event_services }, main) = assemble(config)?;
    main.migrate().await.context("bring the main database up to date")?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop, "what was begun is finished")?;
    serve_metrics(config, metrics::worker_router(users, events::probe(config)?), &stop)?;
    let following = tokio::spawn({
        let operator = operator.clone();
        async move { operator.follow_access_changes().await }
    });
    tracing::info!("handling events of Kafka at {} as one of {}", kafka.bootstrap_servers, kafka.group_id);
    events::work(kafka, &event_services, stop).await?;
    following.abort();
    give_up_leases(&operator).await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
