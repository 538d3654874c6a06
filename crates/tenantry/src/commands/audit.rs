//! `tenantry audit`

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use domain::{AuditEntry, AuditFilter, FieldErrors, PageRequest, TenantId, Timestamp, UserId};
use serde_json::{Value, json};

use crate::{
    assembly::assemble,
    commands::{say, say_json, table},
    config::Config,
};

/// Options of `tenantry audit`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only what was done so, as in login.failed
    #[arg(long, value_parser = AuditFilter::parse_action)]
    action: Option<String>,
    /// Only what the user with this id did
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Only what concerns the tenant with this id, that is no more
    #[arg(long, value_name = "ID")]
    tenant: Option<TenantId>,
    /// Only what was done then or later, as in 2026-11-24T09:30:00Z
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    from: Option<Timestamp>,
    /// Only what was done before
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    to: Option<Timestamp>,
    /// Which hundred
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=i64::from(u32::MAX)))]
    page: i64,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Shows the platform's audit log, the latest entries first.
///
/// # Errors
/// When the main database is down.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    let Arguments { action, user, tenant, from, to, page, json } = arguments;
    let filter = AuditFilter { action: action.clone(), user_id: *user, from: *from, to: *to };
    let request = PageRequest::parse(Some(*page), Some(PageRequest::MAX_PER_PAGE.into()), &mut FieldErrors::default());
    let found = services.list_platform_audit(*tenant, &filter, request).await?;
    if *json {
        say_json(&json!({ "total": found.total, "items": found.items.iter().map(in_json).collect::<Vec<_>>() }));
    } else if found.items.is_empty() {
        say("Nothing of that kind was done.");
    } else {
        let mut table = table(&["when", "action", "user", "tenant", "particulars"]);
        for AuditEntry { tenant_id, action, user_id, at, data, .. } in &found.items {
            let (user, tenant) = (user_id.map(|id| id.to_string()), tenant_id.map(|id| id.to_string()));
            table.add_row([&at.to_string(), action, &user.unwrap_or_default(), &tenant.unwrap_or_default(), data]);
        }
        say(table);
        if found.pages() > 1 {
            say(format_args!("Page {page} of {}: see --page.", found.pages()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn moment(text: &str) -> Result<Timestamp> {
    Timestamp::parse(text).ok_or_else(|| anyhow!("must be a moment as in RFC 3339, such as 2026-11-24T09:30:00Z"))
}

fn in_json(AuditEntry { event_id, tenant_id, action, user_id, at, data }: &AuditEntry) -> Value {
    json!({
        "id": event_id.to_string(),
        "tenant_id": tenant_id.map(|id| id.to_string()),
        "action": action,
        "user_id": user_id.map(|id| id.to_string()),
        "occurred_at": at.to_string(),
        "data": serde_json::from_str::<Value>(data).unwrap_or_default(),
    })
}
