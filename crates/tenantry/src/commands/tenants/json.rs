//! Tenants in JSON.

use domain::{Limit, Tenant};
use serde_json::{Value, json};

/// A tenant with all of its fields.
pub(super) fn tenant_json(tenant: &Tenant) -> Value {
    json!({
        "id": tenant.id.to_string(),
        "name": tenant.name,
        "server": tenant.place.server,
        "database": tenant.place.database.as_str(),
        "state": tenant.provisioning.as_str(),
        "schema_version": tenant.schema_version,
        "quarantined_at": tenant.quarantined_at.map(|at| at.to_string()),
        "writes_paused_at": tenant.writes_paused_at.map(|at| at.to_string()),
        "max_bytes": limit_json(tenant.limits.bytes),
        "max_documents": limit_json(tenant.limits.documents),
        "is_active": tenant.is_active,
        "created_at": tenant.created_at.to_string(),
        "updated_at": tenant.updated_at.to_string(),
        "created_by": tenant.created_by.map(|id| id.to_string()),
    })
}

/// The fields that identify and locate a tenant.
pub(crate) fn tenant_reference_json(tenant: &Tenant) -> Value {
    json!({
        "id": tenant.id.to_string(),
        "name": tenant.name,
        "server": tenant.place.server,
        "database": tenant.place.database.as_str(),
    })
}

fn limit_json(limit: Limit) -> Value {
    match limit {
        Limit::Usual => Value::Null,
        Limit::Unlimited => "unlimited".into(),
        Limit::AtMost(max) => max.into(),
    }
}
