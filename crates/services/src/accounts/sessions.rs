//! Sessions: login, refresh, logout.

use std::time::Duration;

use domain::{
    Email, Error, Member, NewPassword, Page, PageRequest, PasswordHash, Result, Session, SessionId, Tenant, TokenId, TokenKind,
    TokenProblem, User, UserId, failpoint,
};
use models::{Main, access_changes, members, sessions, users};
use serde_json::json;

use crate::{
    Caller, Core, OperatorServices, UserServices,
    access_cache::commit_access_change,
    accounts::{
        login_throttle::{LoginClient, begin_attempt, purge_throttles},
        passwords::{Source, Verdict},
    },
    events::events::{EventTx, audit_event, begin_main},
    idempotency::purge_past_requests,
};

/// How long after its use a refresh token still gets its successor, for a client that lost the response.
const RETRY_GRACE: Duration = Duration::from_secs(10);

/// How long a session lasts at most, however often it is refreshed.
const MAX_SESSION_LIFE: Duration = Duration::from_hours(90 * 24);

/// The tokens of a session.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// Authenticates API calls.
    pub access_token: String,
    /// Gets the next pair of tokens, once.
    pub refresh_token: String,
    /// How long the access token is valid.
    pub expires_in: Duration,
}

/// The result of a login.
pub struct Login {
    /// The tokens of the new session.
    pub tokens: TokenPair,
    /// Shows at the next login that this client logged in before.
    pub device_token: String,
    /// The user who logged in.
    pub user: User,
    /// The first page of the user's active tenants.
    pub tenants: Page<Member<Tenant>>,
}

/// The address that is looked up in place of a malformed one.
const PLACEHOLDER_EMAIL: &str = "nobody@example.invalid";

impl UserServices {
    /// Logs a user in and begins a session.
    ///
    /// # Errors
    /// [`TokenProblem::BadCredentials`], after the same work, whether the address is unknown, the account deactivated or the
    /// password wrong; [`Error::RateLimited`] after too many of those; [`Error::Overloaded`] when too many users log in at once.
    pub async fn log_in(&self, email: &str, password: &str, client: &LoginClient<'_>) -> Result<Login> {
        // A malformed address is looked up all the same, so that every failure takes the same work.
        let address = Email::parse(email);
        let is_address = address.is_ok();
        let address = address.or_else(|_| Email::parse(PLACEHOLDER_EMAIL)).map_err(Error::internal)?;
        let known = users::find_for_login(&mut self.core.main().read().await?, &address).await?.filter(|_| is_address);
        let known_id = known.as_ref().map(|(user, _)| user.id);
        let attempt = begin_attempt(&self.core, email, known.as_ref().map(|(user, _)| user), client).await?;
        let source = attempt.source(client);
        let candidate = known.filter(|(user, _)| user.is_active);
        let verdict = self.core.parts.passwords.verify(source, candidate.as_ref().map(|(_, hash)| hash.clone()), password).await?;
        let Some((user, hash)) = candidate.filter(|_| verdict != Verdict::Wrong) else {
            // The account's id, but not the typed address, which may be a password in the wrong field.
            let data = json!({ "target_user_id": known_id.map(|id| id.to_string()) });
            let mut tx = begin_main(&self.core).await?;
            attempt.fail(&mut tx).await?;
            tx.emit_and_commit(&audit_event(&self.core, "login.failed", None, None, data)).await?;
            return Err(Error::Unauthenticated(TokenProblem::BadCredentials));
        };
        let upgraded = if verdict == Verdict::RightButOutdated { rehash(&self.core, source, password).await? } else { None };

        let now = self.core.clock().now();
        let session = Session {
            id: SessionId::generate(self.core.clock()),
            user_id: user.id,
            refresh_id: TokenId::generate(self.core.clock()),
            refresh_issued_at: now,
            previous_refresh_id: None,
            ended_at: None,
            created_at: now,
        };
        let mut tx = begin_main(&self.core).await?;
        if let Some(new) = upgraded {
            users::replace_password_hash(&mut tx, user.id, &hash, &new).await?;
        }
        sessions::insert(&mut tx, &session, now.plus(self.core.parts.tokens.life(TokenKind::Refresh))).await?;
        attempt.succeed(&mut tx);
        tx.emit(&audit_event(&self.core, "login.succeeded", None, Some(user.id), json!({ "session_id": session.id.to_string() })));
        failpoint!("login.committing");
        tx.commit().await?;
        failpoint!("login.committed");

        let tenants = PageRequest::first(PageRequest::MAX_PER_PAGE);
        let tenants = members::list_active_tenants(&mut self.core.main().read().await?, user.id, tenants).await?;
        let device = TokenId::generate(self.core.clock());
        let device_token = self.core.parts.tokens.issue(TokenKind::Device, user.id, session.id, device, now)?;
        Ok(Login { tokens: issue_tokens(&self.core, &session)?, device_token, user, tenants })
    }

