//! `tenantry migrate`

mod progress;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use comfy_table::{Table, presets::NOTHING};
use domain::{Error, Tenant, Timestamp, Wave};
use serde_json::{Value, json};
use services::{FleetMigration, MigrationPlan, MigrationStatus, OperatorServices, Services};

use self::progress::Progress;
use crate::{
    assembly::assemble,
    commands::{say, say_json, tenants},
    config::Config,
};

/// Tenants' databases that are migrated at once on each server, unless the operator says otherwise.
const AT_ONCE: usize = 4;

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
    /// Show how far the tenants' databases are migrated, and which ones failed
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Let people into a tenant's database again that is closed because its migration failed
    ///
    /// Its database is as it was before the migration. Programs of this version and of the one before can work in it when it is
    /// one version behind.
    Release {
        #[command(flatten)]
        which: tenants::Which,
    },
}

/// How tenants' databases are migrated.
#[derive(clap::Args)]
struct Options {
    /// Only this tenant (its id, its database's name or its name); may be given several times
    #[arg(long, value_name = "TENANT")]
    tenant: Vec<String>,
    /// In waves that reach over so many tenants, or so many percent of those to be migrated: first one, then few, then all
    #[arg(long, value_name = "1,1%,10%,100%", value_delimiter = ',', value_parser = Wave::parse)]
    waves: Vec<Wave>,
    /// Begin no further migration after so many failures [default: 1 in waves, else none is too many]
    #[arg(long, value_name = "FAILURES", value_parser = clap::value_parser!(u32).range(1..))]
    halt_on: Option<u32>,
    /// How many databases are migrated at once on each server
    #[arg(long, value_name = "DATABASES", default_value_t = AT_ONCE as u32, value_parser = clap::value_parser!(u32).range(1..=64))]
    at_once: u32,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
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

/// Brings the main database and tenants' databases up to date, or says how far they are.
///
/// # Errors
/// When the main database can't be brought up to date.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let (Services { operator: services, .. }, main) = assemble(config)?;
    match &arguments.command {
        Some(Command::Status { json }) => status(&services, *json).await,
        Some(Command::Release { which }) => release(&services, &tenants::find(&services, which).await?).await,
        None => {
            if !arguments.options.dry_run {
                main.migrate().await.context("bring the main database up to date")?;
            }
            migrate(&services, &arguments.options).await
        }
    }
}

