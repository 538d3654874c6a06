//! `tenantry tenants move`

mod problem;
mod progress;

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, anyhow, bail};
use clap::ArgGroup;
use domain::{Tenant, TenantLocation};
use serde_json::{Value, json};
use services::{MoveError, Moved, OperatorServices, TableSum};

use self::{problem::describe, progress::Progress};
use super::{TenantArgument, find, json::tenant_json, selection::confirm};
use crate::commands::{print, print_json};

/// Options of `tenantry tenants move`.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("action").required(true)))]
pub struct Arguments {
    #[command(flatten)]
    tenant: TenantArgument,
    /// The target server, as named in TENANT_DATABASE_URLS
    #[arg(long, value_name = "SERVER", group = "action")]
    to: Option<String>,
    /// Maximum pause of writes in seconds, for the last changes and the comparison; if it does not suffice, the move is aborted.
    /// Afterwards, writes wait another 3 s until every instance knows the new location
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    max_pause: u32,
    /// Drop the source database, once you are sure of the new one
    #[arg(long, group = "action")]
    drop_former: bool,
    /// Return to the source database; changes since the move are lost
    #[arg(long, alias = "back", group = "action")]
    rollback: bool,
    /// Confirm --rollback with the tenant's name instead of a prompt
    #[arg(long, value_name = "NAME", requires = "rollback")]
    confirm: Option<String>,
    /// Forget the source database on a server that no longer exists, without dropping it
    #[arg(long, group = "action")]
    forget: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Moves a tenant, or decides about the source database of an earlier move.
pub(super) async fn run(services: &OperatorServices, arguments: &Arguments) -> Result<ExitCode> {
    let tenant = find(services, &arguments.tenant.tenant).await?;
    match &arguments.to {
        Some(to) => {
            let max_pause = Duration::from_secs(arguments.max_pause.into());
            Box::pin(move_to(services, &tenant, to, max_pause, arguments.json)).await
        }
        None => finish(services, &tenant, arguments).await,
    }
}

/// Drops the source database, rolls back to it, or forgets it.
async fn finish(services: &OperatorServices, tenant: &Tenant, arguments: &Arguments) -> Result<ExitCode> {
    let Tenant { id, name, .. } = tenant;
    let (outcome, result) = if arguments.drop_former {
        ("dropped", services.drop_source_database(tenant).await)
    } else if arguments.rollback {
        if !services.has_source_database(*id).await? {
            bail!("tenant {name} ({id}): {}", describe(&MoveError::NoSource));
        }
        confirm(tenant, arguments.confirm.as_deref(), "loses all changes since the move of", "nothing was changed")?;
        ("returned_to", services.roll_back_move(tenant).await)
    } else {
        ("forgotten", services.forget_source_database(tenant).await)
    };
    let TenantLocation { server, database, .. } = result.map_err(|problem| anyhow!("tenant {name} ({id}): {}", describe(&problem)))?;
    if arguments.json {
        print_json(&json!({ "id": id.to_string(), outcome: { "server": server, "database": database.as_str() } }));
        return Ok(ExitCode::SUCCESS);
    }
    match outcome {
        "dropped" => print(format_args!("Dropped the source database {database} on server {server}.")),
        "returned_to" => print(format_args!("Tenant {name} ({id}) is on server {server} again.")),
        _ => print(format_args!(
            "Forgot the database {database} on server {server}. If that server comes back, drop the database there yourself."
        )),
    }
    Ok(ExitCode::SUCCESS)
}

async fn move_to(services: &OperatorServices, tenant: &Tenant, to: &str, max_pause: Duration, json: bool) -> Result<ExitCode> {
    let Tenant { id, name, .. } = tenant;
    let progress = Progress::new(json);
    let watch = |step| progress.report(step);
    let moved = tokio::select! {
        moved = Box::pin(services.move_tenant(*id, to, max_pause, &watch)) => moved,
        _ = tokio::signal::ctrl_c() => {
            progress.end();
            services.settle_move(*id).await?;
            let now = find(services, &id.to_string()).await?;
            bail!("interrupted: tenant {name} ({id}) is on server {}", now.location.server)
        }
    };
    progress.end();
    match moved {
        Ok(moved) if json => print_json(&moved_json(&moved)),
        Ok(moved) => print_moved(&moved),
        Err(MoveError::ThereAlready(_)) if json => print_json(&not_moved_json(tenant)),
        Err(MoveError::ThereAlready(server)) => print(format_args!("Tenant {name} ({id}) is already on server {server}.")),
        Err(problem @ MoveError::Unfinished { .. }) => bail!("tenant {name} ({id}): {}", describe(&problem)),
        Err(problem) => bail!("tenant {name} ({id}) was not moved: {}", describe(&problem)),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_moved(Moved { tenant, source, tables, copied_in, paused_for }: &Moved) {
    print(format_args!("Tenant {} ({}) is now on server {}.", tenant.name, tenant.id, tenant.location.server));
    for TableSum { table, rows, sha256 } in tables {
        print(format_args!("  {table}: {rows} rows, SHA-256 {}, identical in both", hex::encode(sha256)));
    }
    let (copied_in, paused_for) = (copied_in.as_secs_f64(), paused_for.as_secs_f64());
    print(format_args!("Copied in {copied_in:.1} s while the tenant was in use; then writes waited for {paused_for:.1} s."));
    print(format_args!("The source database {} on server {} is kept, write-blocked.", source.database, source.server));
    print("To drop it, or to roll back:");
    print(format_args!("  tenantry tenants move {} --drop-former", tenant.id));
    print(format_args!("  tenantry tenants move {} --rollback", tenant.id));
}

fn moved_json(Moved { tenant, source, tables, copied_in, paused_for }: &Moved) -> Value {
    let table = |TableSum { table, rows, sha256 }: &TableSum| json!({ "table": table, "rows": rows, "sha256": hex::encode(sha256) });
    let mut json = tenant_json(tenant);
    json["moved"] = true.into();
    json["former_server"] = source.server.as_str().into();
    json["tables"] = tables.iter().map(table).collect();
    json["copied_in_ms"] = json!(milliseconds(*copied_in));
    json["writes_paused_for_ms"] = json!(milliseconds(*paused_for));
    json
}

fn not_moved_json(tenant: &Tenant) -> Value {
    let mut json = tenant_json(tenant);
    json["moved"] = false.into();
    json
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
