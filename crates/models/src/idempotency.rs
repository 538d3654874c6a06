//! Idempotent requests: executed once, however often the client sends them.

use database::{Connection, Result, Scope, Tx, params};
use domain::{IdempotencyKey, PastRequest, Timestamp, UserId};
use uuid::Uuid;

/// The user's request with this key, if it was recorded after `since`.
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

/// Records a request, with its response if there is one already. Returns whether it is the first with this key since `since`. If
/// a concurrent transaction inserts the same key, this waits for that transaction to end.
pub async fn insert<S: Scope>(
    tx: &mut Tx<S>,
    user_id: UserId,
    key: &IdempotencyKey,
    request: &PastRequest,
    since: Timestamp,
    now: Timestamp,
) -> Result<bool> {
    let inserted = tx
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
    Ok(inserted == 1)
}

/// Records the response to the request that created this resource.
pub async fn set_answer<S: Scope>(tx: &mut Tx<S>, user_id: UserId, key: &IdempotencyKey, resource_id: Uuid, answer: &str) -> Result<()> {
    tx.execute(
        "UPDATE idempotency_keys SET answer = $4 WHERE user_id = $2 AND idempotency_key = $3 AND resource_id = $1",
        params![resource_id, user_id, key.as_str(), answer],
    )
    .await?;
    Ok(())
}

/// Purges the unanswered request that was to create this resource.
pub async fn delete_unanswered<S: Scope>(tx: &mut Tx<S>, resource_id: Uuid) -> Result<()> {
    tx.execute("DELETE FROM idempotency_keys WHERE resource_id = $1 AND answer IS NULL", params![resource_id]).await?;
    Ok(())
}

/// Purges the requests recorded at `before` or earlier. Returns their number.
pub async fn delete_before<S: Scope>(tx: &mut Tx<S>, before: Timestamp) -> Result<u64> {
    tx.execute("DELETE FROM idempotency_keys WHERE created_at <= $1", params![before]).await
}
