//! Limits of clients and users.

use std::time::Duration;

use api::{Rate, RateLimits, TrustedProxies};
use services::RegistrationPolicy;

use super::{ConfigError, Settings, values, variables};

/// The most tenants that a limit may allow.
const MAX_TENANTS: u64 = 1_000_000;

/// Limits of clients and users.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The limits of requests; none if they are switched off.
    pub rates: Option<RateLimits>,
    /// The proxies whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: TrustedProxies,
    /// Who may register.
    pub registration: RegistrationPolicy,
    /// The maximum number of active tenants that a user has created.
    pub tenants_per_user: u64,
}

impl Limits {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        let rates = RateLimits {
            auth: settings.get(&variables::RATE_LIMIT_AUTH, rate)?,
            read: settings.get(&variables::RATE_LIMIT_READ, rate)?,
            write: settings.get(&variables::RATE_LIMIT_WRITE, rate)?,
            upload: settings.get(&variables::RATE_LIMIT_UPLOAD, rate)?,
            tenant: settings.get(&variables::RATE_LIMIT_TENANT, rate)?,
        };
        Ok(Self {
            rates: settings.get(&variables::RATE_LIMIT_ENABLED, values::boolean)?.then_some(rates),
            trusted_proxies: settings.get_or(
                &variables::TRUSTED_PROXIES,
                |text| TrustedProxies::parse(values::list(text)),
                Default::default,
            )?,
            registration: settings.get(&variables::REGISTRATION, registration)?,
            tenants_per_user: settings.get(&variables::TENANTS_PER_USER, values::number(0..=MAX_TENANTS))?,
        })
    }
}

fn registration(text: &str) -> Result<RegistrationPolicy, String> {
    match text.to_ascii_lowercase().as_str() {
        "open" => Ok(RegistrationPolicy::Open),
        "closed" => Ok(RegistrationPolicy::Closed),
        _ => Err("must be open or closed".to_owned()),
    }
}

/// Parses a number of requests per time: `200/minute`, `200 per minute`.
fn rate(text: &str) -> Result<Rate, String> {
    let parsed = || {
        let (requests, unit) = text.split_once('/').or_else(|| text.split_once(" per "))?;
        let seconds = match unit.trim().to_ascii_lowercase().as_str() {
            "s" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3600,
            _ => return None,
        };
        let requests = requests.trim().parse().ok().filter(|requests| (1..=1_000_000).contains(requests))?;
        Some(Rate { requests, per: Duration::from_secs(seconds) })
    };
    parsed().ok_or_else(|| "must be a number of requests per second, minute or hour, like 200/minute".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};
    use super::*;

    #[test]
    fn rates_are_read_in_either_form() {
        for (text, requests, seconds) in [("200/minute", 200, 60), ("5 per second", 5, 1), (" 1 / HOUR", 1, 3600)] {
            assert_eq!(rate(text), Ok(Rate { requests, per: Duration::from_secs(seconds) }), "{text}");
        }
        for text in ["", "200", "0/minute", "-1/minute", "1/day", "1000001/second", "1/2/minute"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_can_be_switched_off_and_set() {
        let load = |settings: &[(&str, &str)]| Workplace::new().load(settings).unwrap().limits;
        assert_eq!(load(&[]).rates.unwrap().auth, Rate { requests: 200, per: Duration::from_secs(60) });
        assert_eq!(load(&[("RATE_LIMIT_ENABLED", "false")]).rates, None);
        assert_eq!(load(&[("RATE_LIMIT_READ", "7/second")]).rates.unwrap().read.requests, 7);
        assert_eq!(load(&[("TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1")]).trusted_proxies.to_string(), "10.0.0.0/8,127.0.0.1/32");
        assert_eq!(load(&[("REGISTRATION", "Closed")]).registration, RegistrationPolicy::Closed);
        assert!(problem(&[("TRUSTED_PROXIES", "proxy.example.com")]).starts_with("TRUSTED_PROXIES must be addresses"));
        assert!(problem(&[("REGISTRATION", "shut")]).starts_with("REGISTRATION must be open or closed"));
    }
}
