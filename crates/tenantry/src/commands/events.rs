//! `tenantry events`

mod dead_letters;
mod json;
mod status;
mod tail;

use std::process::ExitCode;

use anyhow::Result;

use crate::{assembly::assemble, config::Config};

/// Subcommands of `tenantry events`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the number of unpublished events and their age, per tenant
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the latest events, one JSON object per line
    ///
    /// Shows the events of the platform, or those of a tenant's documents, published or not. EVENT_RETENTION limits how long
    /// published events are kept.
    Tail(tail::Arguments),
    /// Manage dead letters: events that could not be handled
    #[command(subcommand)]
    Dlq(dead_letters::Command),
}

/// Shows events, or decides about dead letters.
///
/// # Errors
/// When there is no such event or tenant, or a database is unavailable.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    match command {
        Command::Status { json } => status::run(&services, *json).await?,
        Command::Tail(arguments) => tail::run(&services, arguments).await?,
        Command::Dlq(command) => dead_letters::run(&services, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}
