//! Requests that are done once, however often they are sent: the key is noted in the transaction of what the request does, so
//! neither is there without the other, and with the answer, so that a repetition is told the same.

use std::time::Duration;

use domain::{Conflict, Error, IdempotencyKey, PastRequest, Result, Timestamp, UserId};
use models::{Connection, Scope, Tx, idempotency};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Core;

/// How long a key is remembered.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// A request that is to be handled once.
pub struct IdempotentRequest<'a, T> {
    /// The key that the client chose.
    pub key: IdempotencyKey,
    /// Renders its answer, which is kept for retries.
    pub answer: &'a (dyn Fn(&T) -> String + Sync),
}

/// What came of a request that is handled once. `R` is how the answer to an earlier one is kept.
pub enum IdempotentOutcome<T, R = String> {
    /// It was handled now.
    Fresh(T),
    /// It was handled before, with this answer.
    Replayed(R),
}

/// Tells what is asked for from everything else: SHA-256 over the parts, each with its length before it.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn remembered_since(core: &Core) -> Timestamp {
    core.clock().now().minus(MEMORY)
}

/// The request that a user made before with this key, if any.
///
/// # Errors
/// [`Conflict::IdempotencyKeyReused`] when it asked for something else.
pub(crate) async fn find_past_request<S: Scope>(
    core: &Core,
    connection: &mut Connection<S>,
    user_id: UserId,
    key: &IdempotencyKey,
    fingerprint: [u8; 32],
) -> Result<Option<PastRequest>> {
    match idempotency::find(connection, user_id, key, remembered_since(core)).await? {
        Some(past) if past.fingerprint != fingerprint => Err(Error::Conflict(Conflict::IdempotencyKeyReused)),
        past => Ok(past),
    }
}

/// Notes a request in the transaction of what it does. Answers whether it is the first with its key: else the transaction
/// must not be committed.
pub(crate) async fn record_request<S: Scope>(
    core: &Core,
    tx: &mut Tx<S>,
    user_id: UserId,
    key: &IdempotencyKey,
    fingerprint: [u8; 32],
    resource_id: Uuid,
    answer: Option<String>,
) -> Result<bool> {
    let request = PastRequest { fingerprint, resource_id, answer };
    Ok(idempotency::insert(tx, user_id, key, &request, remembered_since(core), core.clock().now()).await?)
}

/// Forgets requests whose keys need not be remembered any more.
pub(crate) async fn purge_past_requests<S: Scope>(core: &Core, tx: &mut Tx<S>) -> Result<u64> {
    Ok(idempotency::delete_before(tx, remembered_since(core)).await?)
}
