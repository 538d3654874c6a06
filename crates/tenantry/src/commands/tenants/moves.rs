//! `tenantry tenants move`

mod problem;

use std::{
    io::{IsTerminal, stderr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use clap::ArgGroup;
use domain::{Tenant, TenantPlace};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use services::{MoveError, MoveStep, Moved, Services, TableSum};

use self::problem::describe;
use super::{Which, confirm, find};
use crate::commands::{complain, say, say_json};

/// Options of `tenantry tenants move`.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("what").required(true)))]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
    /// The server that it goes to, as TENANT_DATABASE_URLS names it
    #[arg(long, value_name = "SERVER", group = "what")]
    to: Option<String>,
    /// How many seconds writes may wait for the last changes and the comparison, before it is given up; they wait 3 s more until
    /// every instance knows
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    max_pause: u32,
    /// Drop the database that the tenant has left, once you are sure of the new one
    #[arg(long, group = "what")]
    drop_former: bool,
    /// Return to the database that the tenant has left: what was written since is lost
    #[arg(long, group = "what")]
    back: bool,
    /// The tenant's name, which confirms --back, instead of typing it
    #[arg(long, value_name = "NAME", requires = "back")]
    confirm: Option<String>,
    /// Forget what a move has left on a server that is gone for good, without dropping it
    #[arg(long, group = "what")]
    forget: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Moves a tenant, or does something about what it left.
pub(super) async fn run(services: &Services, arguments: &Arguments) -> Result<ExitCode> {
    let tenant = find(services, &arguments.which).await?;
    let Arguments { json, drop_former, back, .. } = arguments;
    if let Some(to) = &arguments.to {
        let max_pause = Duration::from_secs(arguments.max_pause.into());
        return Box::pin(move_to(services, &tenant, to, max_pause, *json)).await;
    }
    let (told, done) = if *drop_former {
        ("dropped", services.drop_former(&tenant).await)
    } else if *back {
        if !services.has_former(tenant.id).await? {
            bail!("tenant {} ({}): {}", tenant.name, tenant.id, MoveError::NoFormer);
        }
        confirm(&tenant, arguments.confirm.as_deref(), "loses all that was written since the move of", "nothing was changed")?;
        ("returned_to", services.return_to_former(&tenant).await)
    } else {
        ("forgotten", services.forget_former(&tenant).await)
    };
    let TenantPlace { server, database, .. } =
        done.map_err(|problem| anyhow!("tenant {} ({}): {}", tenant.name, tenant.id, describe(&problem)))?;
    if *json {
        say_json(&json!({ "id": tenant.id.to_string(), told: { "server": server, "database": database.as_str() } }));
    } else {
        match told {
            "dropped" => say(format_args!("Dropped the former database {database} on server {server}.")),
            "returned_to" => say(format_args!("Tenant {} ({}) is on server {server} again.", tenant.name, tenant.id)),
            _ => say(format_args!(
                "Forgot the database {database} on server {server}. Should that server come back, drop it there yourself."
            )),
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn move_to(services: &Services, tenant: &Tenant, to: &str, max_pause: Duration, as_json: bool) -> Result<ExitCode> {
    let progress = Progress::new(as_json);
    let watch = |step| progress.note(step);
    let moved = tokio::select! {
        moved = Box::pin(services.move_tenant(tenant.id, to, max_pause, &watch)) => moved,
        _ = tokio::signal::ctrl_c() => {
            progress.end();
            services.settle_move(tenant.id).await?;
            let now = find(services, &Which { tenant: tenant.id.to_string() }).await?;
            bail!("interrupted: tenant {} ({}) is on server {}", tenant.name, tenant.id, now.place.server)
        }
    };
    progress.end();
    let moved = match moved {
        Ok(moved) => moved,
        Err(MoveError::ThereAlready(server)) => {
            if as_json {
                let mut json = super::in_json(tenant);
                json["moved"] = false.into();
                say_json(&json);
            } else {
                say(format_args!("Tenant {} ({}) is on server {server} already.", tenant.name, tenant.id));
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(problem @ MoveError::Unfinished { .. }) => bail!("tenant {} ({}): {problem}", tenant.name, tenant.id),
        Err(problem) => bail!("tenant {} ({}) was not moved: {}", tenant.name, tenant.id, describe(&problem)),
    };
    if as_json {
        say_json(&in_json(&moved));
    } else {
        say_moved(&moved);
    }
    Ok(ExitCode::SUCCESS)
}

fn say_moved(Moved { tenant, former, tables, copied_in, paused_for }: &Moved) {
    say(format_args!("Tenant {} ({}) is on server {} now.", tenant.name, tenant.id, tenant.place.server));
    for TableSum { table, rows, sha256 } in tables {
        say(format_args!("  {table}: {rows} rows, SHA-256 {}, equal in both", hex::encode(sha256)));
    }
    say(format_args!(
        "Copied in {:.1} s while work went on; writes then waited {:.1} s.",
        copied_in.as_secs_f64(),
        paused_for.as_secs_f64()
    ));
    say(format_args!(
        "Its former database {} is kept on server {}, closed for writing. To drop it, or to return:",
        former.database, former.server
    ));
    say(format_args!("  tenantry tenants move {} --drop-former", tenant.id));
    say(format_args!("  tenantry tenants move {} --back", tenant.id));
}

fn in_json(Moved { tenant, former, tables, copied_in, paused_for }: &Moved) -> Value {
    let mut json = super::in_json(tenant);
    let table = |TableSum { table, rows, sha256 }: &TableSum| json!({ "table": table, "rows": rows, "sha256": hex::encode(sha256) });
    json["moved"] = true.into();
    json["former_server"] = former.server.as_str().into();
    json["tables"] = tables.iter().map(table).collect();
    json["copied_in_ms"] = json!(milliseconds(*copied_in));
    json["writes_paused_for_ms"] = json!(milliseconds(*paused_for));
    json
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How a move is going: a spinner on a terminal, lines elsewhere, on standard error.
struct Progress {
    spinner: ProgressBar,
    /// Whether lines are wanted: nobody sees the spinner, and no program reads along.
    in_lines: bool,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(200));
        Self { spinner, in_lines: !quiet && !stderr().is_terminal() }
    }

    fn note(&self, step: MoveStep) {
        let told = match step {
            MoveStep::Made => "made the new database; copying".to_owned(),
            // Too many for lines.
            MoveStep::Copied(0) => return,
            MoveStep::Copied(rows) => return self.spinner.set_message(format!("{rows} rows copied")),
            MoveStep::Paused => "writes wait from now on".to_owned(),
            MoveStep::Compared(rows) => format!("copied {rows} rows that had changed; both databases are equal"),
            MoveStep::Switched => "the tenant is in its new database; writes go on when every instance knows".to_owned(),
        };
        self.spinner.set_message(told.clone());
        if self.in_lines {
            complain(&told);
        }
    }

    fn end(&self) {
        self.spinner.finish_and_clear();
    }
}
