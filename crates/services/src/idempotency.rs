//! Requests that are done once, however often they are sent: the key is noted in the transaction of what the request does, so
//! neither is there without the other, and with the answer, so that a repetition is told the same.

use std::time::Duration;

use domain::{Conflict, Error, IdempotencyKey, PastRequest, Result, Timestamp, UserId};
use models::{Connection, Scope, Tx, idempotency};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Services;

/// How long a key is remembered.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// A request that is to be done once.
pub struct Once<'a, T> {
    /// What the client names it by.
    pub key: IdempotencyKey,
    /// Its answer, to be kept for repetitions.
    pub answer: &'a (dyn Fn(&T) -> String + Sync),
}

/// What came of a request that is done once.
pub enum Answered<T> {
    /// It was done.
    Now(T),
    /// It was done before, and answered this.
    Before(String),
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

impl Services {
    fn remembered_since(&self) -> Timestamp {
        self.clock().now().minus(MEMORY)
    }

    /// The request that a user made before with this key, if any.
    ///
    /// # Errors
    /// [`Conflict::IdempotencyKeyReused`] when it asked for something else.
    pub(crate) async fn find_past_request<S: Scope>(
        &self,
        connection: &mut Connection<S>,
        user_id: UserId,
        key: &IdempotencyKey,
        fingerprint: [u8; 32],
    ) -> Result<Option<PastRequest>> {
        match idempotency::find(connection, user_id, key, self.remembered_since()).await? {
            Some(past) if past.fingerprint != fingerprint => Err(Error::Conflict(Conflict::IdempotencyKeyReused)),
            past => Ok(past),
        }
    }

    /// Notes a request in the transaction of what it does. Answers whether it is the first with its key: else the transaction
    /// must not be committed.
    pub(crate) async fn note_request<S: Scope>(
        &self,
        tx: &mut Tx<S>,
        user_id: UserId,
        key: &IdempotencyKey,
        fingerprint: [u8; 32],
        resource_id: Uuid,
        answer: Option<String>,
    ) -> Result<bool> {
        let request = PastRequest { fingerprint, resource_id, answer };
        Ok(idempotency::insert(tx, user_id, key, &request, self.remembered_since(), self.clock().now()).await?)
    }

    /// Forgets requests whose keys need not be remembered any more.
    pub(crate) async fn forget_past_requests<S: Scope>(&self, tx: &mut Tx<S>) -> Result<u64> {
        Ok(idempotency::delete_before(tx, self.remembered_since()).await?)
    }
}
