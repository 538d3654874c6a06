//! `tenantry tenants set-quota`

use std::process::ExitCode;

use anyhow::{Context, Result};
use domain::{Limit, QuotaLimits};
use services::OperatorServices;

use super::{TenantArgument, find, json::tenant_json};
use crate::{
    commands::{print, print_json},
    config::parse_bytes,
};

/// Options of `tenantry tenants set-quota`.
#[derive(clap::Args)]
pub struct SetQuota {
    #[command(flatten)]
    tenant: TenantArgument,
    /// Maximum bytes, e.g. 10GB or 500MiB; `unlimited`; or `default` for TENANT_MAX_BYTES
    #[arg(long, value_parser = parse_byte_limit, required_unless_present = "documents")]
    bytes: Option<Limit>,
    /// Maximum number of documents, including those in the trash; `unlimited`; or `default` for TENANT_MAX_DOCUMENTS
    #[arg(long, value_parser = parse_limit)]
    documents: Option<Limit>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_byte_limit(text: &str) -> Result<Limit, String> {
    limit_keyword(text).map_or_else(|| parse_bytes(text).map(Limit::AtMost), Ok)
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let number = || text.parse().map(Limit::AtMost).map_err(|_| "must be a whole number, `unlimited` or `default`".to_owned());
    limit_keyword(text).map_or_else(number, Ok)
}

fn limit_keyword(text: &str) -> Option<Limit> {
    match text {
        "unlimited" => Some(Limit::Unlimited),
        "default" => Some(Limit::Usual),
        _ => None,
    }
}

/// A limit as an operator sets it.
pub(super) fn limit_text(limit: Limit) -> String {
    match limit {
        Limit::Usual => "default".to_owned(),
        Limit::Unlimited => "unlimited".to_owned(),
        Limit::AtMost(max) => max.to_string(),
    }
}

/// Sets the quota of a tenant.
pub(super) async fn set(services: &OperatorServices, SetQuota { tenant, bytes, documents, json }: &SetQuota) -> Result<ExitCode> {
    let tenant = find(services, &tenant.tenant).await?;
    let limits = QuotaLimits { bytes: bytes.unwrap_or(tenant.limits.bytes), documents: documents.unwrap_or(tenant.limits.documents) };
    let tenant = services.set_limits(tenant.id, limits).await.context("set the quota")?;
    if *json {
        print_json(&tenant_json(&tenant));
    } else {
        let (bytes, documents) = (limit_text(limits.bytes), limit_text(limits.documents));
        print(format_args!("Quota of tenant {}: bytes {bytes}, documents {documents}", tenant.name));
    }
    Ok(ExitCode::SUCCESS)
}
