//! `/api/tenants`.

use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use domain::{FieldErrors, Member, Tenant, TenantId, TenantName};
use serde::{Deserialize, Serialize};
use services::{Answered, Once, Services, TenantDetails};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    answer::{Answer, ApiResult, List, Moment, Nothing, created_before},
    documents::files::StorageOut,
    error::ApiError,
    extract::{Body, Ids, LoggedIn, Query, all, idempotency_key, optional, present, required},
    query::{Idempotency, PageQuery, TenantPath},
    schemas,
    tenants::members::MemberOut,
};

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantOut {
    id: Uuid,
    #[schema(example = "Acme Corp")]
    name: String,
    /// The database that holds this tenant's documents, and nobody else's.
    #[schema(max_length = 63, pattern = "^tenant_[a-z0-9_]+$", example = "tenant_acme_corp_a1b2c3d4")]
    database_name: String,
    is_active: bool,
    created_at: Moment,
    updated_at: Moment,
    #[schema(required = true)]
    created_by: Option<Uuid>,
}

impl From<Tenant> for TenantOut {
    fn from(tenant: Tenant) -> Self {
        Self {
            id: tenant.id.uuid(),
            name: tenant.name,
            database_name: tenant.place.database.as_str().to_owned(),
            is_active: tenant.is_active,
            created_at: Moment(tenant.created_at),
            updated_at: Moment(tenant.updated_at),
            created_by: tenant.created_by.map(Into::into),
        }
    }
}

/// A tenant with the caller's place in it.
#[derive(Serialize, ToSchema)]
pub(crate) struct MembershipOut {
    #[serde(flatten)]
    tenant: TenantOut,
    /// The caller's role.
    #[schema(value_type = crate::tenants::members::RoleOut)]
    role: &'static str,
    /// Since when the caller is a member.
    joined_at: Moment,
}

impl From<Member<Tenant>> for MembershipOut {
    fn from(member: Member<Tenant>) -> Self {
        Self { role: member.membership.role.as_str(), joined_at: Moment(member.membership.joined_at), tenant: member.of.into() }
    }
}

/// My tenants
///
/// Active or not, with the caller's role, newest membership first.
#[utoipa::path(get, path = "/api/tenants", tag = "tenants", params(PageQuery),
    responses((status = 200, description = "Tenants found", body = Answer<List<MembershipOut>>)))]
pub(crate) async fn list_tenants(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Query(query): Query<PageQuery>,
) -> ApiResult<List<MembershipOut>> {
    let page = services.list_tenants(&caller, query.parse()?).await?;
    Ok(Answer::ok("Tenants found", List::of(page, MembershipOut::from)))
}

/// A new tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateTenantIn {
    /// What people call it. Need not be unique.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::TenantName)]
    name: Option<String>,
}

/// Create a tenant
///
/// Makes the tenant, a database for it, and the caller its admin. It is ready when this answers.
#[utoipa::path(post, path = "/api/tenants", tag = "tenants", params(Idempotency), request_body = CreateTenantIn,
    responses((status = 201, description = "Tenant created", body = Answer<MembershipOut>)))]
pub(crate) async fn create_tenant(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    headers: HeaderMap,
    Body(body): Body<CreateTenantIn>,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let mut errors = FieldErrors::default();
    let name = required(&mut errors, "name", body.name.as_ref(), TenantName::parse);
    let created = |tenant: Member<Tenant>| Answer::created("Tenant created", MembershipOut::from(tenant));
    let answer = |tenant: &Member<Tenant>| created(tenant.clone()).body();
    let once = key.map(|key| Once { key, answer: &answer });
    Ok(match services.create_tenant(&caller, &all(errors, name)?, once.as_ref()).await? {
        Answered::Now(tenant) => created(tenant).into_response(),
        Answered::Before(body) => created_before(body),
    })
}

/// What a tenant stores
///
/// And how much it may. Contents that are several documents' count once; versions and the trash count.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/storage", tag = "tenants", params(TenantPath),
    responses((status = 200, description = "Storage found", body = Answer<StorageOut>)))]
pub(crate) async fn get_storage(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
) -> ApiResult<StorageOut> {
    Ok(Answer::ok("Storage found", services.get_storage_use(&caller, tenant_id).await?.into()))
}

/// A tenant with its members.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantDetailsOut {
    #[serde(flatten)]
    tenant: MembershipOut,
    /// In the order in which they joined.
    members: Vec<MemberOut>,
}

impl From<TenantDetails> for TenantDetailsOut {
    fn from(details: TenantDetails) -> Self {
        Self { tenant: Member::clone(&details.tenant).into(), members: details.members.into_iter().map(MemberOut::from).collect() }
    }
}

/// A tenant with its members
///
/// For its members; when it is inactive, for its admins.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}", tag = "tenants", params(TenantPath),
    responses((status = 200, description = "Tenant found", body = Answer<TenantDetailsOut>)))]
pub(crate) async fn get_tenant(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
) -> ApiResult<TenantDetailsOut> {
    Ok(Answer::ok("Tenant found", services.get_tenant(&caller, tenant_id).await?.into()))
}

/// What can change in a tenant. What is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateTenantIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::TenantName)]
    name: Option<String>,
    /// False takes the tenant out of service, true brings it back. Nothing is dropped.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool, example = true)]
    is_active: Option<bool>,
}

/// Change a tenant
///
/// For its admins, also when it is inactive.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}", tag = "tenants", params(TenantPath), request_body = UpdateTenantIn,
    responses((status = 200, description = "Tenant changed", body = Answer<MembershipOut>)))]
pub(crate) async fn update_tenant(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
    Body(body): Body<UpdateTenantIn>,
) -> ApiResult<MembershipOut> {
    let mut errors = FieldErrors::default();
    let name = optional(&mut errors, "name", body.name.as_ref(), TenantName::parse);
    errors.check()?;
    let tenant = services.update_tenant(&caller, tenant_id, name, body.is_active).await?;
    Ok(Answer::ok("Tenant changed", tenant.into()))
}

/// Deactivate a tenant
///
/// For its admins. Nothing is dropped; `PUT` with `is_active: true` brings it back.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}", tag = "tenants", params(TenantPath),
    responses((status = 200, description = "Tenant deactivated", body = Answer<Nothing>)))]
pub(crate) async fn delete_tenant(
    State(services): State<Services>,
    LoggedIn(caller): LoggedIn,
    Ids(tenant_id): Ids<TenantId>,
) -> ApiResult<Nothing> {
    services.deactivate_tenant(&caller, tenant_id).await?;
    Ok(Answer::ok("Tenant deactivated", Nothing))
}
