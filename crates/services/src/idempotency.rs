//! Idempotent requests. The key is recorded in the transaction of the request's change, so neither exists without the other. The
//! response is stored with it, so a retry gets the same response.

use std::time::Duration;

use domain::{Conflict, Error, IdempotencyKey, PastRequest, Result, Timestamp, UserId};
use models::{Connection, Scope, Tx, idempotency};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Core;

/// How long a key is remembered.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A request that must be handled only once.
pub struct IdempotentRequest<'a, T> {
    /// The key that the client chose.
    pub key: IdempotencyKey,
    /// Renders the response, which is stored for retries.
    pub answer: &'a (dyn Fn(&T) -> String + Sync),
}

/// The outcome of an idempotent request. `R` is the form in which an earlier response was stored.
pub enum IdempotentOutcome<T, R = String> {
    /// It was handled now.
    Fresh(T),
    /// It was handled before, with this response.
    Replayed(R),
}

/// Distinguishes requests: SHA-256 over the parts, each prefixed with its length.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn remembered_since(core: &Core) -> Timestamp {
    core.clock().now().minus(RETENTION)
}

/// The user's earlier request with this key, if any.
///
/// # Errors
/// [`Conflict::IdempotencyKeyReused`] when that request asked for something else.
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

/// Records a request in the transaction of its change. Returns whether it is the first with its key; if not, the transaction must
/// not be committed.
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

/// Purges requests whose keys have expired.
pub(crate) async fn purge_past_requests<S: Scope>(core: &Core, tx: &mut Tx<S>) -> Result<u64> {
    Ok(idempotency::delete_before(tx, remembered_since(core)).await?)
}
