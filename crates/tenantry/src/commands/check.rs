//! `tenantry check`

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::{Map, Value, json};
use services::DependencyStatus;

use crate::{
    assembly::assemble,
    commands::{print, print_json, problem::describe},
    config::{Config, Setting},
    events,
};

/// Options of `tenantry check`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows the configuration and checks every dependency. Fails if one is down.
///
/// # Errors
/// When the data directory cannot be used.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let mut dependencies = services.check_dependencies().await;
    if let Some(probe) = events::probe(config)? {
        dependencies.push(probe().await);
    }
    let ready = dependencies.iter().all(|dependency| dependency.problem.is_none());
    if arguments.json {
        print_json(&report_json(config.describe(), &dependencies, ready));
    } else {
        print_report(config.describe(), &dependencies);
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(settings: &[Setting], dependencies: &[DependencyStatus]) {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(["setting", "value", "meaning"]);
    for Setting { name, value, meaning } in settings {
        table.add_row([name, value.as_str(), meaning]);
    }
    print(table);
    for DependencyStatus { name, problem } in dependencies {
        match problem {
            None => print(format_args!("{name}: up")),
            Some(problem) => print(format_args!("{name}: DOWN: {}", describe(problem))),
        }
    }
}

fn report_json(settings: &[Setting], dependencies: &[DependencyStatus], ready: bool) -> Value {
    let settings: Map<_, _> = settings.iter().map(|setting| (setting.name.to_owned(), setting.value.as_str().into())).collect();
    let dependency = |DependencyStatus { name, problem }: &DependencyStatus| {
        let problem = problem.as_ref().map(describe);
        (name.clone(), json!({ "up": problem.is_none(), "problem": problem }))
    };
    let dependencies: Map<_, _> = dependencies.iter().map(dependency).collect();
    json!({ "settings": settings, "dependencies": dependencies, "ready": ready })
}
