//! Failed logins in a row, and the clients that accounts were logged in from.

use database::{Connection, Main, MainTx, Result, params};
use domain::Timestamp;

use crate::single;

/// A SHA-256.
pub type Key = [u8; 32];

/// The failed logins in a row of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginThrottle {
    /// How many.
    pub failures: u64,
    /// When the next attempt is allowed.
    pub blocked_until: Timestamp,
}

/// The failed logins of a key, unless they have expired.
pub async fn find(connection: &mut Connection<Main>, key: &Key, now: Timestamp) -> Result<Option<LoginThrottle>> {
    let found = connection
        .query_opt(
            "SELECT failures, blocked_until FROM login_throttles WHERE throttle_key = $1 AND expires_at > $2",
            params![key.as_slice(), now],
        )
        .await?;
    found.map(|mut row| Ok(LoginThrottle { failures: row.take()?, blocked_until: row.take()? })).transpose()
}

/// Counts a failed login. Returns how many there are in a row now.
pub async fn count_failure(tx: &mut MainTx, key: &Key, now: Timestamp, expires_at: Timestamp) -> Result<u64> {
    let counted = tx
        .query_one(
            "INSERT INTO login_throttles (throttle_key, failures, blocked_until, expires_at) VALUES ($1, 1, $2, $3)
             ON CONFLICT (throttle_key) DO UPDATE SET
                 failures = CASE WHEN login_throttles.expires_at > $2 THEN login_throttles.failures + 1 ELSE 1 END,
                 expires_at = $3
             RETURNING failures",
            params![key.as_slice(), now, expires_at],
        )
        .await?;
    single(counted)
}

/// Allows no further attempt before this time.
pub fn block(tx: &mut MainTx, key: &Key, until: Timestamp) {
    tx.defer("UPDATE login_throttles SET blocked_until = $2 WHERE throttle_key = $1", params![key.as_slice(), until]);
}

/// Ends the row of failures.
pub fn clear(tx: &mut MainTx, key: &Key) {
    tx.defer("DELETE FROM login_throttles WHERE throttle_key = $1", params![key.as_slice()]);
}

/// Whether the account was logged in to from this source.
pub async fn is_known_source(connection: &mut Connection<Main>, account: &Key, source: &Key) -> Result<bool> {
    let found = connection
        .query_opt("SELECT 1 FROM login_sources WHERE account = $1 AND source = $2", params![account.as_slice(), source.as_slice()])
        .await?;
    Ok(found.is_some())
}

/// Records a login from a source, and purges all but the account's `kept` latest sources.
pub fn record_source(tx: &mut MainTx, account: &Key, source: &Key, now: Timestamp, kept: u32) {
    tx.defer(
        "INSERT INTO login_sources (account, source, seen_at) VALUES ($1, $2, $3)
         ON CONFLICT (account, source) DO UPDATE SET seen_at = $3",
        params![account.as_slice(), source.as_slice(), now],
    );
    tx.defer(
        "DELETE FROM login_sources WHERE account = $1 AND source NOT IN
             (SELECT source FROM login_sources WHERE account = $1 ORDER BY seen_at DESC, source LIMIT $2)",
        params![account.as_slice(), kept],
    );
}

/// Purges expired rows of failures, and sources that were last seen before `seen_before`.
pub async fn delete_expired(tx: &mut MainTx, now: Timestamp, seen_before: Timestamp) -> Result<()> {
    tx.execute("DELETE FROM login_throttles WHERE expires_at <= $1", params![now]).await?;
    tx.execute("DELETE FROM login_sources WHERE seen_at < $1", params![seen_before]).await?;
    Ok(())
}
