//! `/api/auth`: login, refresh, logout.

use axum::{extract::State, http::HeaderMap};
use domain::FieldErrors;
use serde::{Deserialize, Serialize};
use services::{TokenPair, UserServices};
use utoipa::ToSchema;

use crate::{
    accounts::users::UserOut,
    extract::{Authenticated, JsonBody, all, bearer_token, present, required},
    operation_errors::{BadCredentials, Errors, TokenReused},
    response::{ApiResult, Empty, Response},
    tenants::tenants::MembershipOut,
};

/// Credentials.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoginIn {
    /// The address of the account.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = String, max_length = 255, example = "ada@example.com")]
    email: Option<String>,
    /// Its password.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = String, format = Password, max_length = 1024, example = "correct horse 1")]
    password: Option<String>,
}

/// Tokens of a session.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokensOut {
    /// Calls the API: `Authorization: Bearer ACCESS_TOKEN`.
    #[schema(example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoiYWNjZXNzIn0.c2lnbmF0dXJl")]
    access_token: String,
    /// Gets the next tokens, once.
    #[schema(example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl")]
    refresh_token: String,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// How long the access token is good for, in seconds.
    #[schema(example = 900)]
    expires_in: u64,
}

impl From<TokenPair> for TokensOut {
    fn from(tokens: TokenPair) -> Self {
        Self {
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
            token_type: "Bearer",
            expires_in: tokens.expires_in.as_secs(),
        }
    }
}

/// A new session.
#[derive(Serialize, ToSchema)]
pub(crate) struct LoginOut {
    #[serde(flatten)]
    tokens: TokensOut,
    user: UserOut,
    /// The user's active tenants with the user's role, newest membership first: the first 100 of them, the rest is at
    /// `/api/users/me/tenants`.
    tenants: Vec<MembershipOut>,
}

/// Log in
///
/// Begins a session. An unknown address, a deactivated account and a wrong password are answered alike.
#[utoipa::path(post, path = "/api/auth/login", tag = "auth", request_body = LoginIn, security(()),
    responses((status = 200, description = "Logged in", body = Response<LoginOut>), Errors<BadCredentials>))]
pub(crate) async fn log_in(State(services): State<UserServices>, JsonBody(body): JsonBody<LoginIn>) -> ApiResult<LoginOut> {
    let mut errors = FieldErrors::default();
    let email = required(&mut errors, "email", body.email.as_ref(), |text| Ok(text.to_owned()));
    let password = required(&mut errors, "password", body.password.as_ref(), |text| Ok(text.to_owned()));
    let (email, password) = all(errors, email.zip(password))?;
    let login = services.log_in(&email, &password).await?;
    let tenants = login.tenants.items.into_iter().map(MembershipOut::from).collect();
    Ok(Response::ok("Logged in", LoginOut { tokens: login.tokens.into(), user: login.user.into(), tenants }))
}

/// A refresh token, where it does not come in the `Authorization` header.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefreshIn {
    /// The refresh token that was got last.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl")]
    refresh_token: Option<String>,
}

/// Refresh
///
/// Gets a new access token and the next refresh token. The refresh token comes in the `Authorization` header or in the body. Using
/// one twice ends the session, but for a retry within ten seconds, which gets the same successor.
#[utoipa::path(post, path = "/api/auth/refresh", tag = "auth", request_body = RefreshIn, security((), ("refresh_token" = [])),
    responses((status = 200, description = "Tokens refreshed", body = Response<TokensOut>), Errors<TokenReused>))]
pub(crate) async fn refresh(
    State(services): State<UserServices>,
    headers: HeaderMap,
    body: Option<JsonBody<RefreshIn>>,
) -> ApiResult<TokensOut> {
    let from_body = body.and_then(|JsonBody(body)| body.refresh_token);
    let token = bearer_token(&headers)?.or(from_body.as_deref());
    Ok(Response::ok("Tokens refreshed", services.refresh(token).await?.into()))
}

/// Log out
///
/// Ends the session: its access and refresh tokens are refused from now on.
#[utoipa::path(post, path = "/api/auth/logout", tag = "auth",
    responses((status = 200, description = "Logged out", body = Response<Empty>)))]
pub(crate) async fn log_out(State(services): State<UserServices>, Authenticated(caller): Authenticated) -> ApiResult<Empty> {
    services.log_out(&caller).await?;
    Ok(Response::ok("Logged out", Empty))
}
