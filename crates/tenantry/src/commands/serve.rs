//! `tenantry serve`

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use api::{Router, metrics};
use domain::SystemClock;
use http_server::Limits;
use services::{Collected, DependencyStatus, OperatorServices, Services};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    assembly::assemble,
    commands::problem::describe,
    config::Config,
    events::{self, Publishing},
};

/// The interval of resuming provisioning, deletions and moves that a crash interrupted.
const RESUME_INTERVAL: Duration = Duration::from_secs(15);
/// The interval of refilling the warm pool, and the delay of a refill after a warm database was taken.
const REFILL_INTERVAL: Duration = Duration::from_secs(30);
const REFILL_DELAY: Duration = Duration::from_secs(1);
/// The connections of the metrics endpoint, and their grace period at shutdown.
const MAX_METRICS_CONNECTIONS: usize = 16;
const METRICS_GRACE: Duration = Duration::from_secs(1);
/// How long releasing the leases may take at shutdown.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval of purging expired sessions and events.
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);

/// Serves the API until SIGTERM or SIGINT.
///
/// # Errors
/// When the address is in use or the main database cannot be migrated.
pub async fn run(config: &Config) -> Result<ExitCode> {
    raise_descriptor_limit();
    let (Services { users, operator, events: event_services }, main) = assemble(config)?;
    let listener = listen(SocketAddr::new(config.server.host, config.server.port), "HOST, PORT")?;
    let address = listener.local_addr()?;
    main.migrate().await.context("migrate the main database")?;
    for DependencyStatus { name, problem } in operator.find_unknown_servers().await? {
        tracing::warn!("{name}: {}", problem.as_ref().map_or_else(String::new, describe));
    }
    let app = api::app(users.clone(), Arc::new(SystemClock), api_settings(config)?);
    let limits = Limits {
        max_connections: config.server.max_connections,
        max_connections_per_client: config.server.max_connections_per_address,
        shutdown_grace: config.server.shutdown_grace,
        ..Limits::default()
    };
    let stop = CancellationToken::new();
    stop_on_signals(&stop, "finishing requests in flight")?;
    serve_metrics(config, metrics::router(users), &stop)?;
    let publishing = Publishing::start(&event_services, events::bus(config, &event_services)?);
    let maintenance = tokio::spawn(run_maintenance(operator.clone(), config.documents.garbage_interval));
    let docs = if config.server.docs { "documentation at /docs, " } else { "" };
    tracing::info!("listening on http://{address}: {docs}data in {}", config.data_dir.display());
    let report = http_server::serve(listener, app, limits, stop).await;
    // After the last request, to publish the events of all requests.
    publishing.stop().await;
    maintenance.abort();
    // Waits for the end of the task, so that other instances can resume its work at once.
    let _was_aborted = maintenance.await;
    release_leases(&operator).await;
    tracing::info!(connections_cut = report.connections_cut, "stopped");
    Ok(ExitCode::SUCCESS)
}

fn api_settings(config: &Config) -> Result<api::Settings> {
    Ok(api::Settings {
        public_url: config.server.public_url.clone(),
        hide_docs: !config.server.docs,
        cors: config.cors.clone(),
        rate_limits: config.limits.rates,
        trusted_proxies: config.limits.trusted_proxies.clone(),
        demo: events::demo(config)?,
        bus: events::probe(config)?,
    })
}

/// Releases this instance's leases, so that other instances can take them at once.
pub(super) async fn release_leases(services: &OperatorServices) {
    if !matches!(timeout(RELEASE_TIMEOUT, services.release_leases()).await, Ok(Ok(()))) {
        tracing::warn!("could not release this instance's leases; they will expire");
    }
}

/// Serves the metrics endpoint, if it is configured.
pub(super) fn serve_metrics(config: &Config, page: Router, stop: &CancellationToken) -> Result<()> {
    if let Some(address) = config.server.metrics_address {
        let listener = listen(address, "METRICS_ADDRESS")?;
        tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
        let limits = Limits { max_connections: MAX_METRICS_CONNECTIONS, shutdown_grace: METRICS_GRACE, ..Limits::default() };
        tokio::spawn(http_server::serve(listener, page, limits, stop.clone()));
    }
    Ok(())
}

/// Listens on an address, even while connections of a previous process are in TIME_WAIT.
fn listen(address: SocketAddr, variables: &str) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("listen on {address} ({variables})"))?;
    Ok(socket.listen(1024)?)
}

/// Cancels `stop` at SIGTERM or SIGINT; logs a message.
pub(super) fn stop_on_signals(stop: &CancellationToken, message: &'static str) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: {message}");
        stop.cancel();
    });
    Ok(())
}

/// Runs the maintenance tasks, each at its own interval.
async fn run_maintenance(services: OperatorServices, garbage_interval: Duration) {
    tokio::join!(
        collect_garbage(&services, garbage_interval),
        services.follow_access_changes(),
        every(RESUME_INTERVAL, || resume_provisioning(services.clone())),
        // A task of its own, since a tenant may have many objects.
        every(RESUME_INTERVAL, || resume_deletions(services.clone())),
        every(RESUME_INTERVAL, || resume_moves(services.clone())),
        every(PURGE_INTERVAL, || purge_expired(services.clone())),
        every(REFILL_INTERVAL, || refill_warm_pool(services.clone())),
    );
}

/// Collects garbage at an interval; not at the start, when the server has other work.
async fn collect_garbage(services: &OperatorServices, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    sleep(interval).await;
    every(interval, || async {
        let collected = services.collect_in_background().await?;
        if collected != Collected::default() {
            tracing::info!(?collected, "garbage collected");
        }
        Ok(())
    })
    .await;
}

async fn resume_provisioning(services: OperatorServices) -> domain::Result<()> {
    services.resume_provisioning().await.map(drop)
}

async fn resume_deletions(services: OperatorServices) -> domain::Result<()> {
    services.resume_deletions().await.map(drop)
}

async fn resume_moves(services: OperatorServices) -> domain::Result<()> {
    services.resume_moves().await.map(drop)
}

async fn purge_expired(services: OperatorServices) -> domain::Result<()> {
    services.purge_expired_sessions().await?;
    services.purge_platform_events().await
}

async fn refill_warm_pool(services: OperatorServices) -> domain::Result<()> {
    services.refill_warm_pool().await?;
    while timeout(REFILL_INTERVAL, services.warm_database_taken()).await.is_ok() {
        // Tenants are often created several at a time, and a refill would slow down their creation.
        sleep(REFILL_DELAY).await;
        services.refill_warm_pool().await?;
    }
    Ok(())
}

async fn every<F: Future<Output = domain::Result<()>>>(interval: Duration, task: impl Fn() -> F) {
    let mut interval = tokio::time::interval(interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = task().await {
            tracing::warn!(error = domain::dyn_error(&error), "a maintenance task failed; it will be retried");
        }
    }
}

/// Raises the limit of open files to the maximum: an open SQLite database takes three descriptors, a connection one.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
