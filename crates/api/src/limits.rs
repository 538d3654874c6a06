//! Limits of requests: per client address where there is no user yet, per user, and per tenant in sum.
//!
//! Each is a generic cell rate algorithm (ITU-T I.371): a bucket of `requests` that refills evenly. The counts are of this process.

use std::{
    array,
    collections::HashMap,
    fmt::{self, Write as _},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, request::Parts};
use domain::{Error, Result, TenantId, UserId};
use parking_lot::Mutex;

/// How many requests are allowed in which time. They may come all at once; the bucket refills evenly over the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The number of requests, at least 1.
    pub requests: u32,
    /// The time: a second or more.
    pub per: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/second", self.requests),
            60 => write!(f, "{}/minute", self.requests),
            3600 => write!(f, "{}/hour", self.requests),
            seconds => write!(f, "{} per {seconds} s", self.requests),
        }
    }
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Login, registration and refresh, per client address.
    pub auth: Rate,
    /// Reading, per user.
    pub read: Rate,
    /// Changing, per user.
    pub write: Rate,
    /// Uploads, per user.
    pub upload: Rate,
    /// Everything, per tenant.
    pub tenant: Rate,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
    Upload,
}

impl Class {
    /// The class of a request with this method and path.
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        let is_upload = || path.ends_with("/documents") || path.ends_with("/content") || path.contains("/documents/tus");
        match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Read,
            _ if is_upload() && *method != Method::DELETE => Self::Upload,
            _ => Self::Write,
        }
    }
}

/// Counts requests.
pub(crate) struct Limiters {
    auth: Limiter,
    read: Limiter,
    write: Limiter,
    upload: Limiter,
    tenant: Limiter,
}

impl Limiters {
    pub(crate) fn new(limits: &RateLimits) -> Self {
        Self {
            auth: Limiter::new("auth", limits.auth),
            read: Limiter::new("read", limits.read),
            write: Limiter::new("write", limits.write),
            upload: Limiter::new("upload", limits.upload),
            tenant: Limiter::new("tenant", limits.tenant),
        }
    }

    /// Counts a request without a user.
    ///
    /// # Errors
    /// [`Error::RateLimited`].
    pub(crate) fn check_address(&self, client: IpAddr, report: &Report) -> Result<()> {
        self.auth.check(network(client), report)
    }

    /// Counts a request of a user.
    ///
    /// # Errors
    /// [`Error::RateLimited`].
    pub(crate) fn check_user(&self, class: Class, user: UserId, report: &Report) -> Result<()> {
        let by_user = match class {
            Class::Read => &self.read,
            Class::Write => &self.write,
            Class::Upload => &self.upload,
        };
        by_user.check(user.uuid().as_u128(), report)
    }

    /// Counts a request of a tenant's member.
    ///
    /// # Errors
    /// [`Error::RateLimited`].
    pub(crate) fn check_tenant(&self, tenant: TenantId, report: &Report) -> Result<()> {
        self.tenant.check(tenant.uuid().as_u128(), report)
    }
}

