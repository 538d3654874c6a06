//! `tenantry migrate`

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use domain::Tenant;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    assembly::assemble,
    commands::{chain, say, say_json},
    config::Config,
};

/// Tenants' databases that are brought up to date at once.
const AT_ONCE: usize = 4;

/// Options of `tenantry migrate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Brings the main database and every tenant's database up to date. One that fails is reported and left for the next run.
///
/// # Errors
/// When the main database can't be brought up to date.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let (services, main) = assemble(config)?;
    if !arguments.dry_run {
        main.migrate().await.context("bring the main database up to date")?;
    }
    let tenants = services.list_kept_tenants().await.context("list the tenants")?;
    let current = database::tenant_schema_version();
    let total = tenants.len();
    let outdated: Vec<Tenant> = tenants.into_iter().filter(|tenant| tenant.schema_version < current).collect();
    if arguments.dry_run {
        let names: Vec<_> = outdated.iter().map(|tenant| tenant.place.database.as_str()).collect();
        if arguments.json {
            say_json(&json!({ "schema_version": current, "tenants": total, "outdated": names }));
        } else {
            say(format_args!("{} of {total} tenants' databases are to be brought to schema version {current}", names.len()));
            names.iter().for_each(say);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let bar = progress(outdated.len());
    let results = futures_util::stream::iter(outdated).map(|tenant| {
        let (services, bar) = (&services, &bar);
        async move {
            let migrated = services.migrate_tenant(&tenant).await;
            bar.inc(1);
            (tenant, migrated)
        }
    });
    let results: Vec<_> = results.buffer_unordered(AT_ONCE).collect().await;
    bar.finish_and_clear();
    let failed: Vec<_> = results.iter().filter_map(|(tenant, result)| Some((tenant, result.as_ref().err()?))).collect();
    let migrated = results.len() - failed.len();
    if arguments.json {
        let failed: Vec<_> =
            failed.iter().map(|(tenant, error)| json!({ "database": tenant.place.database.as_str(), "error": chain(error) })).collect();
        say_json(&json!({ "schema_version": current, "tenants": total, "migrated": migrated, "failed": failed }));
    } else {
        say(format_args!(
            "Schema version {current}: {migrated} migrated, {} were up to date, {} failed",
            total - results.len(),
            failed.len()
        ));
        for (tenant, error) in &failed {
            say(format_args!("  {}: {}", tenant.place.database, chain(error)));
        }
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A bar on a terminal, nothing elsewhere.
fn progress(length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} tenants, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