async fn migrate(services: &OperatorServices, options: &Options) -> Result<ExitCode> {
    let mut only = Vec::new();
    for tenant in &options.tenant {
        let id = tenants::find(services, &tenants::Which { tenant: tenant.clone() }).await?.id;
        if !only.contains(&id) {
            only.push(id);
        }
    }
    let plan = options.plan();
    let planned = services.plan_migration((!only.is_empty()).then_some(&only)).await.context("list the tenants")?;
    if options.dry_run {
        say_plan(&plan, &planned, options.json);
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new(planned.outdated.len(), options.json);
    let fleet = services.migrate_fleet(planned, &plan, &|step| progress.note(step)).await;
    progress.end();
    let fleet = fleet.context("note what was migrated; the same command goes on")?;
    if options.json {
        say_json(&fleet_in_json(&fleet));
    } else {
        say_fleet(&fleet);
    }
    Ok(if fleet.failed.is_empty() && fleet.postponed.is_empty() && !fleet.halted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say_plan(plan: &MigrationPlan, FleetMigration { wanted_version, total, outdated, .. }: &FleetMigration, in_json: bool) {
    let names: Vec<_> = outdated.iter().map(|tenant| tenant.place.database.as_str()).collect();
    let reaches: Vec<_> = plan.waves.iter().map(|wave| wave.reach(outdated.len())).collect();
    if in_json {
        return say_json(&json!({ "schema_version": wanted_version, "tenants": total, "outdated": names, "waves_reach": reaches }));
    }
    say(format_args!("{} of {total} tenants' databases are to be brought to schema version {wanted_version}", names.len()));
    if let [_, _, ..] = reaches[..] {
        let reaches: Vec<_> = reaches.iter().map(ToString::to_string).collect();
        say(format_args!("in waves that reach over {}", reaches.join(", then ")));
    }
    names.iter().for_each(say);
}

fn say_fleet(fleet: &FleetMigration) {
    let FleetMigration { wanted_version, up_to_date, migrated, failed, postponed, gone, .. } = fleet;
    let (failures, postponements) = (failed.len(), postponed.len());
    say(format_args!(
        "Schema version {wanted_version}: {migrated} migrated, {up_to_date} were up to date, {failures} failed, {postponements} postponed"
    ));
    for (tenant, error) in failed {
        let told = error.with_causes();
        say(format_args!("  {} (closed until its migration succeeds or it is released): {told}", tenant.place.database));
    }
    for (tenant, error) in postponed {
        say(format_args!("  {} (postponed, in use as before): {}", tenant.place.database, error.with_causes()));
    }
    if *gone > 0 {
        say(format_args!("{gone} were deleted meanwhile"));
    }
    match (fleet.left(), fleet.halted) {
        (0, _) => {}
        (left, true) => say(format_args!("Halted after {failures} failures; {left} tenants were left as they are")),
        (left, false) => say(format_args!("{left} tenants were left for another time")),
    }
}

fn fleet_in_json(fleet: &FleetMigration) -> Value {
    let problems = |problems: &[(Tenant, Error)]| -> Vec<Value> {
        let problem = |(tenant, error): &(Tenant, Error)| {
            let mut json = tenant_in_json(tenant);
            json["error"] = error.with_causes().into();
            json
        };
        problems.iter().map(problem).collect()
    };
    json!({
        "schema_version": fleet.wanted_version,
        "tenants": fleet.total,
        "up_to_date": fleet.up_to_date,
        "migrated": fleet.migrated,
        "failed": problems(&fleet.failed),
        "postponed": problems(&fleet.postponed),
        "deleted": fleet.gone,
        "left": fleet.left(),
        "halted": fleet.halted,
    })
}

fn tenant_in_json(tenant: &Tenant) -> Value {
    json!({
        "id": tenant.id.to_string(),
        "name": tenant.name,
        "server": tenant.place.server,
        "database": tenant.place.database.as_str(),
    })
}

async fn status(services: &OperatorServices, in_json: bool) -> Result<ExitCode> {
    let status = services.migration_status().await.context("ask how far the tenants are")?;
    if in_json {
        say_json(&status_in_json(&status));
    } else {
        say_status(&status);
    }
    Ok(ExitCode::SUCCESS)
}

fn say_status(MigrationStatus { wanted_version, versions, unsettled }: &MigrationStatus) {
    if versions.is_empty() {
        return say("There are no tenants yet.");
    }
    for (version, tenants) in versions {
        let remark = match version - wanted_version {
            0 => "up to date",
            -1 => "one behind: served as it is",
            ..-1 => "too far behind: migrated at its first request",
            1 => "one ahead: served as it is",
            2.. => "of a program too new for this one: closed",
        };
        let noun = if *tenants == 1 { "tenant" } else { "tenants" };
        say(format_args!("schema version {version}: {tenants} {noun}, {remark}"));
    }
    if unsettled.is_empty() {
        return say("No migration failed.");
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["not migrated", "id", "server", "schema", "outcome", "at", "closed", "error"]);
    table.add_rows(unsettled.iter().map(|(tenant, attempt)| {
        [
            tenant.name.clone(),
            tenant.id.to_string(),
            tenant.place.server.clone(),
            tenant.schema_version.to_string(),
            attempt.outcome.as_str().to_owned(),
            Timestamp::from_seconds(attempt.ended_at.seconds()).to_string(),
            if tenant.quarantined_at.is_some() { "yes" } else { "no" }.to_owned(),
            attempt.error.clone().unwrap_or_default(),
        ]
    }));
    say(table);
}

fn status_in_json(MigrationStatus { wanted_version, versions, unsettled }: &MigrationStatus) -> Value {
    let versions: Vec<_> = versions.iter().map(|(version, tenants)| json!({ "schema_version": version, "tenants": tenants })).collect();
    let unsettled = unsettled.iter().map(|(tenant, attempt)| {
        let mut json = tenant_in_json(tenant);
        json["schema_version"] = tenant.schema_version.into();
        json["wanted_version"] = attempt.wanted_version.into();
        json["outcome"] = attempt.outcome.as_str().into();
        json["error"] = attempt.error.clone().into();
        json["began_at"] = attempt.began_at.to_string().into();
        json["ended_at"] = attempt.ended_at.to_string().into();
        json["quarantined_at"] = tenant.quarantined_at.map(|at| at.to_string()).into();
        json
    });
    json!({ "schema_version": wanted_version, "versions": versions, "unsettled": unsettled.collect::<Vec<_>>() })
}

async fn release(services: &OperatorServices, tenant: &Tenant) -> Result<ExitCode> {
    if !services.lift_quarantine(tenant.id).await.context("release the tenant")? {
        return Err(anyhow!("tenant {} ({}) is not closed because of a migration", tenant.name, tenant.id));
    }
    say(format_args!("Tenant {} ({}) is open again, with schema version {}.", tenant.name, tenant.id, tenant.schema_version));
    Ok(ExitCode::SUCCESS)
}
