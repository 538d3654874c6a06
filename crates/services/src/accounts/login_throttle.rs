//! Slows down guesses at an account's password without locking its owner out.
//!
//! Failures in a row are counted for the typed address, whether or not it has an account, so that a refusal tells nothing. After
//! [`FREE_FAILURES`] of them, every further attempt has to wait, longer each time. A client that is known from an earlier login, by
//! its device token or its address, has a count of its own: strangers can't lock it out. The counts are rows of the main database, so
//! they hold in every instance and after a restart.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use domain::{Error, Result, TokenId, TokenKind, User};
use models::{MainTx, login_throttles};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Core, accounts::passwords::Source};

/// How many failures in a row have no consequence. At most so many attempts of one key are in progress at once.
const FREE_FAILURES: u32 = 5;
/// How long the first attempt after them has to wait; each further one twice as long.
const FIRST_DELAY: Duration = Duration::from_secs(30);
const MAX_DELAY: Duration = Duration::from_secs(900);
/// How long after the last failure the row ends by itself.
const FAILURES_KEPT: Duration = Duration::from_hours(24);
/// How many addresses of an account's logins are kept, and how long.
const SOURCES_KEPT: u32 = 10;
const SOURCE_LIFE: Duration = Duration::from_hours(90 * 24);

type Key = login_throttles::Key;

/// The client that asks for a login.
#[derive(Clone, Copy, Debug)]
pub struct LoginClient<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The device token of an earlier login.
    pub device_token: Option<&'a str>,
}

/// Attempts in progress, by key.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<HashMap<Key, Arc<Semaphore>>>);

impl Attempts {
    fn turns(&self, key: Key) -> Arc<Semaphore> {
        Arc::clone(self.0.lock().entry(key).or_insert_with(|| Arc::new(Semaphore::new(FREE_FAILURES as usize))))
    }
}

/// A login attempt that was allowed. While it lives, few others of its key are in progress.
pub(crate) struct Attempt {
    account: Key,
    key: Key,
    source: Key,
    had_failures: bool,
    core: Core,
    /// None before it is its turn, and where failures have no consequence.
    turn: Option<OwnedSemaphorePermit>,
}

impl Attempt {
    /// Where the attempt comes from, for fair turns.
    pub(crate) fn source(&self, client: &LoginClient<'_>) -> Source {
        source_of(client.address, &self.account)
    }

    /// Records that the attempt failed.
    pub(crate) async fn fail(&self, tx: &mut MainTx) -> Result<()> {
        if !self.core.settings().throttle_logins {
            return Ok(());
        }
        let now = self.core.clock().now();
        let failures = login_throttles::count_failure(tx, &self.key, now, now.plus(FAILURES_KEPT)).await?;
        login_throttles::block(tx, &self.key, now.plus(delay(failures)));
        Ok(())
    }

    /// Records that the attempt succeeded: the row of failures ends, and the client is known from now on.
    pub(crate) fn succeed(&self, tx: &mut MainTx) {
        if self.had_failures {
            login_throttles::clear(tx, &self.key);
        }
        login_throttles::record_source(tx, &self.account, &self.source, self.core.clock().now(), SOURCES_KEPT);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.turn = None;
        let mut attempts = self.core.login_attempts.0.lock();
        // Only the map refers to it.
        if attempts.get(&self.key).is_some_and(|turns| Arc::strong_count(turns) == 1) {
            attempts.remove(&self.key);
        }
    }
}

