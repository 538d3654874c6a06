//! `tenantry serve`

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use api::{
    Router, metrics,
    server::{self, Limits},
};
use domain::SystemClock;
use services::{Collected, DependencyStatus, Services};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    assembly::assemble,
    commands::problem::describe,
    config::{Config, Origins},
    events::{self, Publishing},
};

/// How often what a crash left of a tenant's making, deletion or move is looked for.
const RESUME_INTERVAL: Duration = Duration::from_secs(15);
/// How often spare databases are counted, and how long after one was taken it is replaced.
const REFILL_INTERVAL: Duration = Duration::from_secs(30);
const REFILL_DELAY: Duration = Duration::from_secs(1);
/// How many connections the page of metrics takes at once, and how long it has at the end.
const METRICS_CONNECTIONS: usize = 16;
const METRICS_GRACE: Duration = Duration::from_secs(1);
/// How long giving up leases may take at the end.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// How often expired sessions are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(3600);

/// Serves the API until SIGTERM or SIGINT.
///
/// # Errors
/// When the address is taken or the main database can't be brought up to date.
pub async fn run(config: &Config) -> Result<ExitCode> {
    raise_descriptor_limit();
    let (services, main) = assemble(config)?;
    let listener = listen(SocketAddr::new(config.server.host, config.server.port), "HOST, PORT")?;
    let address = listener.local_addr()?;
    main.migrate().await.context("bring the main database up to date")?;
    for DependencyStatus { name, problem } in services.find_unknown_servers().await? {
        tracing::warn!("{name}: {}", problem.as_ref().map_or_else(String::new, describe));
    }
    let settings = api::Settings {
        public_url: config.server.public_url.clone(),
        cors_origins: match &config.cors.origins {
            Origins::Any => vec!["*".to_owned()],
            Origins::These(origins) => origins.clone(),
        },
        cors_allow_credentials: config.cors.allow_credentials,
        demo: events::demo(config)?,
        bus: events::probe(config)?,
    };
    let app = api::router(services.clone(), Arc::new(SystemClock), settings);
    let limits =
        Limits { max_connections: config.server.max_connections, shutdown_grace: config.server.shutdown_grace, ..Limits::default() };
    let stop = CancellationToken::new();
    stop_on_signals(&stop, "requests in flight may finish")?;
    serve_metrics(config, metrics::router(services.clone()), &stop)?;
    let publishing = Publishing::begin(&services, events::bus(config, &services)?);
    let housekeeping = tokio::spawn(keep_house(services.clone(), config.documents.garbage_interval));
    tracing::info!("listening on http://{address}: documentation at /docs, data in {}", config.data_dir.display());
    let report = server::serve(listener, app, limits, stop).await;
    // After the last request: what that told is still published.
    publishing.end().await;
    housekeeping.abort();
    // What was interrupted, others go on with at once.
    let _was_aborted = housekeeping.await;
    give_up_leases(&services).await;
    tracing::info!(connections_cut = report.connections_cut, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// What this process held, others may hold at once.
pub(super) async fn give_up_leases(services: &Services) {
    if !matches!(timeout(RELEASE_PATIENCE, services.release_leases()).await, Ok(Ok(()))) {
        tracing::warn!("this instance's leases could not be given up; they expire by themselves");
    }
}

/// Serves the page of metrics, where one is wanted.
pub(super) fn serve_metrics(config: &Config, page: Router, stop: &CancellationToken) -> Result<()> {
    if let Some(address) = config.server.metrics_address {
        let listener = listen(address, "METRICS_ADDRESS")?;
        tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
        let limits = Limits { max_connections: METRICS_CONNECTIONS, shutdown_grace: METRICS_GRACE, ..Limits::default() };
        tokio::spawn(server::serve(listener, page, limits, stop.clone()));
    }
    Ok(())
}

/// Listens so that a restart does not have to wait for old connections to be forgotten.
fn listen(address: SocketAddr, variables: &str) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("listen on {address} ({variables})"))?;
    Ok(socket.listen(1024)?)
}

pub(super) fn stop_on_signals(stop: &CancellationToken, meanwhile: &'static str) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: {meanwhile}");
        stop.cancel();
    });
    Ok(())
}

/// What goes on beside the requests.
async fn keep_house(services: Services, garbage_interval: Duration) {
    tokio::join!(
        collect_garbage(&services, garbage_interval),
        services.follow_access_changes(),
        every(RESUME_INTERVAL, || settle_tenants(services.clone())),
        // Apart from that: a tenant may have many objects.
        every(RESUME_INTERVAL, || complete_deletions(services.clone())),
        every(RESUME_INTERVAL, || settle_moves(services.clone())),
        every(FORGET_INTERVAL, || forget_sessions(services.clone())),
        every(REFILL_INTERVAL, || refill_spares(services.clone())),
    );
}

/// Collects garbage for the first time after one interval: a server that starts has other things to do.
async fn collect_garbage(services: &Services, interval: Duration) {
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

async fn settle_tenants(services: Services) -> domain::Result<()> {
    services.resume_provisioning().await.map(drop)
}

async fn complete_deletions(services: Services) -> domain::Result<()> {
    services.resume_deletions().await.map(drop)
}

async fn settle_moves(services: Services) -> domain::Result<()> {
    services.resume_moves().await.map(drop)
}

async fn forget_sessions(services: Services) -> domain::Result<()> {
    services.forget_expired_sessions().await?;
    services.forget_platform_events().await
}

async fn refill_spares(services: Services) -> domain::Result<()> {
    services.refill_spares().await?;
    while timeout(REFILL_INTERVAL, services.spare_taken()).await.is_ok() {
        // Who makes tenants often makes several, and making a database slows down whoever takes one.
        sleep(REFILL_DELAY).await;
        services.refill_spares().await?;
    }
    Ok(())
}

async fn every<F: Future<Output = domain::Result<()>>>(interval: Duration, chore: impl Fn() -> F) {
    let mut interval = tokio::time::interval(interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = chore().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "housekeeping failed; it is tried again");
        }
    }
}

/// Every open tenant file takes three descriptors and every connection one: as many as the system lets us.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}
