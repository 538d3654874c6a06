//! `tenantry tenants show`

use std::process::ExitCode;

use anyhow::{Context, Result};
use domain::{Member, Move, MoveState, Quota, StorageUse, Tenant, Timestamp, User};
use serde_json::{Value, json};
use services::{OperatorServices, TenantReport};

use super::{TenantArgument, find, json::tenant_json, quota::limit_text};
use crate::commands::{print, print_json, table, yes_or_no};

/// Shows a tenant with its members and storage use. Fails when its database is unavailable.
pub(super) async fn run(services: &OperatorServices, argument: &TenantArgument, json: bool) -> Result<ExitCode> {
    let tenant = find(services, &argument.tenant).await?;
    let report = services.report_tenant(&tenant).await.context("read the tenant")?;
    if json {
        print_json(&report_json(&tenant, &report));
    } else {
        print_report(&tenant, &report, services.settings().quota);
    }
    Ok(if report.contents.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(tenant: &Tenant, TenantReport { members, contents, on_the_move }: &TenantReport, default_quota: Quota) {
    print_tenant(tenant);
    if let Some(the_move) = on_the_move {
        print(format_args!("  {:<15} {}", "move", move_text(the_move)));
    }
    print_members(members);
    match contents {
        Ok(used) => print_use(used, tenant.limits.or(default_quota)),
        Err(error) => print(format_args!("Contents: its database is DOWN: {}", error.with_causes())),
    }
}

fn print_tenant(tenant: &Tenant) {
    print(format_args!("Tenant {}", tenant.name));
    print(format_args!("  id              {}", tenant.id));
    print(format_args!("  server          {}", tenant.place.server));
    print(format_args!("  database        {}", tenant.place.database));
    print(format_args!("  state           {}", tenant.provisioning.as_str()));
    print(format_args!("  schema version  {}", tenant.schema_version));
    if let Some(at) = tenant.quarantined_at {
        print(format_args!("  quarantined     {at}, because its migration failed: see `tenantry migrate status`"));
    }
    print(format_args!("  active          {}", yes_or_no(tenant.is_active)));
    print(format_args!("  max bytes       {}", limit_text(tenant.limits.bytes)));
    print(format_args!("  max documents   {}", limit_text(tenant.limits.documents)));
    print(format_args!("  created         {}", tenant.created_at));
    print(format_args!("  updated         {}", tenant.updated_at));
    print(format_args!("  created by      {}", tenant.created_by.map_or_else(|| "unknown".to_owned(), |id| id.to_string())));
}

fn move_text(Move { from_server, to_server, state, began_at, .. }: &Move) -> String {
    match state {
        MoveState::Kept => {
            format!("its source database is kept on server {from_server}: drop it with `tenantry tenants move --drop-former`")
        }
        MoveState::Abandoned => format!("aborted; the copy on server {to_server} is being dropped"),
        _ => format!("from server {from_server} to server {to_server} since {began_at}: {}", state.as_str()),
    }
}

fn print_members(members: &[Member<User>]) {
    if members.is_empty() {
        print("It has no members.");
        return;
    }
    let mut table = table(&["member", "name", "id", "role", "active", "joined"]);
    for Member { membership, of: user } in members {
        table.add_row([
            user.email.clone(),
            format!("{} {}", user.first_name, user.last_name),
            user.id.to_string(),
            membership.role.as_str().to_owned(),
            yes_or_no(user.is_active).to_owned(),
            Timestamp::from_seconds(membership.joined_at.seconds()).to_string(),
        ]);
    }
    print(table);
}

fn print_use(used: &StorageUse, quota: Quota) {
    let of = |quota: Option<u64>| quota.map_or_else(String::new, |max| format!(" of {max}"));
    let kept = used.documents - used.trashed_documents;
    print(format_args!("Contents: {kept} documents and {} in the trash{}", used.trashed_documents, of(quota.documents)));
    print(format_args!("Storage:  {} files, {} bytes{}", used.files, used.bytes, of(quota.bytes)));
    if used.reserved_documents > 0 || used.reserved_bytes > 0 {
        print(format_args!("Reserved: {} documents, {} bytes for uploads in progress", used.reserved_documents, used.reserved_bytes));
    }
}

fn report_json(tenant: &Tenant, TenantReport { members, contents, on_the_move }: &TenantReport) -> Value {
    let mut json = tenant_json(tenant);
    json["members"] = members.iter().map(member_json).collect();
    json["contents"] = contents.as_ref().ok().map(use_json).into();
    json["move"] = on_the_move.as_ref().map(move_json).into();
    json["problem"] = contents.as_ref().err().map(domain::Error::with_causes).into();
    json
}

fn member_json(Member { membership, of: user }: &Member<User>) -> Value {
    json!({
        "user_id": user.id.to_string(),
        "email": user.email,
        "first_name": user.first_name,
        "last_name": user.last_name,
        "is_active": user.is_active,
        "role": membership.role.as_str(),
        "joined_at": membership.joined_at.to_string(),
    })
}

fn use_json(used: &StorageUse) -> Value {
    json!({
        "documents": used.documents - used.trashed_documents,
        "trashed_documents": used.trashed_documents,
        "files": used.files,
        "bytes": used.bytes,
        "reserved_documents": used.reserved_documents,
        "reserved_bytes": used.reserved_bytes,
    })
}

fn move_json(Move { from_server, to_server, state, began_at, .. }: &Move) -> Value {
    json!({ "from": from_server, "to": to_server, "state": state.as_str(), "began_at": began_at.to_string() })
}
