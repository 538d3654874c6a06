//! The `tenantry` program.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tenantry::{
    commands::{audit, check, complain, events, gc, init, migrate, serve, tenants, users, verify, worker},
    config::Config,
    logging,
};

/// Of SQLite, librdkafka and OpenSSL, too: it takes the place of the C library's (feature `override`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A multi-tenant backend with a database of its own for every tenant.
///
/// Configured by environment variables and `.env`; `tenantry check` shows them with their meaning.
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
    /// Make the main database, and on demand a first user and a test tenant
    Init(init::Arguments),
    /// Bring the main database and every tenant's database up to date
    Migrate(migrate::Arguments),
    /// Show the configuration and ask every dependency whether it is there
    Check(check::Arguments),
    /// Collect what nothing refers to any more
    Gc(gc::Arguments),
    /// Compare what the databases say with what the object storage holds
    ///
    /// Reports objects that are missing, unknown or of the wrong size; with --deep reads every object and checks its hash. Repairs
    /// nothing. Exits with 1 when anything is wrong.
    Verify(verify::Arguments),
    /// Look at tenants, make, deactivate and delete them
    #[command(subcommand)]
    Tenants(tenants::Command),
    /// Look at users, let them log in or not
    #[command(subcommand)]
    Users(users::Command),
    /// Look at events: what waits to be published, what happened, what could not be handled
    #[command(subcommand)]
    Events(events::Command),
    /// Show what was done that concerns no tenant, or one that is no more: the platform's audit log
    Audit(audit::Arguments),
    /// Print the API's specification (OpenAPI 3.1)
    Openapi,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("tenantry: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    if let Command::Openapi = command {
        say(&api::specification());
        return Ok(ExitCode::SUCCESS);
    }
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(error) => {
            complain(&format!("tenantry: {error}"));
            return Ok(ExitCode::from(2));
        }
    };
    let _flush = logging::init(&config.log)?;
    // The allocator asks for huge pages: then one small block that is left of many takes 2 MiB. Whoever can't be spared them
    // (an old kernel) goes on with them.
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
    // Work that can't be cancelled, like a file being written, does not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn say(text: &str) {
    print!("{text}");
}