/// The client as it is counted: its address, or the /64 network that one client has as a whole.
fn network(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

const SHARDS: usize = 16;
/// The maximum number of keys of a shard, some 400 kB.
const MAX_KEYS: usize = 8192;

/// One limit, for many keys. Its memory is bounded: a bucket that has refilled is as good as none.
struct Limiter {
    name: &'static str,
    rate: Rate,
    /// The time in which one request is refilled.
    interval: Duration,
    hasher: RandomState,
    /// When the bucket of each key will have refilled.
    shards: [Mutex<HashMap<u128, Instant>>; SHARDS],
}

impl Limiter {
    fn new(name: &'static str, rate: Rate) -> Self {
        let interval = rate.per / rate.requests.max(1);
        Self { name, rate, interval, hasher: RandomState::new(), shards: array::from_fn(|_| Mutex::default()) }
    }

    fn check(&self, key: u128, report: &Report) -> Result<()> {
        let outcome = self.count(key, Instant::now());
        report.add(self, outcome);
        outcome.map(drop).map_err(|retry_after| Error::RateLimited { retry_after })
    }

    /// Takes a request from the key's bucket. Returns how long it needs to refill, or else when the next request is allowed.
    fn count(&self, key: u128, now: Instant) -> Result<Duration, Duration> {
        let shard = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let mut refilled_at = self.shards[shard].lock();
        let filling = refilled_at.get(&key).map_or(Duration::ZERO, |at| at.saturating_duration_since(now)) + self.interval;
        if let Some(excess) = filling.checked_sub(self.rate.per).filter(|excess| !excess.is_zero()) {
            return Err(excess);
        }
        if refilled_at.len() >= MAX_KEYS && !refilled_at.contains_key(&key) {
            make_room(&mut refilled_at, now);
        }
        refilled_at.insert(key, now + filling);
        Ok(filling)
    }

    /// The requests that are left in a bucket which needs so long to refill.
    fn remaining(&self, filling: Duration) -> u64 {
        let left = self.rate.per.saturating_sub(filling).as_nanos() / self.interval.as_nanos().max(1);
        u64::try_from(left).unwrap_or(u64::MAX)
    }
}

/// Forgets the buckets that have refilled, and if there are none the quarter that is nearest to it, so that the next keys find room.
fn make_room(refilled_at: &mut HashMap<u128, Instant>, now: Instant) {
    refilled_at.retain(|_, at| *at > now);
    if refilled_at.len() >= MAX_KEYS {
        let mut times: Vec<_> = refilled_at.values().copied().collect();
        let (_, quarter, _) = times.select_nth_unstable(MAX_KEYS / 4);
        refilled_at.retain(|_, at| *at > *quarter);
    }
}

/// What the limits of a request said, for the headers of its response (draft-ietf-httpapi-ratelimit-headers).
#[derive(Clone, Default)]
pub(crate) struct Report(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    policies: String,
    limits: String,
}

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl Report {
    /// The report of a request.
    pub(crate) fn of(parts: &Parts) -> Self {
        parts.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    fn add(&self, limiter: &Limiter, outcome: Result<Duration, Duration>) {
        let mut said = self.0.lock();
        let separator = if said.policies.is_empty() { "" } else { ", " };
        let Limiter { name, rate: Rate { requests, per }, .. } = limiter;
        let (remaining, time) = match outcome {
            Ok(filling) => (limiter.remaining(filling), filling),
            Err(retry_after) => (0, retry_after),
        };
        // Writing to a string can't fail.
        let _ = write!(said.policies, "{separator}\"{name}\";q={requests};w={}", per.as_secs());
        let _ = write!(said.limits, "{separator}\"{name}\";r={remaining};t={}", time.as_secs_f64().ceil());
    }

    /// Adds the headers, if a limit was asked.
    pub(crate) fn add_headers(&self, headers: &mut HeaderMap) {
        let said = self.0.lock();
        if said.policies.is_empty() {
            return;
        }
        for (name, text) in [(RATE_LIMIT_POLICY, &said.policies), (RATE_LIMIT, &said.limits)] {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_bucket_empties_at_once_and_refills_evenly() {
        let limiter = Limiter::new("read", Rate { requests: 6, per: MINUTE });
        let start = Instant::now();
        let at = |seconds| limiter.count(1, start + Duration::from_secs(seconds));
        for n in 1..=6 {
            assert_eq!(at(0), Ok(Duration::from_secs(10 * n)));
        }
        assert_eq!(at(0), Err(Duration::from_secs(10)));
        assert_eq!(at(9), Err(Duration::from_secs(1)));
        assert_eq!(at(10), Ok(MINUTE));
        assert_eq!(at(11), Err(Duration::from_secs(9)));
        assert_eq!(limiter.count(2, start), Ok(Duration::from_secs(10)), "another key");
        assert_eq!(at(200), Ok(Duration::from_secs(10)), "refilled");
        assert_eq!((limiter.remaining(Duration::from_secs(10)), limiter.remaining(MINUTE)), (5, 0));
    }

    #[test]
    fn memory_is_bounded_and_who_is_limited_stays_so() {
        let limiter = Limiter::new("auth", Rate { requests: 2, per: MINUTE });
        let start = Instant::now();
        let limited = 7;
        assert!(limiter.count(limited, start).is_ok() && limiter.count(limited, start).is_ok());
        for key in 1000..1000 + 2 * (SHARDS * MAX_KEYS) as u128 {
            assert!(limiter.count(key, start).is_ok());
        }
        assert!(limiter.shards.iter().all(|shard| shard.lock().len() <= MAX_KEYS));
        assert!(limiter.count(limited, start + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn clients_are_counted_by_address_or_ipv6_network() {
        let key = |text: &str| network(text.parse().unwrap());
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }

    #[test]
    fn a_request_has_one_class() {
        let documents = "/api/tenants/1/documents";
        for (method, path, class) in [
            (Method::GET, documents, Class::Read),
            (Method::HEAD, "/api/tenants/1/documents/tus/2", Class::Read),
            (Method::POST, documents, Class::Upload),
            (Method::PUT, "/api/tenants/1/documents/2/content", Class::Upload),
            (Method::PATCH, "/api/tenants/1/documents/tus/2", Class::Upload),
            (Method::DELETE, "/api/tenants/1/documents/tus/2", Class::Write),
            (Method::PUT, "/api/tenants/1/documents/2", Class::Write),
            (Method::POST, "/api/tenants", Class::Write),
        ] {
            assert_eq!(Class::of(&method, path), class, "{method} {path}");
        }
    }

    #[test]
    fn the_headers_name_every_limit() {
        let report = Report::default();
        let (read, tenant) =
            (Limiter::new("read", Rate { requests: 10, per: MINUTE }), Limiter::new("tenant", Rate { requests: 1, per: MINUTE }));
        read.check(1, &report).unwrap();
        tenant.check(1, &report).unwrap();
        assert!(matches!(tenant.check(1, &Report::default()), Err(Error::RateLimited { .. })));
        let mut headers = HeaderMap::new();
        report.add_headers(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"read\";q=10;w=60, \"tenant\";q=1;w=60");
        assert_eq!(headers["ratelimit"], "\"read\";r=9;t=6, \"tenant\";r=0;t=60");
        let mut none = HeaderMap::new();
        Report::default().add_headers(&mut none);
        assert!(none.is_empty());
    }
}
