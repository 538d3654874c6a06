//! `tenantry verify`

use std::process::ExitCode;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use services::{Finding, ObjectProblem, Verification};

use crate::{
    assembly::assemble,
    commands::{gc::chosen, say, say_json},
    config::Config,
};

/// Options of `tenantry verify`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Read every object and check its hash
    #[arg(long)]
    deep: bool,
    /// Only this tenant's: its id, its database's name, or its name when no other tenant has it
    #[arg(long)]
    tenant: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Compares every tenant's files with the objects. Findings are told as they are found.
///
/// # Errors
/// When the main database is down.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let tenants = chosen(&services, arguments.tenant.as_deref()).await?;
    let bar = ProgressBar::new(tenants.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} tenants, {msg}")?);
    let (mut files, mut bytes, mut objects, mut findings, mut failed) = (0, 0, 0, Vec::new(), Vec::new());
    for tenant in &tenants {
        let told = |so_far: &Verification| {
            bar.set_message(format!("{} files, {} bytes", files + so_far.files, bytes + so_far.bytes));
        };
        match services.verify_tenant(tenant, arguments.deep, &told).await {
            Ok(verification) => {
                files += verification.files;
                bytes += verification.bytes;
                objects += verification.objects;
                findings.extend(verification.findings.into_iter().map(|finding| (tenant, finding)));
            }
            Err(error) => failed.push(format!("{}: {}", tenant.place.database, error.with_causes())),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if arguments.json {
        let findings: Vec<Value> = findings
            .iter()
            .map(|(tenant, Finding { key, problem })| json!({ "tenant_id": tenant.id.to_string(), "key": key, "problem": name(problem) }))
            .collect();
        let answer =
            json!({ "deep": arguments.deep, "files": files, "bytes": bytes, "objects": objects, "findings": findings, "failed": failed });
        say_json(&answer);
    } else {
        for (tenant, Finding { key, problem }) in &findings {
            say(format_args!("{}: {key}: {}", tenant.place.database, in_words(problem)));
        }
        failed.iter().for_each(say);
        let how = if arguments.deep { "read" } else { "compared" };
        say(format_args!(
            "{} tenants: {files} files ({bytes} bytes) {how} with {objects} objects: {} problems",
            tenants.len(),
            findings.len()
        ));
    }
    Ok(if failed.is_empty() && findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn name(problem: &ObjectProblem) -> &'static str {
    match problem {
        ObjectProblem::Missing => "missing",
        ObjectProblem::Unknown => "unknown",
        ObjectProblem::WrongSize { .. } => "wrong_size",
        ObjectProblem::WrongHash => "wrong_hash",
    }
}

fn in_words(problem: &ObjectProblem) -> String {
    match problem {
        ObjectProblem::Missing => "MISSING: a document's content is lost".to_owned(),
        ObjectProblem::Unknown => "unknown: nothing in the database refers to it".to_owned(),
        ObjectProblem::WrongSize { expected, found } => format!("WRONG SIZE: {found} bytes instead of {expected}"),
        ObjectProblem::WrongHash => "WRONG HASH: its content was changed or damaged".to_owned(),
    }
}
