//! `tenantry check`

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::Table;
use serde_json::json;

use crate::{
    assembly::assemble,
    commands::{problem::describe, say, say_json},
    config::Config,
    events,
};

/// Options of `tenantry check`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Shows the configuration, and asks every dependency whether it is there. Fails when one is not.
///
/// # Errors
/// When the data directory can't be used.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let (services, _) = assemble(config)?;
    let mut dependencies = services.check_dependencies().await;
    if let Some(ask) = events::probe(config)? {
        dependencies.push(ask().await);
    }
    let all_up = dependencies.iter().all(|dependency| dependency.problem.is_none());
    let problem = |problem: &Option<domain::Error>| problem.as_ref().map(describe);
    if arguments.json {
        let settings: serde_json::Map<_, _> =
            config.describe().into_iter().map(|setting| (setting.name.to_owned(), setting.value.into())).collect();
        let dependencies: serde_json::Map<_, _> = dependencies
            .iter()
            .map(|dependency| {
                (dependency.name.clone(), json!({ "up": dependency.problem.is_none(), "problem": problem(&dependency.problem) }))
            })
            .collect();
        say_json(&json!({ "settings": settings, "dependencies": dependencies, "ready": all_up }));
    } else {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(["setting", "value", "meaning"]);
        for setting in config.describe() {
            table.add_row([setting.name, &setting.value, setting.meaning]);
        }
        say(table);
        for dependency in &dependencies {
            match problem(&dependency.problem) {
                None => say(format_args!("{}: up", dependency.name)),
                Some(problem) => say(format_args!("{}: DOWN: {problem}", dependency.name)),
            }
        }
    }
    Ok(if all_up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
