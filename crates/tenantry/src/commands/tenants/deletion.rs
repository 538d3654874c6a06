//! `tenantry tenants delete`

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use domain::{Provisioning, Tenant, Tombstone};
use serde_json::{Value, json};
use services::{Deletion, OperatorServices};

use super::{
    TenantArgument,
    selection::{confirm, deleted, find_existing, find_tombstone, unknown},
};
use crate::commands::{print, print_json};

/// Options of `tenantry tenants delete`.
#[derive(clap::Args)]
pub struct Delete {
    #[command(flatten)]
    tenant: TenantArgument,
    /// Required: delete all data of the tenant
    #[arg(long)]
    pub(super) hard: bool,
    /// Confirm with the tenant's name instead of a prompt
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Deletes a tenant, or checks what is left of a deleted one. Fails when anything is left.
pub(super) async fn run(services: &OperatorServices, arguments: &Delete) -> Result<ExitCode> {
    let name = &arguments.tenant.tenant;
    let (deletion, heading) = match find_existing(services, name).await? {
        Some(tenant) => {
            // A deletion that was confirmed before needs no second confirmation; a wrong name is still refused.
            if arguments.confirm.is_some() || tenant.provisioning != Provisioning::Deleting {
                confirm(&tenant, arguments.confirm.as_deref(), "deletes all data of", "nothing was deleted")?;
            }
            (delete(services, &tenant).await?, format!("Tenant {} ({}) is deleted:", tenant.name, tenant.id))
        }
        None => {
            let tombstone = find_tombstone(services, name).await?.ok_or_else(|| unknown(name))?;
            let heading = format!("Nothing to do: {}:", deleted(&tombstone));
            (services.check_deletion(tombstone).await.context("check the deletion")?, heading)
        }
    };
    if arguments.json {
        print_json(&deletion_json(&deletion));
    } else {
        print(heading);
        print_deletion(&deletion);
    }
    Ok(if deletion.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn delete(services: &OperatorServices, tenant: &Tenant) -> Result<Deletion> {
    if let Err(error) = services.delete_tenant(tenant).await {
        let (name, id, problem) = (&tenant.name, tenant.id, error.with_causes());
        match services.find_tenants(&id.to_string()).await?.first() {
            Some(now) if now.provisioning != Provisioning::Deleting => bail!("tenant {name} ({id}) was not deleted: {problem}"),
            _ => bail!("tenant {name} ({id}) is only partly deleted; run the same command again to continue: {problem}"),
        }
    }
    let tombstone = services.find_tombstone(tenant.id).await?.context("the deleted tenant has no tombstone")?;
    services.check_deletion(tombstone).await.context("check the deletion")
}

fn print_deletion(deletion: &Deletion) {
    let (place, left) = (&deletion.tombstone.place, "LEFT");
    let database = if deletion.database_is_there { left } else { "gone" };
    print(format_args!("  database {} on server {}: {database}", place.database, place.server));
    match deletion.objects {
        0 => print("  objects: gone"),
        objects => print(format_args!("  objects: {objects} {left}; `tenantry gc` removes them")),
    }
    print(format_args!("  row and memberships: {}", if deletion.row_is_there { left } else { "gone" }));
}

fn deletion_json(deletion: &Deletion) -> Value {
    let Tombstone { name, place, created_at, deleted_at, deleted_by } = &deletion.tombstone;
    json!({
        "id": place.tenant_id.to_string(),
        "name": name,
        "server": place.server,
        "database": place.database.as_str(),
        "created_at": created_at.to_string(),
        "deleted_at": deleted_at.to_string(),
        "deleted_by": deleted_by.map(|id| id.to_string()),
        "left": { "database": deletion.database_is_there, "objects": deletion.objects, "row": deletion.row_is_there },
        "is_complete": deletion.is_complete(),
    })
}
