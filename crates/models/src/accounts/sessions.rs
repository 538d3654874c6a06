//! Sessions.

use database::{Connection, Main, MainTx, Result, Row, params};
use domain::{Session, SessionId, Timestamp, TokenId, UserId};

/// Adds a session.
pub async fn insert(tx: &mut MainTx, session: &Session, expires_at: Timestamp) -> Result<()> {
    tx.execute(
        "INSERT INTO sessions (id, user_id, refresh_id, refresh_issued_at, previous_refresh_id, ended_at, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        params![
            session.id,
            session.user_id,
            session.refresh_id,
            session.refresh_issued_at,
            session.previous_refresh_id,
            session.ended_at,
            session.created_at,
            expires_at
        ],
    )
    .await?;
    Ok(())
}

/// The session with this id.
pub async fn find(connection: &mut Connection<Main>, id: SessionId) -> Result<Option<Session>> {
    let found = connection
        .query_opt(
            "SELECT id, user_id, refresh_id, refresh_issued_at, previous_refresh_id, ended_at, created_at FROM sessions WHERE id = $1",
            params![id],
        )
        .await?;
    found.map(session).transpose()
}

/// The session's user, if the session has not ended and the user is active.
pub async fn find_living(connection: &mut Connection<Main>, id: SessionId) -> Result<Option<UserId>> {
    let found = connection
        .query_opt(
            "SELECT s.user_id FROM sessions s JOIN users u ON u.id = s.user_id
             WHERE s.id = $1 AND s.ended_at IS NULL AND u.is_active",
            params![id],
        )
        .await?;
    found.map(|mut row| row.take()).transpose()
}

/// Rotates the refresh token, if the session has not ended and `presented` is the current token. Returns whether it did: of
/// concurrent calls with the same token, one gets true.
pub async fn rotate(
    tx: &mut MainTx,
    id: SessionId,
    presented: TokenId,
    successor: TokenId,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE sessions SET previous_refresh_id = refresh_id, refresh_id = $3, refresh_issued_at = $4, expires_at = $5
             WHERE id = $1 AND refresh_id = $2 AND ended_at IS NULL",
            params![id, presented, successor, now, expires_at],
        )
        .await?;
    Ok(changed == 1)
}

/// Ends a session. Returns false if it had ended before.
pub async fn end(tx: &mut MainTx, id: SessionId, now: Timestamp) -> Result<bool> {
    let changed = tx.execute("UPDATE sessions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL", params![id, now]).await?;
    Ok(changed == 1)
}

/// Ends all sessions of a user.
pub async fn end_all_of(tx: &mut MainTx, user_id: UserId, now: Timestamp) -> Result<u64> {
    tx.execute("UPDATE sessions SET ended_at = $2 WHERE user_id = $1 AND ended_at IS NULL", params![user_id, now]).await
}

/// Purges sessions whose last refresh token expired before `before`: none of their tokens is valid any more.
pub async fn delete_expired(tx: &mut MainTx, before: Timestamp) -> Result<u64> {
    tx.execute("DELETE FROM sessions WHERE expires_at < $1", params![before]).await
}

fn session(mut row: Row) -> Result<Session> {
    Ok(Session {
        id: row.take()?,
        user_id: row.take()?,
        refresh_id: row.take()?,
        refresh_issued_at: row.take()?,
        previous_refresh_id: row.take()?,
        ended_at: row.take()?,
        created_at: row.take()?,
    })
}
