//! Requests that are done once, however often they are sent.

use database::{Connection, Result, Scope, Tx, params};
use domain::{IdempotencyKey, PastRequest, Timestamp, UserId};
use uuid::Uuid;

/// The request that a user made with this key since a time.
pub async fn find<S: Scope>(
    connection: &mut Connection<S>,
    user_id: UserId,
    key: &IdempotencyKey,
    since: Timestamp,
) -> Result<Option<PastRequest>> {
    let found = connection
        .query_opt(
            "SELECT fingerprint, resource_id, answer FROM idempotency_keys WHERE user_id = $1 AND idempotency_key = $2 AND created_at > $3",
            params![user_id, key.as_str(), since],
        )
        .await?;
    found.map(|mut row| Ok(PastRequest { fingerprint: row.take()?, resource_id: row.take()?, answer: row.take()? })).transpose()
}

/// Notes a request, with its answer if there is one already. Answers whether it is the first with this key since a time; when
/// somebody else is noting the key at this moment, waits for the end of that.
pub async fn insert<S: Scope>(
    tx: &mut Tx<S>,
    user_id: UserId,
    key: &IdempotencyKey,
    request: &PastRequest,
    since: Timestamp,
    now: Timestamp,
) -> Result<bool> {
    let noted = tx
        .execute(
            "INSERT INTO idempotency_keys (user_id, idempotency_key, fingerprint, resource_id, answer, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (user_id, idempotency_key) DO UPDATE
             SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, answer = excluded.answer,
                 created_at = excluded.created_at
             WHERE idempotency_keys.created_at <= $7",
            params![user_id, key.as_str(), &request.fingerprint[..], request.resource_id, request.answer.as_deref(), now, since],
        )
        .await?;
    Ok(noted == 1)
}

/// Notes the answer of the request that made this.
pub async fn set_answer<S: Scope>(tx: &mut Tx<S>, user_id: UserId, key: &IdempotencyKey, resource_id: Uuid, answer: &str) -> Result<()> {
    tx.execute(
        "UPDATE idempotency_keys SET answer = $4 WHERE user_id = $2 AND idempotency_key = $3 AND resource_id = $1",
        params![resource_id, user_id, key.as_str(), answer],
    )
    .await?;
    Ok(())
}

/// Forgets the request that was to make this and was never answered.
pub async fn delete_unanswered<S: Scope>(tx: &mut Tx<S>, resource_id: Uuid) -> Result<()> {
    tx.execute("DELETE FROM idempotency_keys WHERE resource_id = $1 AND answer IS NULL", params![resource_id]).await?;
    Ok(())
}

/// Forgets the requests from before a time. Answers how many.
pub async fn delete_before<S: Scope>(tx: &mut Tx<S>, before: Timestamp) -> Result<u64> {
    tx.execute("DELETE FROM idempotency_keys WHERE created_at <= $1", params![before]).await
}
