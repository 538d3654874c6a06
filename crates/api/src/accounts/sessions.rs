//! `/api/auth`: login, refresh, logout.

use axum::{extract::State, http::HeaderMap};
use domain::FieldErrors;
use serde::{Deserialize, Serialize};
use services::{LoginClient, TokenPair, UserServices};
use utoipa::ToSchema;

use crate::{
    accounts::users::UserOut,
    client::LimitedClient,
    extract::{Authenticated, JsonBody, all, bearer_token, present, required},
    operation_errors::{BadCredentials, Errors, TokenReused},
    response::{ApiResult, Empty, Response},
    tenants::tenants::MembershipOut,
};

/// Credentials.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoginIn {
    /// The account's e-mail address.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = String, max_length = 255, example = "ada@example.com")]
    email: Option<String>,
    /// The account's password.
    #[serde(default, deserialize_with = "present")]
    #[schema(required = true, value_type = String, format = Password, max_length = 1024, example = "correct horse 1")]
    password: Option<String>,
    /// The device token of an earlier login, if the client has one. It lets its owner in while others guess at the password.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String)]
    device_token: Option<String>,
}

/// Tokens of a session.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokensOut {
    /// Authorizes API requests: `Authorization: Bearer ACCESS_TOKEN`.
    #[schema(example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoiYWNjZXNzIn0.c2lnbmF0dXJl")]
    access_token: String,
    /// Can be exchanged once for the next tokens.
    #[schema(example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl")]
    refresh_token: String,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Lifetime of the access token, in seconds.
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
    /// To send with the next login from this device. Authorizes nothing.
    #[schema(example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoiZGV2aWNlIn0.c2lnbmF0dXJl")]
    device_token: String,
    user: UserOut,
    /// The first 100 of the user's active tenants, with the user's role, newest membership first. `/api/users/me/tenants` lists all.
    tenants: Vec<MembershipOut>,
}

/// Log in
///
/// Starts a session. An unknown address, a deactivated account and a wrong password get the same response. Repeated failures slow down
/// further attempts for the address (429), but not those of devices that logged in before.
#[utoipa::path(post, path = "/api/auth/login", tag = "auth", request_body = LoginIn, security(()),
    responses((status = 200, description = "Logged in", body = Response<LoginOut>), Errors<BadCredentials>))]
pub(crate) async fn log_in(
    State(services): State<UserServices>,
    LimitedClient(address): LimitedClient,
    JsonBody(body): JsonBody<LoginIn>,
) -> ApiResult<LoginOut> {
    let mut errors = FieldErrors::default();
    let email = required(&mut errors, "email", body.email.as_ref(), |text| Ok(text.to_owned()));
    let password = required(&mut errors, "password", body.password.as_ref(), |text| Ok(text.to_owned()));
    let (email, password) = all(errors, email.zip(password))?;
    let client = LoginClient { address, device_token: body.device_token.as_deref() };
    let login = services.log_in(&email, &password, &client).await?;
    let tenants = login.tenants.items.into_iter().map(MembershipOut::from).collect();
    Ok(Response::ok(
        "Logged in",
        LoginOut { tokens: login.tokens.into(), device_token: login.device_token, user: login.user.into(), tenants },
    ))
}

/// The refresh token, unless it is in the `Authorization` header.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefreshIn {
    /// The most recent refresh token.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJ0eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl")]
    refresh_token: Option<String>,
}

/// Refresh
///
/// Returns a new access token and the next refresh token. The client sends its refresh token in the body, or else in the
/// `Authorization` header; with one in the body the header is ignored. Reusing a refresh token ends the session, except for a retry
/// within ten seconds, which returns the same successor.
#[utoipa::path(post, path = "/api/auth/refresh", tag = "auth", request_body = RefreshIn, security((), ("refresh_token" = [])),
    responses((status = 200, description = "Tokens refreshed", body = Response<TokensOut>), Errors<TokenReused>))]
pub(crate) async fn refresh(
    State(services): State<UserServices>,
    _: LimitedClient,
    headers: HeaderMap,
    body: Option<JsonBody<RefreshIn>>,
) -> ApiResult<TokensOut> {
    let from_body = body.and_then(|JsonBody(body)| body.refresh_token);
    // Clients send their access token with every request, an expired one, too.
    let token = match from_body.as_deref() {
        Some(token) => Some(token),
        None => bearer_token(&headers)?,
    };
    Ok(Response::ok("Tokens refreshed", services.refresh(token).await?.into()))
}

/// Log out
///
/// Ends the session and revokes its access and refresh tokens.
#[utoipa::path(post, path = "/api/auth/logout", tag = "auth",
    responses((status = 200, description = "Logged out", body = Response<Empty>)))]
pub(crate) async fn log_out(State(services): State<UserServices>, Authenticated(caller): Authenticated) -> ApiResult<Empty> {
    services.log_out(&caller).await?;
    Ok(Response::ok("Logged out", Empty))
}
