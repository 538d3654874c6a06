//! Users.

use database::{Connection, Main, MainTx, Result, Row, params};
use domain::{Email, PasswordHash, PersonName, Timestamp, User, UserId};

/// The unique constraint on the e-mail address.
pub const EMAIL_KEY: &str = "users_email_key";

/// Adds a user. Violates [`EMAIL_KEY`] if the e-mail address is taken.
pub async fn insert(tx: &mut MainTx, user: &User, password: &PasswordHash) -> Result<()> {
    tx.execute(
        "INSERT INTO users (id, first_name, last_name, email, is_active, created_at, updated_at, created_by, password_hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        params![
            user.id,
            user.first_name.as_str(),
            user.last_name.as_str(),
            user.email.as_str(),
            user.is_active,
            user.created_at,
            user.updated_at,
            user.created_by,
            password.expose()
        ],
    )
    .await?;
    Ok(())
}

/// The user with this id.
pub async fn find(connection: &mut Connection<Main>, id: UserId) -> Result<Option<User>> {
    let found = connection
        .query_opt(
            "SELECT id, first_name, last_name, email, is_active, created_at, updated_at, created_by FROM users WHERE id = $1",
            params![id],
        )
        .await?;
    found.map(user).transpose()
}

/// Locks the row of a user until the transaction ends, so that concurrent changes wait.
pub async fn lock(tx: &mut MainTx, id: UserId) -> Result<()> {
    tx.query_opt("SELECT id FROM users WHERE id = $1 FOR UPDATE", params![id]).await?;
    Ok(())
}

/// The user with this e-mail address.
pub async fn find_by_email(connection: &mut Connection<Main>, email: &Email) -> Result<Option<User>> {
    Ok(find_for_login(connection, email).await?.map(|(user, _)| user))
}

/// The user with this e-mail address, and the password hash to verify.
pub async fn find_for_login(connection: &mut Connection<Main>, email: &Email) -> Result<Option<(User, PasswordHash)>> {
    let found = connection
        .query_opt(
            "SELECT password_hash, id, first_name, last_name, email, is_active, created_at, updated_at, created_by
             FROM users WHERE email = $1",
            params![email.as_str()],
        )
        .await?;
    found
        .map(|mut row| {
            let hash = PasswordHash::from_stored(row.take()?);
            Ok((user(row)?, hash))
        })
        .transpose()
}

/// Changes the names that are given. Returns the updated user.
pub async fn rename(
    tx: &mut MainTx,
    id: UserId,
    first_name: Option<&PersonName>,
    last_name: Option<&PersonName>,
    now: Timestamp,
) -> Result<Option<User>> {
    let changed = tx
        .query_opt(
            "UPDATE users SET first_name = COALESCE($2, first_name), last_name = COALESCE($3, last_name), updated_at = $4
             WHERE id = $1
             RETURNING id, first_name, last_name, email, is_active, created_at, updated_at, created_by",
            params![id, first_name.map(PersonName::as_str), last_name.map(PersonName::as_str), now],
        )
        .await?;
    changed.map(user).transpose()
}

/// Activates or deactivates a user. Returns whether the user exists.
pub async fn set_active(tx: &mut MainTx, id: UserId, is_active: bool, now: Timestamp) -> Result<bool> {
    let changed = tx.execute("UPDATE users SET is_active = $2, updated_at = $3 WHERE id = $1", params![id, is_active, now]).await?;
    Ok(changed == 1)
}

/// Replaces the password hash, unless it has changed meanwhile.
pub async fn replace_password_hash(tx: &mut MainTx, id: UserId, old: &PasswordHash, new: &PasswordHash) -> Result<()> {
    tx.execute("UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2", params![id, old.expose(), new.expose()]).await?;
    Ok(())
}

pub(crate) fn user(mut row: Row) -> Result<User> {
    Ok(User {
        id: row.take()?,
        first_name: row.take()?,
        last_name: row.take()?,
        email: row.take()?,
        is_active: row.take()?,
        created_at: row.take()?,
        updated_at: row.take()?,
        created_by: row.take()?,
    })
}
