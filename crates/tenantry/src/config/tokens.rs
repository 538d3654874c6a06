//! The signing keys and lifetimes of tokens.

use std::{collections::BTreeSet, path::Path, time::Duration};

use secrecy::SecretString;

use super::{ConfigError, Environment, Settings, secret_file, values, variables};

const YEAR: u64 = 365 * 24 * 60 * 60;

/// The signing keys and lifetimes of tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The secret that signs and verifies; at least 32 bytes.
    pub secret: SecretString,
    /// Secrets that only verify.
    pub previous_secrets: Vec<SecretString>,
    /// The lifetime of an access token.
    pub access_expires: Duration,
    /// The lifetime of a refresh token.
    pub refresh_expires: Duration,
    /// The claim `iss`.
    pub issuer: String,
    /// The claim `aud`.
    pub audience: String,
}

impl Tokens {
    pub(super) fn read(settings: &mut Settings, environment: Environment, data_dir: &Path) -> Result<Self, ConfigError> {
        let parse_list = |text: &str| values::list(text).map(parse_secret).collect::<Result<Vec<_>, _>>();
        let access_expires = settings.get(&variables::JWT_ACCESS_TOKEN_EXPIRES, values::seconds(YEAR))?;
        let refresh_expires = settings.get(&variables::JWT_REFRESH_TOKEN_EXPIRES, values::seconds(YEAR))?;
        let issuer = settings.get(&variables::JWT_ISSUER, values::text)?;
        let audience = settings.get(&variables::JWT_AUDIENCE, values::text)?;
        let previous_secrets = settings.get_or(&variables::JWT_PREVIOUS_SECRET_KEYS, parse_list, Vec::new)?;
        // Last, since it may create a file, which a refused start must not leave behind.
        let secret = match settings.find(&variables::JWT_SECRET_KEY, parse_secret)? {
            Some(secret) => secret,
            None if environment == Environment::Production => {
                return Err(ConfigError::of(&variables::JWT_SECRET_KEY, "must be set in production"));
            }
            None => secret_file::keep(&data_dir.join("jwt_secret"))?,
        };
        settings.record(&variables::JWT_SECRET_KEY, &secret);
        Ok(Self { secret, previous_secrets, access_expires, refresh_expires, issuer, audience })
    }
}

/// Words in the placeholders of manuals and templates, without separators.
const PLACEHOLDERS: &[&str] = &[
    "changeme",
    "changethis",
    "changein",
    "replaceme",
    "replacethis",
    "replacewith",
    "placeholder",
    "example",
    "insecure",
    "yoursecret",
    "supersecret",
    "secretkey",
    "jwtsecret",
    "devsecret",
    "password",
    "openssl",
    "12345678",
    "abcdefgh",
];

/// Parses a signing secret; refuses short ones and obvious placeholders.
pub(super) fn parse_secret(text: &str) -> Result<SecretString, String> {
    if text.len() < 32 {
        return Err("must be at least 32 bytes long".to_owned());
    }
    let letters: String = text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let is_placeholder = PLACEHOLDERS.iter().any(|word| letters.contains(word));
    let is_monotonous = text.bytes().collect::<BTreeSet<_>>().len() < 8;
    if is_placeholder || is_monotonous {
        return Err("must be random, but looks like a placeholder".to_owned());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::super::tests::{PRODUCTION, SECRET, Workplace, problem};

    #[test]
    fn a_weak_secret_is_refused_without_quoting_it() {
        for environment in ["development", "testing", "production"] {
            for weak in [
                "",
                "hush",
                "only-thirty-one-bytes-of-hushhh",
                "CHANGE_ME_change_me_CHANGE_ME_change_me",
                "your-secret-key-here-hush-0123456789",
                "the-output-of-openssl-rand-hex-32",
                "hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh",
            ] {
                for name in ["JWT_SECRET_KEY", "JWT_PREVIOUS_SECRET_KEYS"] {
                    if name == "JWT_PREVIOUS_SECRET_KEYS" && weak.is_empty() {
                        continue;
                    }
                    let secret = if name == "JWT_SECRET_KEY" { weak } else { SECRET };
                    let line = problem(&[("TENANTRY_ENV", environment), ("JWT_SECRET_KEY", secret), (name, weak)]);
                    assert!(line.starts_with(&format!("{name} must be")), "{line}");
                    assert!(!line.contains("hush") && !line.contains("CHANGE"), "{line}");
                }
            }
        }
    }

    #[test]
    fn production_requires_a_secret() {
        let place = Workplace::new();
        place.load(&[]).unwrap();
        let line = place.problem(&[("TENANTRY_ENV", "production")]);
        assert_eq!(line, "JWT_SECRET_KEY must be set in production; for example JWT_SECRET_KEY=the-output-of-openssl-rand-hex-32");
    }

    #[test]
    fn previous_secrets_allow_rotation() {
        let old = SECRET.to_uppercase();
        let previous = format!("{old}, {old}x");
        let tokens = Workplace::new().load(&[PRODUCTION, &[("JWT_PREVIOUS_SECRET_KEYS", &previous)]].concat()).unwrap().tokens;
        assert_eq!(tokens.secret.expose_secret(), SECRET);
        assert_eq!(tokens.previous_secrets.iter().map(ExposeSecret::expose_secret).collect::<Vec<_>>(), [&old, &format!("{old}x")]);
    }

    #[test]
    fn a_generated_secret_is_kept() {
        for environment in ["development", "testing"] {
            let place = Workplace::new();
            let secret = || place.load(&[("TENANTRY_ENV", environment)]).unwrap().tokens.secret.expose_secret().to_owned();
            let first = secret();
            assert_eq!(first.len(), 64, "32 bytes in hexadecimal digits");
            assert_eq!(first, secret());
            assert_ne!(first, Workplace::new().load(&[]).unwrap().tokens.secret.expose_secret());
        }
    }

    #[test]
    fn a_refused_start_creates_no_files() {
        let place = Workplace::new();
        place.problem(&[("JWT_ISSUER", "")]);
        place.problem(&[("LOG_LEVEL", "loud")]);
        assert!(!std::path::Path::new(&place.path("data")).exists());
    }
}
