//! `tenantry audit`

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use domain::{AuditEntry, AuditFilter, FieldErrors, PageRequest, TenantId, Timestamp, UserId};
use serde_json::{Value, json};

use crate::{
    assembly::assemble,
    commands::{print, print_json, table},
    config::Config,
};

/// Options of `tenantry audit`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Filter by action, e.g. login.failed
    #[arg(long, value_parser = AuditFilter::parse_action)]
    action: Option<String>,
    /// Filter by the id of the user who acted
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Filter by the id of a deleted tenant
    #[arg(long, value_name = "ID")]
    tenant: Option<TenantId>,
    /// Only entries at or after this time, e.g. 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<Timestamp>,
    /// Only entries before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<Timestamp>,
    /// Page (100 entries each)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=i64::from(u32::MAX)))]
    page: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows the platform's audit log, latest entries first.
///
/// # Errors
/// When the main database is unavailable.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let Arguments { action, user, tenant, from, to, page, json } = arguments;
    let filter = AuditFilter { action: action.clone(), user_id: *user, from: *from, to: *to };
    let request = PageRequest::parse(Some(*page), Some(PageRequest::MAX_PER_PAGE.into()), &mut FieldErrors::default());
    let found = services.list_platform_audit(*tenant, &filter, request).await?;
    if *json {
        print_json(&json!({ "total": found.total, "items": found.items.iter().map(entry_json).collect::<Vec<_>>() }));
    } else if found.items.is_empty() {
        print("No matching entries.");
    } else {
        let mut table = table(&["time", "action", "user", "tenant", "details"]);
        for AuditEntry { tenant_id, action, user_id, at, data, .. } in &found.items {
            let (user, tenant) = (user_id.map(|id| id.to_string()), tenant_id.map(|id| id.to_string()));
            table.add_row([&at.to_string(), action, &user.unwrap_or_default(), &tenant.unwrap_or_default(), data]);
        }
        print(table);
        if found.pages() > 1 {
            print(format_args!("Page {page} of {}; select another one with --page.", found.pages()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_time(text: &str) -> Result<Timestamp> {
    Timestamp::parse(text).ok_or_else(|| anyhow!("must be an RFC 3339 time, e.g. 2026-11-24T09:30:00Z"))
}

fn entry_json(AuditEntry { event_id, tenant_id, action, user_id, at, data }: &AuditEntry) -> Value {
    json!({
        "id": event_id.to_string(),
        "tenant_id": tenant_id.map(|id| id.to_string()),
        "action": action,
        "user_id": user_id.map(|id| id.to_string()),
        "occurred_at": at.to_string(),
        "data": serde_json::from_str::<Value>(data).unwrap_or_default(),
    })
}
