//! `tenantry users`

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use domain::Email;

use crate::{assembly::assemble, commands::say, config::Config};

/// What can be done with a user.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Let a user log in no longer; all the user's sessions end at once
    Deactivate {
        /// The user's e-mail address
        email: String,
    },
    /// Let a user log in again
    Activate {
        /// The user's e-mail address
        email: String,
    },
}

/// Changes a user.
///
/// # Errors
/// When there is no such user, or the main database is down.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let (email, is_active) = match command {
        Command::Deactivate { email } => (email, false),
        Command::Activate { email } => (email, true),
    };
    let address = Email::parse(email).map_err(|problem| anyhow!("the address {problem}"))?;
    let user = services.find_user_by_email(&address).await?.ok_or_else(|| anyhow!("nobody has the address {address}"))?;
    services.set_user_active(user.id, is_active).await?;
    say(format_args!("{} {}", user.email, if is_active { "may log in again" } else { "may log in no longer; all sessions have ended" }));
    Ok(ExitCode::SUCCESS)
}
