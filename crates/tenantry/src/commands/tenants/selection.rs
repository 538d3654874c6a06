//! Finding the tenant that an argument names, and confirming its name.

use std::io::{IsTerminal, stdin};

use anyhow::{Context, Result, anyhow, bail};
use dialoguer::Input;
use domain::{Tenant, Tombstone};
use services::OperatorServices;

/// Selects one tenant.
#[derive(clap::Args)]
pub struct TenantArgument {
    /// The tenant's id, its database name, or its name if unique
    pub(crate) tenant: String,
}

/// The tenant that was named.
pub(crate) async fn find(services: &OperatorServices, name: &str) -> Result<Tenant> {
    if let Some(tenant) = find_existing(services, name).await? {
        return Ok(tenant);
    }
    Err(find_tombstone(services, name).await?.map_or_else(|| unknown(name), |tombstone| anyhow!(deleted(&tombstone))))
}

/// The tenant that was named, or else all tenants except those being deleted.
pub(crate) async fn find_selected(services: &OperatorServices, name: Option<&str>) -> Result<Vec<Tenant>> {
    match name {
        Some(name) => Ok(vec![find(services, name).await?]),
        None => services.list_kept_tenants().await.context("list the tenants"),
    }
}

pub(super) async fn find_existing(services: &OperatorServices, name: &str) -> Result<Option<Tenant>> {
    let mut found = services.find_tenants(name).await.context("find the tenant")?;
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|tenant| tenant.id.to_string()).collect();
        bail!("{} tenants have the name {name:?}; use an id instead: {}", ids.len(), ids.join(", "));
    }
    Ok(found.pop())
}

pub(super) async fn find_tombstone(services: &OperatorServices, name: &str) -> Result<Option<Tombstone>> {
    match name.parse() {
        Ok(id) => services.find_tombstone(id).await.context("find the tenant"),
        Err(_) => Ok(None),
    }
}

pub(super) fn unknown(name: &str) -> anyhow::Error {
    anyhow!("no tenant has the id, database or name {name:?}")
}

pub(super) fn deleted(tombstone: &Tombstone) -> String {
    format!("tenant {} ({}) was deleted at {}", tombstone.name, tombstone.place.tenant_id, tombstone.deleted_at)
}

/// Requires the tenant's name before an irreversible change, from `--confirm` or a prompt.
///
/// `effect` completes "This … NAME"; `otherwise` begins the error for a wrong name.
pub(super) fn confirm(tenant: &Tenant, given: Option<&str>, effect: &str, otherwise: &str) -> Result<()> {
    let typed = match given {
        Some(name) => name.to_owned(),
        None if stdin().is_terminal() => {
            let prompt = format!("This {effect} {} ({}). Type the tenant's name to continue", tenant.name, tenant.id);
            Input::new().with_prompt(prompt).allow_empty(true).interact_text()?
        }
        None => bail!("--confirm is not set, and prompting is not possible"),
    };
    if typed == tenant.name { Ok(()) } else { bail!("{otherwise}: the tenant's name is {:?}", tenant.name) }
}