/// Begins an attempt to log in with this address, which belongs to `user` if it has an account.
///
/// # Errors
/// [`Error::RateLimited`] after too many failures.
pub(crate) async fn begin_attempt(core: &Core, address: &str, user: Option<&User>, client: &LoginClient<'_>) -> Result<Attempt> {
    let account = account_key(address);
    let source = hash(&[b"address", client.address.to_canonical().to_string().as_bytes()]);
    let mut attempt = Attempt { account, key: account, source, had_failures: false, core: core.clone(), turn: None };
    if !core.settings().throttle_logins {
        return Ok(attempt);
    }
    if let Some(device) = known_device(core, user, client.device_token) {
        attempt.key = hash(&[&account, device.uuid().as_bytes()]);
    } else if login_throttles::is_known_source(&mut core.main().read().await?, &account, &source).await? {
        attempt.key = hash(&[&account, &source]);
    }
    // Declared after the attempt, which looks at its end whether anything else refers to them.
    let turns = core.login_attempts.turns(attempt.key);
    // After a failure one at a time, so that its consequence precedes the next attempt.
    let needed = if failures(&attempt).await? > 0 { FREE_FAILURES } else { 1 };
    attempt.turn = Some(turns.acquire_many_owned(needed).await.map_err(Error::internal)?);
    attempt.had_failures = failures(&attempt).await? > 0;
    Ok(attempt)
}

/// The failures in a row before this attempt.
///
/// # Errors
/// [`Error::RateLimited`] when it has to wait.
async fn failures(attempt: &Attempt) -> Result<u64> {
    let core = &attempt.core;
    let now = core.clock().now();
    match login_throttles::find(&mut core.main().read().await?, &attempt.key, now).await? {
        Some(throttle) if throttle.blocked_until > now => Err(Error::RateLimited { retry_after: throttle.blocked_until.since(now) }),
        Some(throttle) => Ok(throttle.failures),
        None => Ok(0),
    }
}

/// Purges what no longer counts.
pub(crate) async fn purge_throttles(core: &Core, tx: &mut MainTx) -> Result<()> {
    let now = core.clock().now();
    Ok(login_throttles::delete_expired(tx, now, now.minus(SOURCE_LIFE)).await?)
}

/// The device of the user's earlier login, if the token is one.
fn known_device(core: &Core, user: Option<&User>, token: Option<&str>) -> Option<TokenId> {
    let claims = core.parts.tokens.verify(token?, TokenKind::Device, core.clock().now()).ok()?;
    (claims.user_id == user?.id).then_some(claims.token_id)
}

/// Where a request for the account with this address comes from, for fair turns.
pub(crate) fn source(client: IpAddr, address: &str) -> Source {
    source_of(client, &account_key(address))
}

fn source_of(client: IpAddr, account: &Key) -> Source {
    let [first, ..] = account.as_chunks().0 else { return Source::new(client, 0) };
    Source::new(client, u64::from_be_bytes(*first))
}

/// Stands for the account with this address, whether or not there is one.
fn account_key(address: &str) -> Key {
    hash(&[b"account", address.trim().to_lowercase().as_bytes()])
}

/// How long the next attempt has to wait after this many failures in a row.
fn delay(failures: u64) -> Duration {
    let Some(beyond) = failures.checked_sub(u64::from(FREE_FAILURES)) else { return Duration::ZERO };
    let doubled = 1_u32.checked_shl(u32::try_from(beyond).unwrap_or(u32::MAX)).unwrap_or(u32::MAX);
    FIRST_DELAY.saturating_mul(doubled).min(MAX_DELAY)
}

fn hash(parts: &[&[u8]]) -> Key {
    let hasher = parts.iter().fold(Sha256::new(), |hasher, part| hasher.chain_update((part.len() as u64).to_be_bytes()).chain_update(part));
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_at_most_twenty_guesses_an_hour() {
        let (mut guesses, mut elapsed) = (0, Duration::ZERO);
        while elapsed <= Duration::from_hours(1) {
            guesses += 1;
            elapsed += delay(guesses);
        }
        // With those that may be in progress when the last free one fails.
        assert!(guesses + u64::from(FREE_FAILURES) <= 20, "{guesses}");
        assert_eq!((delay(0), delay(4), delay(5), delay(6)), (Duration::ZERO, Duration::ZERO, FIRST_DELAY, 2 * FIRST_DELAY));
        assert_eq!((delay(40), delay(u64::MAX)), (MAX_DELAY, MAX_DELAY));
    }
}
