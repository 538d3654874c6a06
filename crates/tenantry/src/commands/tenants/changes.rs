//! `tenantry tenants create`, `activate` and `deactivate`

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use domain::{Email, Error, Noun, TenantName};
use services::OperatorServices;

use super::{TenantArgument, find, json::tenant_json};
use crate::commands::{print, print_json};

/// Options of `tenantry tenants create`.
#[derive(clap::Args)]
pub struct Create {
    /// The tenant's name
    name: String,
    /// The e-mail address of the user who becomes its admin
    #[arg(long, value_name = "EMAIL")]
    admin: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Creates a tenant with its database.
pub(super) async fn create(services: &OperatorServices, Create { name, admin, json }: &Create) -> Result<ExitCode> {
    let name = TenantName::parse(name).map_err(|problem| anyhow!("the name {problem}"))?;
    let admin = Email::parse(admin).map_err(|problem| anyhow!("the address {problem}"))?;
    let tenant = match services.create_tenant_for_address(&admin, &name).await {
        Err(Error::NotFound(Noun::User)) => bail!("no active user has the address {admin}"),
        created => created.context("create the tenant")?.of,
    };
    if *json {
        print_json(&tenant_json(&tenant));
    } else {
        print(format_args!("Created tenant {} for {admin}: id {}, database {}", tenant.name, tenant.id, tenant.place.database));
    }
    Ok(ExitCode::SUCCESS)
}

/// Activates or deactivates a tenant.
pub(super) async fn set_active(services: &OperatorServices, argument: &TenantArgument, is_active: bool) -> Result<ExitCode> {
    let tenant = find(services, &argument.tenant).await?;
    let changed = match services.set_tenant_active(tenant.id, is_active).await {
        Err(Error::NotFound(_)) => bail!("tenant {} ({}) is being deleted", tenant.name, tenant.id),
        changed => changed.context("change the tenant")?,
    };
    let state = match (changed, is_active) {
        (true, true) => "is active again",
        (true, false) => "is now inactive; its data is kept",
        (false, true) => "is already active",
        (false, false) => "is already inactive",
    };
    print(format_args!("Tenant {} ({}) {state}.", tenant.name, tenant.id));
    Ok(ExitCode::SUCCESS)
}