    /// Rotates a session's refresh token and returns its next tokens.
    ///
    /// # Errors
    /// [`TokenProblem::Expired`] for a session older than 90 days; [`TokenProblem::Reused`] when the token was used before, unless it was used just now and its successor is still unused.
    /// The session ends then, since one of its users is a thief.
    pub async fn refresh(&self, refresh_token: Option<&str>) -> Result<TokenPair> {
        let token = refresh_token.ok_or(Error::Unauthenticated(TokenProblem::Missing))?;
        let now = self.core.clock().now();
        let claims = self.core.parts.tokens.verify(token, TokenKind::Refresh, now).map_err(Error::Unauthenticated)?;
        let mut tx = begin_main(&self.core).await?;
        if sessions::find_living(&mut tx, claims.session_id).await? != Some(claims.user_id) {
            return Err(Error::Unauthenticated(TokenProblem::Revoked));
        }
        let successor = TokenId::generate(self.core.clock());
        let expires_at = now.plus(self.core.parts.tokens.life(TokenKind::Refresh));
        let rotated = sessions::rotate(&mut tx, claims.session_id, claims.token_id, successor, now, expires_at).await?;
        let session = sessions::find(&mut tx, claims.session_id).await?;
        let session = session.filter(|session| session.ended_at.is_none()).ok_or(Error::Unauthenticated(TokenProblem::Revoked))?;
        if session.created_at.plus(MAX_SESSION_LIFE) <= now {
            return Err(Error::Unauthenticated(TokenProblem::Expired));
        }
        let retried = session.previous_refresh_id == Some(claims.token_id) && now <= session.refresh_issued_at.plus(RETRY_GRACE);
        if rotated || retried {
            failpoint!("refresh.committing");
            tx.commit().await?;
            failpoint!("refresh.committed");
            return issue_tokens(&self.core, &session);
        }
        end_session(&self.core, tx, session.id, session.user_id, "session.token_reused").await?;
        Err(Error::Unauthenticated(TokenProblem::Reused))
    }

    /// Ends the caller's session. Its tokens are refused from now on.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn log_out(&self, caller: &Caller) -> Result<()> {
        let tx = begin_main(&self.core).await?;
        end_session(&self.core, tx, caller.session_id(), caller.user_id(), "logout").await
    }
}

impl OperatorServices {
    /// Purges expired sessions, access changes, idempotency keys and failed logins.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn purge_expired_sessions(&self) -> Result<()> {
        let now = self.core.clock().now();
        let mut tx = self.core.main().begin().await?;
        sessions::delete_expired(&mut tx, now.minus(Duration::from_secs(3600))).await?;
        access_changes::delete_before(&mut tx, now.minus(Duration::from_secs(24 * 3600))).await?;
        purge_past_requests(&self.core, &mut tx).await?;
        purge_throttles(&self.core, &mut tx).await?;
        Ok(tx.commit().await?)
    }
}

/// Hashes a password with the current parameters. A password that the current rules refuse keeps its old hash.
async fn rehash(core: &Core, source: Source, password: &str) -> Result<Option<PasswordHash>> {
    match NewPassword::parse(password) {
        Ok(password) => core.parts.passwords.hash(source, &password).await.map(Some),
        Err(_) => Ok(None),
    }
}

async fn end_session(core: &Core, mut tx: EventTx<Main>, id: SessionId, user_id: UserId, action: &str) -> Result<()> {
    let now = core.clock().now();
    if !sessions::end(&mut tx, id, now).await? {
        return Ok(());
    }
    tx.emit(&audit_event(core, action, None, Some(user_id), json!({ "session_id": id.to_string() })));
    commit_access_change(core, tx, id).await
}

/// Issues a session's tokens. The refresh token is derived from stored values, so a retry gets an identical one.
fn issue_tokens(core: &Core, session: &Session) -> Result<TokenPair> {
    let tokens = &core.parts.tokens;
    let access_id = TokenId::generate(core.clock());
    Ok(TokenPair {
        access_token: tokens.issue(TokenKind::Access, session.user_id, session.id, access_id, core.clock().now())?,
        refresh_token: tokens.issue(TokenKind::Refresh, session.user_id, session.id, session.refresh_id, session.refresh_issued_at)?,
        expires_in: tokens.life(TokenKind::Access),
    })
}
