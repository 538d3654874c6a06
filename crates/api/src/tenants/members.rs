//! `/api/tenants/{tenant_id}/users`: members and their roles.

use axum::extract::State;
use domain::{Email, FieldErrors, Member, Membership, Role, TenantId, TextProblem, User, UserId};
use serde::{Deserialize, Serialize};
use services::{NewMember, UserServices};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    accounts::users::UserOut,
    extract::{Authenticated, JsonBody, PathIds, all, optional, present, required, uuid_field},
    operation_errors::{AlreadyMember, Errors, LastAdmin, UserNotFound},
    query::TenantPath,
    response::{ApiResult, Empty, Response, Timestamp},
    schemas,
};

/// A member's role: `admin` may do everything, `user` may upload and change their own documents, `viewer` may read.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case", example = "user")]
#[expect(dead_code, reason = "documents the values; `domain::Role` parses them")]
pub(crate) enum RoleOut {
    Admin,
    User,
    Viewer,
}

/// A member.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberOut {
    user_id: Uuid,
    tenant_id: Uuid,
    #[schema(value_type = RoleOut)]
    role: &'static str,
    joined_at: Timestamp,
    user: UserOut,
}

impl MemberOut {
    fn new(membership: Membership, user: User) -> Self {
        Self {
            user_id: membership.user_id.uuid(),
            tenant_id: membership.tenant_id.uuid(),
            role: membership.role.as_str(),
            joined_at: Timestamp(membership.joined_at),
            user: user.into(),
        }
    }
}

impl From<Member<User>> for MemberOut {
    fn from(member: Member<User>) -> Self {
        Self::new(member.membership, member.of)
    }
}

/// Path parameters of a member.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents the path; `PathIds` parses it")]
pub(crate) struct MemberPath {
    /// Tenant id.
    tenant_id: Uuid,
    /// The member's user id.
    user_id: Uuid,
}

/// A new member: by either user id or e-mail address.
#[derive(Deserialize, ToSchema)]
#[schema(example = json!({ "email": "grace@example.com", "role": "user" }))]
#[serde(deny_unknown_fields)]
pub(crate) struct AddMemberIn {
    /// The user's id.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = false, value_type = Uuid)]
    user_id: Option<String>,
    /// The user's e-mail address.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::Email)]
    email: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = RoleOut)]
    role: Option<String>,
}

fn parse_role(text: &str) -> Result<Role, TextProblem> {
    Role::parse(text).ok_or("must be admin, user or viewer")
}

/// Add a member
///
/// For admins of the tenant.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/users", tag = "members", params(TenantPath), request_body = AddMemberIn,
    responses((status = 201, description = "Member added", body = Response<MemberOut>), Errors<(UserNotFound, AlreadyMember)>))]
pub(crate) async fn add_member(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds(tenant_id): PathIds<TenantId>,
    JsonBody(body): JsonBody<AddMemberIn>,
) -> ApiResult<MemberOut> {
    let mut errors = FieldErrors::default();
    let id = optional(&mut errors, "user_id", body.user_id.as_ref(), uuid_field).map(|id| NewMember::Id(id.into()));
    let email = optional(&mut errors, "email", body.email.as_ref(), Email::parse).map(NewMember::Email);
    if body.user_id.is_some() == body.email.is_some() {
        errors.add("user_id", "exactly one of user_id and email is required");
    }
    let role = required(&mut errors, "role", body.role.as_ref(), parse_role);
    let (candidate, role) = all(errors, id.or(email).zip(role))?;
    let (membership, user) = services.add_member(&caller, tenant_id, candidate, role).await?;
    Ok(Response::created("Member added", MemberOut::new(membership, user)))
}

/// A role.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeRoleIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = RoleOut)]
    role: Option<String>,
}

/// Change a member's role
///
/// For admins of the tenant. The last admin can't be demoted.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}/users/{user_id}", tag = "members", params(MemberPath), request_body = ChangeRoleIn,
    responses((status = 200, description = "Role changed", body = Response<MemberOut>), Errors<LastAdmin>))]
pub(crate) async fn change_role(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, user_id)): PathIds<(TenantId, UserId)>,
    JsonBody(body): JsonBody<ChangeRoleIn>,
) -> ApiResult<MemberOut> {
    let mut errors = FieldErrors::default();
    let role = required(&mut errors, "role", body.role.as_ref(), parse_role);
    let (membership, user) = services.change_role(&caller, tenant_id, user_id, all(errors, role)?).await?;
    Ok(Response::ok("Role changed", MemberOut::new(membership, user)))
}

/// Remove a member
///
/// Admins may remove any member; members may remove themselves. The last admin can't be removed.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/users/{user_id}", tag = "members", params(MemberPath),
    responses((status = 200, description = "Member removed", body = Response<Empty>), Errors<LastAdmin>))]
pub(crate) async fn remove_member(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    PathIds((tenant_id, user_id)): PathIds<(TenantId, UserId)>,
) -> ApiResult<Empty> {
    services.remove_member(&caller, tenant_id, user_id).await?;
    Ok(Response::ok("Member removed", Empty))
}
