//! Accounts: registration, `/api/users/me`.

use axum::extract::State;
use domain::{Email, FieldErrors, NewPassword, PersonName, User};
use serde::{Deserialize, Serialize};
use services::{Registration, UserServices};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    client::LimitedClient,
    extract::{Authenticated, JsonBody, all, optional, present, required},
    operation_errors::{EmailTaken, Errors, RegistrationClosed},
    response::{ApiResult, Response, Timestamp},
    schemas,
};

/// A user.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserOut {
    id: Uuid,
    #[schema(example = "Ada")]
    first_name: String,
    #[schema(example = "Lovelace")]
    last_name: String,
    /// In lower case.
    #[schema(example = "ada@example.com")]
    email: String,
    is_active: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Null for self-registration.
    #[schema(required = true)]
    created_by: Option<Uuid>,
}

impl From<User> for UserOut {
    fn from(user: User) -> Self {
        Self {
            id: user.id.uuid(),
            first_name: user.first_name,
            last_name: user.last_name,
            email: user.email,
            is_active: user.is_active,
            created_at: Timestamp(user.created_at),
            updated_at: Timestamp(user.updated_at),
            created_by: user.created_by.map(Into::into),
        }
    }
}

/// A new account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegisterIn {
    /// Unique; stored in lower case.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::Email)]
    email: Option<String>,
    /// 8 to 256 characters with at least one letter and one digit.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::NewPassword)]
    password: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::PersonName)]
    first_name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = schemas::PersonName)]
    last_name: Option<String>,
}

/// Register
///
/// Creates an account.
#[utoipa::path(post, path = "/api/auth/register", tag = "auth", request_body = RegisterIn, security(()),
    responses((status = 201, description = "User registered", body = Response<UserOut>), Errors<(EmailTaken, RegistrationClosed)>))]
pub(crate) async fn register(
    State(services): State<UserServices>,
    LimitedClient(client): LimitedClient,
    JsonBody(body): JsonBody<RegisterIn>,
) -> ApiResult<UserOut> {
    let mut errors = FieldErrors::default();
    let email = required(&mut errors, "email", body.email.as_ref(), Email::parse);
    let password = required(&mut errors, "password", body.password.as_ref(), NewPassword::parse);
    let first_name = required(&mut errors, "first_name", body.first_name.as_ref(), PersonName::parse);
    let last_name = required(&mut errors, "last_name", body.last_name.as_ref(), PersonName::parse);
    let ((email, password), (first_name, last_name)) = all(errors, email.zip(password).zip(first_name.zip(last_name)))?;
    let user = services.register_user(Registration { email, password, first_name, last_name }, client).await?;
    Ok(Response::created("User registered", user.into()))
}

/// My profile
///
/// The user whom the access token authenticates.
#[utoipa::path(get, path = "/api/users/me", tag = "users", responses((status = 200, description = "Profile found", body = Response<UserOut>)))]
pub(crate) async fn get_me(State(services): State<UserServices>, Authenticated(caller): Authenticated) -> ApiResult<UserOut> {
    Ok(Response::ok("Profile found", services.get_profile(&caller).await?.into()))
}

/// Profile changes. Absent fields stay unchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateMeIn {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::PersonName)]
    first_name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = schemas::PersonName)]
    last_name: Option<String>,
}

/// Update my profile
///
/// Changes the first or last name.
#[utoipa::path(put, path = "/api/users/me", tag = "users", request_body = UpdateMeIn,
    responses((status = 200, description = "Profile updated", body = Response<UserOut>)))]
pub(crate) async fn update_me(
    State(services): State<UserServices>,
    Authenticated(caller): Authenticated,
    JsonBody(body): JsonBody<UpdateMeIn>,
) -> ApiResult<UserOut> {
    let mut errors = FieldErrors::default();
    let first_name = optional(&mut errors, "first_name", body.first_name.as_ref(), PersonName::parse);
    let last_name = optional(&mut errors, "last_name", body.last_name.as_ref(), PersonName::parse);
    errors.check()?;
    Ok(Response::ok("Profile updated", services.update_profile(&caller, first_name, last_name).await?.into()))
}
