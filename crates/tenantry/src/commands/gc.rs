//! `tenantry gc`

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use services::Collected;

use crate::{
    assembly::assemble,
    commands::{say, say_json},
    config::Config,
};

/// Options of `tenantry gc`.
#[derive(clap::Args)]
pub struct Arguments {
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
    let (services, _) = assemble(config)?;
    let mut total = Collected::default();
    let mut failed = Vec::new();
    for tenant in services.list_kept_tenants().await.context("list the tenants")? {
        match services.collect_garbage(&tenant.place).await {
            Ok(Collected { files, uploads }) => {
                total.files += files;
                total.uploads += uploads;
            }
            Err(error) => failed.push(format!("{}: {}", tenant.place.database, error.with_causes())),
        }
    }
    let objects = services.collect_late_objects().await.unwrap_or_else(|error| {
        failed.push(format!("deleted tenants: {}", error.with_causes()));
        0
    });
    if arguments.json {
        say_json(&json!({ "files": total.files, "uploads": total.uploads, "objects_of_deleted_tenants": objects, "failed": failed }));
    } else {
        say(format_args!("Collected {} files and {} abandoned uploads", total.files, total.uploads));
        if objects > 0 {
            say(format_args!("Collected {objects} objects of deleted tenants"));
        }
        failed.iter().for_each(say);
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
