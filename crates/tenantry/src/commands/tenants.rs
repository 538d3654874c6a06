//! `tenantry tenants`

mod changes;
mod deletion;
mod json;
mod list;
mod moves;
mod quota;
mod selection;
mod show;

use std::process::ExitCode;

use anyhow::Result;

pub(super) use self::{
    json::tenant_reference_json,
    selection::{TenantArgument, find, find_selected},
};
use crate::{assembly::assemble, commands::eprint, config::Config};

/// Subcommands of `tenantry tenants`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List all tenants
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a tenant with its members and storage use
    Show {
        /// The tenant
        #[command(flatten)]
        tenant: TenantArgument,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create a tenant with its own database
    Create(changes::Create),
    /// Deactivate a tenant: its members lose access, and its data is kept
    Deactivate(TenantArgument),
    /// Reactivate a tenant
    Activate(TenantArgument),
    /// Move a tenant's database to another server
    ///
    /// Also works between SQLite and PostgreSQL. Reads continue during the move; writes wait for a few seconds while the last
    /// changes are copied and both databases are compared. The source database is kept, write-blocked, until you drop it with
    /// --drop-former or return to it with --rollback. If the move is interrupted, the tenant stays where it was.
    ///
    /// Every running `tenantry serve` must know the target server: after adding a server to TENANT_DATABASE_URLS, restart them
    /// first.
    Move(moves::Arguments),
    /// Set the storage quota of a tenant
    ///
    /// A tenant that stores more than its new quota keeps its data. A limit that is not given stays as it is.
    SetQuota(quota::SetQuota),
    /// Permanently delete a tenant: its database, its documents and its memberships
    Delete(deletion::Delete),
}

/// Shows tenants or changes one.
///
/// # Errors
/// When there is no such tenant, or a dependency is unavailable.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode> {
    if let Command::Delete(deletion::Delete { hard: false, .. }) = command {
        eprint("tenantry: deletion drops all data and requires --hard; to only block access, use `tenantry tenants deactivate`");
        return Ok(ExitCode::from(2));
    }
    let services = assemble(config)?.0.operator;
    match command {
        Command::List { json } => list::run(&services, *json).await,
        Command::Show { tenant, json } => show::run(&services, tenant, *json).await,
        Command::Create(arguments) => changes::create(&services, arguments).await,
        Command::Deactivate(tenant) => changes::set_active(&services, tenant, false).await,
        Command::Activate(tenant) => changes::set_active(&services, tenant, true).await,
        Command::Move(arguments) => Box::pin(moves::run(&services, arguments)).await,
        Command::SetQuota(arguments) => quota::set(&services, arguments).await,
        Command::Delete(arguments) => deletion::run(&services, arguments).await,
    }
}
