//! `tenantry tenants list`

use std::process::ExitCode;

use anyhow::{Context, Result};
use domain::Timestamp;
use serde_json::{Value, json};
use services::{OperatorServices, TenantSummary};

use super::json::tenant_json;
use crate::commands::{align_right, print, print_json, table, yes_or_no};

/// The columns of numbers: the schema version and the number of members.
const NUMBERS: [usize; 2] = [5, 7];

/// Lists all tenants.
pub(super) async fn run(services: &OperatorServices, json: bool) -> Result<ExitCode> {
    let tenants = services.summarize_tenants().await.context("list the tenants")?;
    if json {
        let tenants: Vec<_> = tenants.iter().map(summary_json).collect();
        print_json(&json!({ "tenants": tenants }));
    } else if tenants.is_empty() {
        print("There are no tenants yet.");
    } else {
        let mut table = table(&["name", "id", "server", "database", "state", "schema", "active", "members", "created"]);
        align_right(&mut table, &NUMBERS);
        table.add_rows(tenants.iter().map(row));
        print(table);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(TenantSummary { tenant, member_count }: &TenantSummary) -> [String; 9] {
    [
        tenant.name.clone(),
        tenant.id.to_string(),
        tenant.place.server.clone(),
        tenant.place.database.to_string(),
        tenant.provisioning.as_str().to_owned(),
        tenant.schema_version.to_string(),
        yes_or_no(tenant.is_active).to_owned(),
        member_count.to_string(),
        Timestamp::from_seconds(tenant.created_at.seconds()).to_string(),
    ]
}

fn summary_json(summary: &TenantSummary) -> Value {
    let mut json = tenant_json(&summary.tenant);
    json["member_count"] = summary.member_count.into();
    json
}
