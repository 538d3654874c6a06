//! `tenantry users`

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use domain::Email;

use crate::{assembly::assemble, commands::print, config::Config};

/// Subcommands of `tenantry users`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Deactivate a user and revoke their sessions
    Deactivate {
        /// The user's e-mail address
        email: String,
    },
    /// Reactivate a user
    Activate {
        /// The user's e-mail address
        email: String,
    },
}

/// Activates or deactivates a user.
///
/// # Errors
/// When there is no such user, or the main database is unavailable.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let (email, is_active) = match command {
        Command::Deactivate { email } => (email, false),
        Command::Activate { email } => (email, true),
    };
    let address = Email::parse(email).map_err(|problem| anyhow!("the address {problem}"))?;
    let user = services.find_user_by_email(&address).await?.ok_or_else(|| anyhow!("no user has the address {address}"))?;
    services.set_user_active(user.id, is_active).await?;
    let outcome = if is_active { "activated" } else { "deactivated; all sessions are revoked" };
    print(format_args!("User {} {outcome}.", user.email));
    Ok(ExitCode::SUCCESS)
}
