//! `tenantry migrate status` and `release`

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use domain::{Tenant, Timestamp};
use serde_json::{Value, json};
use services::{MigrationStatus, OperatorServices};

use crate::commands::{print, print_json, table, tenants::tenant_reference_json, yes_or_no};

/// Shows the schema versions of the fleet, and migrations that failed or were postponed.
pub(super) async fn run(services: &OperatorServices, json: bool) -> Result<ExitCode> {
    let status = services.migration_status().await.context("read the state of the migrations")?;
    if json {
        print_json(&status_json(&status));
    } else {
        print_status(&status);
    }
    Ok(ExitCode::SUCCESS)
}

/// Lifts the quarantine of a tenant.
pub(super) async fn lift_quarantine(services: &OperatorServices, tenant: &Tenant) -> Result<ExitCode> {
    let Tenant { id, name, schema_version, .. } = tenant;
    if !services.lift_quarantine(*id).await.context("lift the quarantine")? {
        return Err(anyhow!("tenant {name} ({id}) is not quarantined"));
    }
    print(format_args!("Lifted the quarantine of tenant {name} ({id}), whose schema version is {schema_version}."));
    Ok(ExitCode::SUCCESS)
}

fn print_status(MigrationStatus { wanted_version, versions, unsettled }: &MigrationStatus) {
    if versions.is_empty() {
        return print("There are no tenants yet.");
    }
    for (version, tenants) in versions {
        let noun = if *tenants == 1 { "tenant" } else { "tenants" };
        print(format_args!("schema version {version}: {tenants} {noun}, {}", remark(version - wanted_version)));
    }
    if unsettled.is_empty() {
        return print("No migration failed.");
    }
    let mut table = table(&["not migrated", "id", "server", "schema", "outcome", "at", "quarantined", "error"]);
    table.add_rows(unsettled.iter().map(|(tenant, attempt)| {
        [
            tenant.name.clone(),
            tenant.id.to_string(),
            tenant.place.server.clone(),
            tenant.schema_version.to_string(),
            attempt.outcome.as_str().to_owned(),
            Timestamp::from_seconds(attempt.ended_at.seconds()).to_string(),
            yes_or_no(tenant.quarantined_at.is_some()).to_owned(),
            attempt.error.clone().unwrap_or_default(),
        ]
    }));
    print(table);
}

/// What a schema version that differs by so much from the program's means for a tenant.
fn remark(difference: i64) -> &'static str {
    match difference {
        0 => "up to date",
        -1 => "one version behind, in service",
        ..-1 => "too far behind: migrated on the first request",
        1 => "one version ahead, in service",
        2.. => "too new for this program: unavailable",
    }
}

fn status_json(MigrationStatus { wanted_version, versions, unsettled }: &MigrationStatus) -> Value {
    let versions: Vec<_> = versions.iter().map(|(version, tenants)| json!({ "schema_version": version, "tenants": tenants })).collect();
    let unsettled = unsettled.iter().map(|(tenant, attempt)| {
        let mut json = tenant_reference_json(tenant);
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
