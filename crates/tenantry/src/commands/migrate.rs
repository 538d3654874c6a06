//! `tenantry migrate`

mod fleet;
mod progress;
mod status;

use std::process::ExitCode;

use anyhow::{Context, Result};
use domain::Wave;
use services::{MigrationPlan, OperatorServices, Services};

use self::progress::Progress;
use crate::{
    assembly::assemble,
    commands::{
        print_json,
        tenants::{TenantArgument, find},
    },
    config::Config,
};

/// The default number of databases that are migrated concurrently on each server.
const CONCURRENCY: u32 = 4;

/// Options of `tenantry migrate`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show the schema versions of the tenant databases, and failed migrations
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Lift the quarantine of a tenant whose migration failed
    ///
    /// Its database is as it was before the migration. If it is one schema version behind, this version of the program and the
    /// one before can use it.
    Release {
        #[command(flatten)]
        tenant: TenantArgument,
    },
}

/// How to migrate the tenant databases.
#[derive(clap::Args)]
struct Options {
    /// Migrate this tenant only (id, database name, or name if unique); repeatable
    #[arg(long, value_name = "TENANT")]
    tenant: Vec<String>,
    /// Migrate in waves, each up to this number or percentage of the outdated tenants: first one, then a few, then all
    #[arg(long, value_name = "1,1%,10%,100%", value_delimiter = ',', value_parser = Wave::parse)]
    waves: Vec<Wave>,
    /// Stop after this many failures [default: 1 with --waves, else unlimited]
    #[arg(long, value_name = "FAILURES", value_parser = clap::value_parser!(u32).range(1..))]
    halt_on: Option<u32>,
    /// Number of databases to migrate concurrently on each server
    #[arg(long, value_name = "DATABASES", default_value_t = CONCURRENCY, value_parser = clap::value_parser!(u32).range(1..=64))]
    at_once: u32,
    /// Show what would be done without doing it
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Options {
    fn plan(&self) -> MigrationPlan {
        let in_waves = !self.waves.is_empty();
        let halt_on = self.halt_on.or_else(|| in_waves.then_some(1));
        let waves = if in_waves { self.waves.clone() } else { vec![Wave::Percent(100)] };
        MigrationPlan { waves, halt_on: halt_on.map(|failures| failures as usize), at_once: self.at_once as usize }
    }
}

/// Migrates the main database and tenant databases, or shows their state.
///
/// # Errors
/// When the main database cannot be migrated.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let (Services { operator: services, .. }, main) = assemble(config)?;
    match &arguments.command {
        Some(Command::Status { json }) => status::run(&services, *json).await,
        Some(Command::Release { tenant }) => status::lift_quarantine(&services, &find(&services, &tenant.tenant).await?).await,
        None => {
            if !arguments.options.dry_run {
                main.migrate().await.context("migrate the main database")?;
            }
            migrate(&services, &arguments.options).await
        }
    }
}

async fn migrate(services: &OperatorServices, options: &Options) -> Result<ExitCode> {
    let mut only = Vec::new();
    for name in &options.tenant {
        let id = find(services, name).await?.id;
        if !only.contains(&id) {
            only.push(id);
        }
    }
    let plan = options.plan();
    let planned = services.plan_migration((!only.is_empty()).then_some(&only)).await.context("list the tenants")?;
    if options.dry_run {
        fleet::show_plan(&plan, &planned, options.json);
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new(planned.outdated.len(), options.json);
    let fleet = services.migrate_fleet(planned, &plan, &|step| progress.report(step)).await;
    progress.end();
    let fleet = fleet.context("record the migrations; run the same command again to continue")?;
    if options.json {
        print_json(&fleet::fleet_json(&fleet));
    } else {
        fleet::print_fleet(&fleet);
    }
    Ok(if fleet.failed.is_empty() && fleet.postponed.is_empty() && !fleet.halted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
