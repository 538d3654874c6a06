//! `tenantry verify`

use std::process::ExitCode;

use anyhow::Result;
use domain::Tenant;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use services::{Finding, ObjectProblem, OperatorServices, Verification};

use crate::{
    assembly::assemble,
    commands::{print, print_json, tenants::find_selected},
    config::Config,
};

/// Options of `tenantry verify`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Read every object and check its hash
    #[arg(long)]
    deep: bool,
    /// Verify this tenant only (id, database name, or name if unique)
    #[arg(long)]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The totals and problems of all tenants.
#[derive(Default)]
struct Report<'a> {
    files: u64,
    bytes: u64,
    objects: u64,
    findings: Vec<(&'a Tenant, Finding)>,
    /// Tenants that were not verified.
    failed: Vec<String>,
}

/// Compares the files of every tenant with the objects.
///
/// # Errors
/// When the main database is unavailable.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let tenants = find_selected(&services, arguments.tenant.as_deref()).await?;
    let report = verify(&services, &tenants, arguments.deep).await?;
    if arguments.json {
        print_json(&report_json(&report, arguments.deep));
    } else {
        print_report(&report, tenants.len(), arguments.deep);
    }
    Ok(if report.failed.is_empty() && report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn verify<'a>(services: &OperatorServices, tenants: &'a [Tenant], deep: bool) -> Result<Report<'a>> {
    let bar = ProgressBar::new(tenants.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} tenants, {msg}")?);
    let mut report = Report::default();
    for tenant in tenants {
        let progress = |so_far: &Verification| {
            bar.set_message(format!("{} files, {} bytes", report.files + so_far.files, report.bytes + so_far.bytes));
        };
        match services.verify_tenant(tenant, deep, &progress).await {
            Ok(Verification { files, bytes, objects, findings }) => {
                report.files += files;
                report.bytes += bytes;
                report.objects += objects;
                report.findings.extend(findings.into_iter().map(|finding| (tenant, finding)));
            }
            Err(error) => report.failed.push(format!("{}: {}", tenant.place.database, error.with_causes())),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report)
}

fn print_report(Report { files, bytes, objects, findings, failed }: &Report<'_>, tenants: usize, deep: bool) {
    for (tenant, Finding { key, problem }) in findings {
        print(format_args!("{}: {key}: {}", tenant.place.database, describe(problem)));
    }
    failed.iter().for_each(print);
    let verb = if deep { "Compared and read" } else { "Compared" };
    let problems = findings.len();
    print(format_args!("{verb} {files} files ({bytes} bytes) of {tenants} tenants with {objects} objects: {problems} problems"));
}

fn report_json(Report { files, bytes, objects, findings, failed }: &Report<'_>, deep: bool) -> Value {
    let finding = |(tenant, Finding { key, problem }): &(&Tenant, Finding)| json!({ "tenant_id": tenant.id.to_string(), "key": key, "problem": name(problem) });
    let findings: Vec<Value> = findings.iter().map(finding).collect();
    json!({ "deep": deep, "files": files, "bytes": bytes, "objects": objects, "findings": findings, "failed": failed })
}

fn name(problem: &ObjectProblem) -> &'static str {
    match problem {
        ObjectProblem::Missing => "missing",
        ObjectProblem::Unknown => "unknown",
        ObjectProblem::WrongSize { .. } => "wrong_size",
        ObjectProblem::WrongHash => "wrong_hash",
    }
}

fn describe(problem: &ObjectProblem) -> String {
    match problem {
        ObjectProblem::Missing => "MISSING: a document's content is lost".to_owned(),
        ObjectProblem::Unknown => "unknown: nothing in the database refers to it".to_owned(),
        ObjectProblem::WrongSize { expected, found } => format!("WRONG SIZE: {found} bytes instead of {expected}"),
        ObjectProblem::WrongHash => "WRONG HASH: its content was changed or damaged".to_owned(),
    }
}
