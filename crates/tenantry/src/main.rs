//! The `tenantry` program.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tenantry::{
    commands::{audit, check, eprint, events, gc, init, migrate, serve, tenants, users, verify, worker},
    config::Config,
    logging,
};

/// Replaces the allocator of C code, too (feature `override`): that of SQLite, librdkafka and OpenSSL.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A multi-tenant backend with a separate database for every tenant.
///
/// Configured by environment variables and `.env`; `tenantry check` lists them with their meanings.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API
    Serve,
    /// Handle events from Kafka
    Worker,
    /// Create the main database, and optionally a first user and a test tenant
    Init(init::Arguments),
    /// Migrate the main database and every tenant database
    Migrate(migrate::Arguments),
    /// Show the configuration and check every dependency
    Check(check::Arguments),
    /// Collect garbage: expired trash, unreferenced files and abandoned uploads
    Gc(gc::Arguments),
    /// Compare the databases with the object storage
    ///
    /// Reports objects that are missing, unknown or of the wrong size; with --deep, reads every object and checks its hash. Repairs
    /// nothing. Exits with 1 if it finds a problem.
    Verify(verify::Arguments),
    /// Manage tenants
    #[command(subcommand)]
    Tenants(tenants::Command),
    /// Manage users
    #[command(subcommand)]
    Users(users::Command),
    /// Inspect events: backlog, history and dead letters
    #[command(subcommand)]
    Events(events::Command),
    /// Show the platform's audit log: actions that belong to no tenant or to a deleted one
    Audit(audit::Arguments),
    /// Print the OpenAPI 3.1 specification of the API
    Openapi,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprint(&format!("tenantry: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    if let Command::Openapi = command {
        print_specification();
        return Ok(ExitCode::SUCCESS);
    }
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(error) => {
            eprint(&format!("tenantry: {error}"));
            return Ok(ExitCode::from(2));
        }
    };
    let _flush = logging::init(&config.log)?;
    // The allocator requests huge pages, with which one small block keeps 2 MiB in memory. An old kernel may refuse to disable
    // them, which is harmless.
    let _disabled = rustix::thread::disable_transparent_huge_pages(true);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = match command {
        Command::Serve => runtime.block_on(serve::run(&config)),
        Command::Worker => runtime.block_on(worker::run(&config)),
        Command::Init(arguments) => runtime.block_on(init::run(&config, &arguments)),
        Command::Migrate(arguments) => runtime.block_on(migrate::run(&config, &arguments)),
        Command::Check(arguments) => runtime.block_on(check::run(&config, &arguments)),
        Command::Gc(arguments) => runtime.block_on(gc::run(&config, &arguments)),
        Command::Verify(arguments) => runtime.block_on(verify::run(&config, &arguments)),
        Command::Tenants(command) => runtime.block_on(tenants::run(&config, &command)),
        Command::Users(command) => runtime.block_on(users::run(&config, &command)),
        Command::Events(command) => runtime.block_on(events::run(&config, &command)),
        Command::Audit(arguments) => runtime.block_on(audit::run(&config, &arguments)),
        Command::Openapi => Ok(ExitCode::SUCCESS),
    };
    // Work that cannot be cancelled, such as a file being written, does not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
fn print_specification() {
    print!("{}", api::specification());
}
