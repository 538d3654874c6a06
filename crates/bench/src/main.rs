//! The benchmark: the real server under load, beside what the machine can do without it (docs/PERFORMANCE.md).

mod bare_http;
mod environment;
mod events;
mod fixture;
mod fleet;
mod floors;
mod histogram;
mod load;
mod objects;
mod process;
mod report;
mod round;
mod summary;

use std::{net::SocketAddr, path::PathBuf, thread::available_parallelism, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, value_parser};

use crate::{
    environment::Environment,
    fixture::Fixture,
    process::{Server, Tenantry},
    report::{Report, millis},
    round::{Bench, Round},
    summary::Run,
};

/// The server's allocator, so that the bare HTTP server has it, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes of a large upload.
const LARGE: usize = 100_000_000;
/// The number of starts whose duration is measured.
const STARTS: usize = 30;
/// How long a server has been running when its idle memory is measured.
const IDLE: Duration = Duration::from_secs(5);

/// Measures Tenantry beside what the machine can do without it.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
    #[command(flatten)]
    options: Options,
}

/// Options of every benchmark, beside those of its own, which are a group of the same name.
#[derive(clap::Args)]
#[group(skip)]
struct Options {
    /// The database server: `sqlite` or `postgres://…`
    #[arg(long, default_value = "sqlite")]
    database: String,
    /// Concurrent keep-alive connections
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Seconds of each scenario in each round
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Rounds; the report shows medians over them
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// The directory for the data (some gigabytes, removed at the end)
    #[arg(long, default_value = "/var/tmp")]
    directory: PathBuf,
    /// Settings of the program; the default switches off limits that a benchmark meets
    #[arg(long, value_name = "NAME=VALUE", default_values = ["RATE_LIMIT_ENABLED=false", "TENANTS_PER_USER=1000000"])]
    env: Vec<String>,
    /// The program to measure [default: `tenantry` beside this program]
    #[arg(long)]
    tenantry: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Run the bare HTTP server
    #[command(hide = true)]
    BareHttp { address: SocketAddr, body_bytes: usize },
    /// Measure many tenants: creating their databases, keeping them, and switching between them
    Fleet {
        #[command(flatten)]
        fleet: fleet::Options,
        #[command(flatten)]
        options: Options,
    },
    /// Measure events on Kafka: latency, backlog throughput beside a bare producer, and idle tenants
    Events {
        #[command(flatten)]
        events: events::Options,
        #[command(flatten)]
        options: Options,
    },
    /// Measure uploads to S3 and downloads, beside the AWS CLI, bare PUTs and nginx
    Objects {
        #[command(flatten)]
        objects: objects::Options,
        #[command(flatten)]
        options: Options,
    },
}

fn main() -> Result<()> {
    let Arguments { benchmark, options } = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match benchmark {
        Some(Benchmark::BareHttp { address, body_bytes }) => bare_http::serve(address, body_bytes),
        Some(Benchmark::Fleet { fleet, options }) => runtime
            .block_on(run(&options, async |environment, tenantry, seconds| fleet::measure(&fleet, environment, tenantry, seconds).await)),
        Some(Benchmark::Events { events, options }) => runtime
            .block_on(run(&options, async |environment, tenantry, seconds| events::measure(&events, environment, tenantry, seconds).await)),
        Some(Benchmark::Objects { objects, options }) => runtime.block_on(run(&options, async |environment, tenantry, seconds| {
            objects::measure(&objects, environment, tenantry, seconds, options.rounds).await
        })),
        None => runtime.block_on(run(&options, async |environment, tenantry, _| measure(&options, environment, tenantry).await)),
    }
}

/// Runs a benchmark in an empty environment and prints its report.
async fn run(options: &Options, measure: impl AsyncFnOnce(&Environment, &Tenantry, Duration) -> Result<Report>) -> Result<()> {
    let program = options.tenantry.clone().map_or_else(default_program, Ok)?;
    ensure!(program.is_file(), "{} is missing: cargo build --profile dist -p tenantry -p bench", program.display());
    let environment = Environment::create(&options.directory, &options.database).await?;
    let report = measure(&environment, &environment.tenantry(program, &options.env), Duration::from_secs(options.seconds)).await;
    environment.remove().await?;
    print_report(&report?, options.json)
}

#[expect(clippy::print_stdout, reason = "the output of the command")]
fn print_report(report: &Report, json: bool) -> Result<()> {
    println!("{}", if json { report.to_json()? } else { report.to_string() });
    Ok(())
}

async fn measure(options: &Options, environment: &Environment, tenantry: &Tenantry) -> Result<Report> {
    let rounds = rounds(options, environment, tenantry).await?;
    progress("starts");
    let mut start_ms = Vec::new();
    for _ in 0..STARTS {
        let started = tenantry.start()?;
        start_ms.push(millis(started.start_time));
        started.stop()?;
    }
    let idle = tenantry.start()?;
    tokio::time::sleep(IDLE).await;
    let idle_memory_mib = idle.memory()?;
    idle.stop()?;
    let run = Run {
        engine: environment.engine(),
        cores: available_parallelism()?.get(),
        connections: options.connections.into(),
        seconds: options.seconds,
        rounds,
        start_ms,
        idle_memory_mib,
    };
    Ok(run.report()?)
}

async fn rounds(options: &Options, environment: &Environment, tenantry: &Tenantry) -> Result<Vec<Round>> {
    let server = tenantry.start()?;
    let fixture = Fixture::create(server.address).await?;
    let bare_http = Server::start_bare_http(fixture.document_bytes)?;
    let bench = Bench {
        server: &server,
        bare_http: &bare_http,
        database_floor: &environment.database_floor(&fixture),
        environment,
        fixture: &fixture,
        connections: options.connections.into(),
        duration: Duration::from_secs(options.seconds),
    };
    bench.warm_up().await?;
    let mut rounds = Vec::new();
    for n in 1..=options.rounds {
        progress(&format!("round {n} of {}", options.rounds));
        rounds.push(bench.round().await?);
    }
    server.stop()?;
    Ok(rounds)
}

fn default_program() -> Result<PathBuf> {
    Ok(std::env::current_exe().context("find the program to measure")?.with_file_name("tenantry"))
}

#[expect(clippy::print_stderr, reason = "a benchmark takes minutes")]
fn progress(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
