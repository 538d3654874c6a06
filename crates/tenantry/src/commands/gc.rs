//! `tenantry gc`

use std::process::ExitCode;

use anyhow::{Context, Result};
use domain::Tenant;
use serde_json::json;
use services::{Collected, OperatorServices};

use crate::{
    assembly::assemble,
    commands::{
        say, say_json,
        tenants::{Which, find},
    },
    config::Config,
};

/// Options of `tenantry gc`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only count what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Only this tenant's: its id, its database's name, or its name when no other tenant has it
    #[arg(long)]
    tenant: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Collects every tenant's garbage, and what is left of tenants that were deleted. A tenant whose database is down is reported
/// and left for the next run.
///
/// # Errors
/// When the main database is down.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let mut total = Collected::default();
    let mut failed = Vec::new();
    for tenant in chosen(&services, arguments.tenant.as_deref()).await? {
        let result = if arguments.dry_run { services.find_garbage(&tenant).await } else { services.collect_garbage(&tenant).await };
        match result {
            Ok(collected) => total = total + collected,
            Err(error) => failed.push(format!("{}: {}", tenant.place.database, error.with_causes())),
        }
    }
    let objects = if arguments.dry_run || arguments.tenant.is_some() {
        0
    } else {
        services.collect_late_objects().await.unwrap_or_else(|error| {
            failed.push(format!("deleted tenants: {}", error.with_causes()));
            0
        })
    };
    let Collected { documents, files, bytes, uploads } = total;
    if arguments.json {
        say_json(&json!({
            "dry_run": arguments.dry_run,
            "documents": documents,
            "files": files,
            "bytes": bytes,
            "uploads": uploads,
            "objects_of_deleted_tenants": objects,
            "failed": failed,
        }));
    } else {
        let done = if arguments.dry_run { "Would collect" } else { "Collected" };
        say(format_args!("{done} {documents} documents from the trash, {files} files ({bytes} bytes) and {uploads} abandoned uploads"));
        if objects > 0 {
            say(format_args!("Collected {objects} objects of deleted tenants"));
        }
        failed.iter().for_each(say);
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tenant that was named, or all that are not being deleted.
pub(super) async fn chosen(services: &OperatorServices, named: Option<&str>) -> Result<Vec<Tenant>> {
    match named {
        Some(tenant) => Ok(vec![find(services, &Which { tenant: tenant.to_owned() }).await?]),
        None => services.list_kept_tenants().await.context("list the tenants"),
    }
}
