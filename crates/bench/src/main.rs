//! The benchmark: the real server under load, beside what the same machine does without it (docs/PERFORMANCE.md).

mod bare_http;
mod events;
mod fixture;
mod fleet;
mod floors;
mod histogram;
mod load;
mod objects;
mod place;
mod process;
mod report;
mod round;

use std::{net::SocketAddr, path::PathBuf, thread::available_parallelism, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, value_parser};

use crate::{
    fixture::Fixture,
    place::Place,
    process::{Server, Tenantry},
    report::Report,
    round::Bench,
};

/// The server's allocator, so that the bare HTTP server has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes of a large upload.
const LARGE: usize = 100_000_000;
/// How often the server is started to see how long that takes.
const STARTS: usize = 30;

/// Measures Tenantry beside what the machine does without it.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    /// Where the databases are: `sqlite` or `postgres://…`
    #[arg(long, default_value = "sqlite")]
    database: String,
    /// Keep-alive connections that ask at the same time
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Seconds that each scenario takes in each round
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Rounds, of whose figures the medians are shown
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// The directory for the data (some gigabytes, removed at the end)
    #[arg(long, default_value = "/var/tmp")]
    directory: PathBuf,
    /// The program to measure; by default the one beside this one
    #[arg(long)]
    tenantry: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Be the bare HTTP server
    #[command(hide = true)]
    BareHttp { address: SocketAddr, body_bytes: usize },
    /// Measure many tenants: making their databases, keeping them, changing between them
    Fleet {
        #[command(flatten)]
        fleet: fleet::Options,
        #[command(flatten)]
        options: Options,
    },
    /// Measure events on Kafka: how soon they are there, how fast a backlog goes, beside a producer alone
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

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn main() -> Result<()> {
    let Arguments { part, options } = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match part {
        Some(Part::BareHttp { address, body_bytes }) => bare_http::serve(address, body_bytes)?,
        Some(Part::Fleet { fleet, options }) => {
            let seconds = Duration::from_secs(options.seconds);
            let measured =
                runtime.block_on(run(&options, async |place, tenantry| fleet::measure(&fleet, place, tenantry, seconds).await))?;
            println!("{}", if options.json { measured.to_json()? } else { measured.to_string() });
        }
        Some(Part::Events { events, options }) => {
            let seconds = Duration::from_secs(options.seconds);
            let measured =
                runtime.block_on(run(&options, async |place, tenantry| events::measure(&events, place, tenantry, seconds).await))?;
            println!("{}", if options.json { measured.to_json()? } else { measured.to_string() });
        }
        Some(Part::Objects { objects, options }) => {
            let seconds = Duration::from_secs(options.seconds);
            let measuring =
                run(&options, async |place, tenantry| objects::measure(&objects, place, tenantry, seconds, options.rounds).await);
            let measured = runtime.block_on(measuring)?;
            println!("{}", if options.json { measured.to_json()? } else { measured.to_string() });
        }
        None => {
            let report = runtime.block_on(run(&options, async |place, tenantry| measure(&options, place, tenantry).await))?;
            println!("{}", if options.json { report.to_json()? } else { report.to_string() });
        }
    }
    Ok(())
}

async fn run<T>(options: &Options, measure: impl AsyncFnOnce(&Place, &Tenantry) -> Result<T>) -> Result<T> {
    let program = options.tenantry.clone().map_or_else(program_beside, Ok)?;
    ensure!(program.is_file(), "{} is missing: cargo build --profile dist -p tenantry -p bench", program.display());
    let place = Place::make(&options.directory, &options.database).await?;
    let measured = measure(&place, &place.tenantry(program)).await;
    place.remove().await?;
    measured
}

async fn measure(options: &Options, place: &Place, tenantry: &Tenantry) -> Result<Report> {
    let server = tenantry.start()?;
    let fixture = Fixture::make(server.address).await?;
    let bare_http = Server::start_bare_http(fixture.document_bytes)?;
    let bench = Bench {
        server: &server,
        bare_http: &bare_http,
        database_floor: &place.database_floor(&fixture),
        place,
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
    progress("starts");
    let mut start_ms = Vec::new();
    for _ in 0..STARTS {
        let started = tenantry.start()?;
        start_ms.push(started.start_time.as_secs_f64() * 1e3);
        started.stop()?;
    }
    let idle = tenantry.start()?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle_memory_mib = idle.memory()?;
    idle.stop()?;
    Ok(Report {
        engine: place.engine(),
        cores: available_parallelism()?.get(),
        connections: options.connections.into(),
        seconds: options.seconds,
        rounds,
        start_ms,
        idle_memory_mib,
    })
}

fn program_beside() -> Result<PathBuf> {
    Ok(std::env::current_exe().context("find the program to measure")?.with_file_name("tenantry"))
}

#[expect(clippy::print_stderr, reason = "who waits for minutes wants to know for what")]
fn progress(text: &str) {
    eprintln!("{text}");
}
