//! `/api/tenants`.

use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response as HttpResponse},
};
use domain::{FieldErrors, Member, Tenant, TenantId, TenantName};
use serde::{Deserialize, Serialize};
use services::{IdempotentOutcome, IdempotentRequest, TenantDetails, UserServices};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    documents::files::StorageOut,
    error::ApiError,
    extract::{Authenticated, JsonBody, PathIds, Query, all, idempotency_key, optional, present, required},
    operation_errors::{Errors, IdempotencyKeyInUse, IdempotencyKeyReused, TooManyTenants},
    query::{Idempotency, PageQuery, TenantPath},
    response::{ApiResult, Empty, List, Response, Timestamp, replayed_response},
    schemas,
    tenants::members::MemberOut,
};

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantOut {
    id: Uuid,
    #[schema(example = "Acme Corp")]
    name: String,
    /// The database that holds this tenant's documents exclusively.
    #[schema(max_length = 63, pattern = "^tenant_[a-z0-9_]+$", example = "tenant_acme_corp_a1b2c3d4")]
    database_name: String,
    is_active: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[schema(required = true)]
    created_by: Option<Uuid>,
}

impl From<Tenant> for TenantOut {
    fn from(tenant: Tenant) -> Self {
        Self {
            id: tenant.id.uuid(),
            name: tenant.name,
            database_name: tenant.location.database.as_str().to_owned(),
            is_active: tenant.is_active,
            created_at: Timestamp(tenant.created_at),
            updated_at: Timestamp(tenant.updated_at),
            created_by: tenant.created_by.map(Into::into),
        }
    }
}

/// A tenant with the caller's membership.
#[derive(Serialize, ToSchema)]
pub(crate) struct MembershipOut {
    #[serde(flatten)]
    tenant: TenantOut,
    /// The caller's role.
    #[schema(value_type = crate::tenants::members::RoleOut)]
    role: &'static str,
    /// When the caller became a member.
    joined_at: Timestamp,
}

impl From<Member<Tenant>> for MembershipOut {
    fn from(member: Member<Tenant>) -> Self {
        Self { role: member.membership.role.as_str(), joined_at: Timestamp(member.membership.joined_at), tenant: member.of.into() }
    }
}

/// My tenants
///
/// Active and inactive tenants with the caller's role, newest membership first.
#[utoipa::path(get, path = "/api/tenants", tag = "tenants", params(PageQuery),
    responses((status = 200, description = "Tenants found", body = Response<List<MembershipOut>>)))]
pub(crate) async fn list_tenants(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    Query(query): Query<PageQuery>,
) -> ApiResult<List<MembershipOut>> {
    let page = services.list_tenants(&caller, query.parse()?).await?;
    Ok(Response::ok("Tenants found", List::of(page, MembershipOut::from)))
}

/// My active tenants
///
/// Active tenants with role and time of joining, newest membership first.
#[utoipa::path(get, path = "/api/users/me/tenants", tag = "users", params(PageQuery),
    responses((status = 200, description = "Tenants found", body = Response<List<MembershipOut>>)))]
pub(crate) async fn list_my_tenants(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    Query(query): Query<PageQuery>,
) -> ApiResult<List<MembershipOut>> {
    let page = services.list_active_tenants(&caller, query.parse()?).await?;
    Ok(Response::ok("Tenants found", List::of(page, MembershipOut::from)))
}

/// A new tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateTenantIn {
    /// Display name. Need not be unique.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::TenantName)]
    name: Option<String>,
}

/// Create a tenant
///
/// Creates the tenant and its database, and makes the caller its admin. The tenant is ready when the response arrives.
#[utoipa::path(post, path = "/api/tenants", tag = "tenants", params(Idempotency), request_body = CreateTenantIn,
    responses((status = 201, description = "Tenant created", body = Response<MembershipOut>), Errors<(IdempotencyKeyReused, IdempotencyKeyInUse, TooManyTenants)>))]
pub(crate) async fn create_tenant(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    headers: HeaderMap,
    JsonBody(body): JsonBody<CreateTenantIn>,
) -> Result<HttpResponse, ApiError> {
    let key = idempotency_key(&headers)?;
    let mut errors = FieldErrors::default();
    let name = required(&mut errors, "name", body.name.as_ref(), TenantName::parse);
    let created = |tenant: Member<Tenant>| Response::created("Tenant created", MembershipOut::from(tenant));
    let response_body = |tenant: &Member<Tenant>| created(tenant.clone()).body();
    let idempotent = key.map(|key| IdempotentRequest { key, answer: &response_body });
    Ok(match services.create_tenant(&caller, &all(errors, name)?, idempotent.as_ref()).await? {
        IdempotentOutcome::Fresh(tenant) => created(tenant).into_response(),
        IdempotentOutcome::Replayed(body) => replayed_response(body),
    })
}

/// Storage usage
///
/// What the tenant stores, and its quota. Content that several documents share counts once. Versions and the trash count.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/storage", tag = "tenants", params(TenantPath),
    responses((status = 200, description = "Storage found", body = Response<StorageOut>)))]
pub(crate) async fn get_storage(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
) -> ApiResult<StorageOut> {
    Ok(Response::ok("Storage found", services.get_storage_use(&caller, tenant_id).await?.into()))
}

/// A tenant with its members.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantDetailsOut {
    #[serde(flatten)]
    tenant: MembershipOut,
    /// In the order of joining.
    members: Vec<MemberOut>,
}

impl From<TenantDetails> for TenantDetailsOut {
    fn from(details: TenantDetails) -> Self {
        Self { tenant: Member::clone(&details.tenant).into(), members: details.members.into_iter().map(MemberOut::from).collect() }
    }
}

/// A tenant with its members
///
/// For its members; for its admins only while it is inactive.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}", tag = "tenants", params(TenantPath),
    responses((status = 200, description = "Tenant found", body = Response<TenantDetailsOut>)))]
pub(crate) async fn get_tenant(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
) -> ApiResult<TenantDetailsOut> {
    Ok(Response::ok("Tenant found", services.get_tenant(&caller, tenant_id).await?.into()))
}

/// Tenant changes. Absent fields stay unchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateTenantIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::TenantName)]
    name: Option<String>,
    /// False deactivates the tenant, true reactivates it. No data is deleted.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool, example = true)]
    is_active: Option<bool>,
}

/// Update a tenant
///
/// For its admins, even while it is inactive.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}", tag = "tenants", params(TenantPath), request_body = UpdateTenantIn,
    responses((status = 200, description = "Tenant updated", body = Response<MembershipOut>)))]
pub(crate) async fn update_tenant(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    JsonBody(body): JsonBody<UpdateTenantIn>,
) -> ApiResult<MembershipOut> {
    let mut errors = FieldErrors::default();
    let name = optional(&mut errors, "name", body.name.as_ref(), TenantName::parse);
    errors.check()?;
    let tenant = services.update_tenant(&caller, tenant_id, name, body.is_active).await?;
    Ok(Response::ok("Tenant updated", tenant.into()))
}

/// Deactivate a tenant
///
/// For its admins. No data is deleted; `PUT` with `is_active: true` reactivates it.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}", tag = "tenants", params(TenantPath),
    responses((status = 200, description = "Tenant deactivated", body = Response<Empty>)))]
pub(crate) async fn delete_tenant(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
) -> ApiResult<Empty> {
    services.deactivate_tenant(&caller, tenant_id).await?;
    Ok(Response::ok("Tenant deactivated", Empty))
}
