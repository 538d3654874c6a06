//! `/api/tenants/{tenant_id}/audit`: the audit log.

use axum::extract::State;
use domain::{AuditEntry, AuditFilter, FieldErrors, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use services::UserServices;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    extract::{Authenticated, PathIds, Query, optional, uuid_field},
    query::TenantPath,
    response::{ApiResult, List, Response, Timestamp},
    schemas,
};

/// Something that somebody did.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditEntryOut {
    /// The event that told of it.
    id: Uuid,
    /// What was done.
    #[schema(example = "member.added")]
    action: String,
    /// Who did it; null when it was nobody with an account, or the operator.
    #[schema(required = true)]
    user_id: Option<Uuid>,
    occurred_at: Timestamp,
    #[schema(inline, value_type = schemas::Particulars)]
    data: Value,
}

impl From<AuditEntry> for AuditEntryOut {
    fn from(AuditEntry { event_id, action, user_id, at, data, .. }: AuditEntry) -> Self {
        Self {
            id: event_id.into(),
            action,
            user_id: user_id.map(Into::into),
            occurred_at: Timestamp(at),
            data: serde_json::from_str(&data).unwrap_or_default(),
        }
    }
}

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// The page's number, from 1.
    #[param(required = false, inline, value_type = schemas::PageNumber)]
    page: Option<i64>,
    /// How many items a page has.
    #[param(required = false, inline, value_type = schemas::PerPage)]
    per_page: Option<i64>,
    /// What was done.
    #[param(required = false, inline, value_type = schemas::AuditAction)]
    action: Option<String>,
    /// Who did it.
    #[param(required = false, value_type = Uuid)]
    user_id: Option<String>,
    /// Done then or later.
    #[param(required = false, inline, value_type = schemas::Timestamp)]
    from: Option<String>,
    /// Done before.
    #[param(required = false, inline, value_type = schemas::Timestamp)]
    to: Option<String>,
}

/// List the audit log
///
/// For admins. The latest first; those that meet every condition given. What was done shows up here within a second. New entries move
/// those before them to later pages: whoever reads several gives all the same `to`.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/audit", tag = "tenants", params(TenantPath, AuditQuery),
    responses((status = 200, description = "Audit log found", body = Response<List<AuditEntryOut>>)))]
pub(crate) async fn list_audit(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    Query(query): Query<AuditQuery>,
) -> ApiResult<List<AuditEntryOut>> {
    let mut errors = FieldErrors::default();
    let filter = AuditFilter {
        action: optional(&mut errors, "action", query.action.as_ref(), AuditFilter::parse_action),
        user_id: optional(&mut errors, "user_id", query.user_id.as_ref(), uuid_field).map(Into::into),
        from: optional(&mut errors, "from", query.from.as_ref(), moment),
        to: optional(&mut errors, "to", query.to.as_ref(), moment),
    };
    let request = domain::PageRequest::parse(query.page, query.per_page, &mut errors);
    errors.check()?;
    let page = services.list_audit(&caller, tenant_id, &filter, request).await?;
    Ok(Response::ok("Audit log found", List::of(page, AuditEntryOut::from)))
}

fn moment(text: &str) -> Result<domain::Timestamp, &'static str> {
    domain::Timestamp::parse(text).ok_or("must be a moment as in RFC 3339, such as 2026-11-24T09:30:00Z; a + in it has to be sent as %2B")
}
