//! `tenantry gc`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use services::{Collected, OperatorServices};

use crate::{
    assembly::assemble,
    commands::{print, print_json, tenants::find_selected},
    config::Config,
};

/// Options of `tenantry gc`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only count what would be collected
    #[arg(long)]
    dry_run: bool,
    /// Collect the garbage of this tenant only (id, database name, or name if unique)
    #[arg(long)]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a run collected, and which tenants failed.
#[derive(Default)]
struct Outcome {
    collected: Collected,
    /// Objects of deleted tenants.
    late_objects: u64,
    failed: Vec<String>,
}

/// Collects the garbage of every tenant, and late objects of deleted tenants. Reports a tenant whose database is unavailable
/// and leaves it to the next run.
///
/// # Errors
/// When the main database is unavailable.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let outcome = collect(&services, arguments).await?;
    if arguments.json {
        print_json(&outcome_json(&outcome, arguments.dry_run));
    } else {
        print_outcome(&outcome, arguments.dry_run);
    }
    Ok(if outcome.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn collect(services: &OperatorServices, Arguments { dry_run, tenant, .. }: &Arguments) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for tenant in find_selected(services, tenant.as_deref()).await? {
        let result = if *dry_run { services.find_garbage(&tenant).await } else { services.collect_garbage(&tenant).await };
        match result {
            Ok(collected) => outcome.collected = outcome.collected + collected,
            Err(error) => outcome.failed.push(format!("{}: {}", tenant.place.database, error.with_causes())),
        }
    }
    if !dry_run && tenant.is_none() {
        match services.collect_late_objects().await {
            Ok(objects) => outcome.late_objects = objects,
            Err(error) => outcome.failed.push(format!("deleted tenants: {}", error.with_causes())),
        }
    }
    Ok(outcome)
}

fn print_outcome(Outcome { collected, late_objects, failed }: &Outcome, dry_run: bool) {
    let Collected { documents, files, bytes, uploads } = collected;
    let verb = if dry_run { "Would collect" } else { "Collected" };
    print(format_args!("{verb} {documents} documents from the trash, {files} files ({bytes} bytes) and {uploads} abandoned uploads"));
    if *late_objects > 0 {
        print(format_args!("Collected {late_objects} objects of deleted tenants"));
    }
    failed.iter().for_each(print);
}

fn outcome_json(Outcome { collected, late_objects, failed }: &Outcome, dry_run: bool) -> Value {
    json!({
        "dry_run": dry_run,
        "documents": collected.documents,
        "files": collected.files,
        "bytes": collected.bytes,
        "uploads": collected.uploads,
        "objects_of_deleted_tenants": late_objects,
        "failed": failed,
    })
}
