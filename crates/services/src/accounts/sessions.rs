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
    accounts::passwords::Verdict,
    events::events::{EventTx, audit_event, begin_main},
    idempotency::purge_past_requests,
};

/// How long after its use a refresh token still gets the successor that it got, for a client that lost the answer.
const RETRY_GRACE: Duration = Duration::from_secs(10);

/// The tokens of a session.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// Calls the API.
    pub access_token: String,
    /// Gets the next pair, once.
    pub refresh_token: String,
    /// How long the access token is good for.
    pub expires_in: Duration,
}

/// What a login gets.
pub struct Login {
    /// The tokens of the new session.
    pub tokens: TokenPair,
    /// Who logged in.
    pub user: User,
    /// The first page of the user's active tenants.
    pub tenants: Page<Member<Tenant>>,
}

/// An address that is looked for in the place of what is none.
const NOBODY: &str = "nobody@example.invalid";

impl UserServices {
    /// Begins a session.
    ///
    /// # Errors
    /// [`TokenProblem::BadCredentials`], after the same work, whether the address is unknown, the account deactivated or the
    /// password wrong; [`Error::Overloaded`] when too many log in at once.
    pub async fn log_in(&self, email: &str, password: &str) -> Result<Login> {
        // What is no address is looked for all the same: the same work for everything.
        let address = Email::parse(email);
        let is_address = address.is_ok();
        let address = address.or_else(|_| Email::parse(NOBODY)).map_err(Error::internal)?;
        let known = users::find_for_login(&mut self.core.main().read().await?, &address).await?.filter(|_| is_address);
        let known_id = known.as_ref().map(|(user, _)| user.id);
        let candidate = known.filter(|(user, _)| user.is_active);
        let verdict = self.core.parts.passwords.verify(candidate.as_ref().map(|(_, hash)| hash.clone()), password).await?;
        let Some((user, hash)) = candidate.filter(|_| verdict != Verdict::Wrong) else {
            // Whose account it was; not what was typed, which may be a password in the wrong field.
            let data = json!({ "target_user_id": known_id.map(|id| id.to_string()) });
            begin_main(&self.core).await?.emit_and_commit(&audit_event(&self.core, "login.failed", None, None, data)).await?;
            return Err(Error::Unauthenticated(TokenProblem::BadCredentials));
        };
        let upgraded = if verdict == Verdict::RightButOutdated { rehash(&self.core, password).await? } else { None };

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
        tx.emit(&audit_event(&self.core, "login.succeeded", None, Some(user.id), json!({ "session_id": session.id.to_string() })));
        failpoint!("login.committing");
        tx.commit().await?;
        failpoint!("login.committed");

        let tenants = PageRequest::first(PageRequest::MAX_PER_PAGE);
        let tenants = members::list_active_tenants(&mut self.core.main().read().await?, user.id, tenants).await?;
        Ok(Login { tokens: issue_tokens(&self.core, &session)?, user, tenants })
    }

    /// Gets a session's next tokens.
    ///
    /// # Errors
    /// [`TokenProblem::Reused`] when the token was used before and its successor too, or not just now: then the session ends,
    /// since one of its users is a thief.
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

    /// Ends the caller's session: its tokens are refused from now on.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn log_out(&self, caller: &Caller) -> Result<()> {
        let tx = begin_main(&self.core).await?;
        end_session(&self.core, tx, caller.session_id(), caller.user_id(), "logout").await
    }
}

impl OperatorServices {
    /// Forgets sessions and changes of access that can't matter any more.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn purge_expired_sessions(&self) -> Result<()> {
        let now = self.core.clock().now();
        let mut tx = self.core.main().begin().await?;
        sessions::delete_expired(&mut tx, now.minus(Duration::from_secs(3600))).await?;
        access_changes::delete_before(&mut tx, now.minus(Duration::from_secs(24 * 3600))).await?;
        purge_past_requests(&self.core, &mut tx).await?;
        Ok(tx.commit().await?)
    }
}

/// A hash with today's parameters. A password that could not be chosen today keeps its old hash.
async fn rehash(core: &Core, password: &str) -> Result<Option<PasswordHash>> {
    match NewPassword::parse(password) {
        Ok(password) => core.parts.passwords.hash(&password).await.map(Some),
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

/// A session's tokens. The refresh token is made of what is stored, so a retry gets the very same one.
fn issue_tokens(core: &Core, session: &Session) -> Result<TokenPair> {
    let tokens = &core.parts.tokens;
    let access_id = TokenId::generate(core.clock());
    Ok(TokenPair {
        access_token: tokens.issue(TokenKind::Access, session.user_id, session.id, access_id, core.clock().now())?,
        refresh_token: tokens.issue(TokenKind::Refresh, session.user_id, session.id, session.refresh_id, session.refresh_issued_at)?,
        expires_in: tokens.life(TokenKind::Access),
    })
}
