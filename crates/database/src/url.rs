//! The URLs of databases, as the configuration names them.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::{Config, config::SslMode};

/// A database's URL: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`. Its `Debug` and `Display` hide the
/// password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A file, or for tenants' databases a folder.
    Sqlite(PathBuf),
    /// A database, or for tenants' databases a server with the database to connect to for administration.
    Postgres(PostgresUrl),
}

/// A PostgreSQL connection URL (PostgreSQL documentation, "Connection URIs").
#[derive(Clone)]
pub struct PostgresUrl {
    config: Box<Config>,
    shown: String,
}

impl PostgresUrl {
    /// What to connect with.
    pub(crate) fn config(&self) -> Config {
        (*self.config).clone()
    }

    /// The database that the URL names.
    pub(crate) fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or("postgres")
    }

    /// How to use TLS: not with `sslmode=disable`; otherwise the certificate is verified against the public roots (`prefer`, the
    /// default, falls back to plain text only where the server offers no TLS).
    pub(crate) fn tls(&self) -> Option<ClientConfig> {
        if self.config.get_ssl_mode() == SslMode::Disable {
            return None;
        }
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        Some(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// Why a text is not a database's URL, as a predicate: it follows the name of the setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlProblem(&'static str);

impl FromStr for DatabaseUrl {
    type Err = UrlProblem;

    fn from_str(text: &str) -> Result<Self, UrlProblem> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            // Other programs accept sqlite:///PATH?options or sqlite::memory:, with different meanings.
            let is_path = !path.is_empty() && !path.starts_with("//") && !path.starts_with(':') && !path.contains('?');
            let problem = UrlProblem("must be sqlite:PATH, without // and options");
            return if is_path { Ok(Self::Sqlite(PathBuf::from(path))) } else { Err(problem) };
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let config: Config = text.parse().map_err(|_| UrlProblem("must be postgres://user:password@host:port/database"))?;
            return match config.get_dbname() {
                Some(_) => Ok(Self::Postgres(PostgresUrl { config: Box::new(config), shown: without_password(text) })),
                None => Err(UrlProblem("must name a database: postgres://user:password@host:port/database")),
            };
        }
        Err(UrlProblem("must be sqlite:PATH or postgres://user:password@host:port/database"))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => f.write_str(&url.shown),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A connection URL with `***` for its password and its parameters, which may contain another. Where reserved characters are not
/// escaped, it hides too much rather than too little.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (user, location) = match rest.rsplit_once('@') {
        Some((credentials, location)) => match credentials.split_once([':', '/', '?']) {
            Some((user, _)) => (format!("{user}:***@"), location),
            None => (format!("{credentials}@"), location),
        },
        None => (String::new(), rest),
    };
    let (location, parameters) = location.split_once('?').map_or((location, ""), |(location, _)| (location, "?***"));
    format!("{scheme}://{user}{location}{parameters}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_their_password() {
        let url: DatabaseUrl = "postgres://ada:s3cret@db.example:5433/tenantry?sslmode=disable".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://ada:***@db.example:5433/tenantry?***");
        assert!(!format!("{url:?}").contains("s3cret"));
    }

    #[test]
    fn an_invalid_url_is_refused_with_a_reason() {
        for text in ["", "mysql://x/y", "sqlite:", "sqlite::memory:", "postgres://localhost:5432", "postgres://h:port/x"] {
            assert!(text.parse::<DatabaseUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_are_hidden() {
        for (url, shown) in [
            ("postgres://u:hush@h:5432/d", "postgres://u:***@h:5432/d"),
            ("postgres://u:hu@sh:x@h/d", "postgres://u:***@h/d"),
            ("postgres://u:hu/sh@h/d", "postgres://u:***@h/d"),
            ("postgres://u:hu?sh@h/d", "postgres://u:***@h/d"),
            ("postgres://h/d?password=hu@sh", "postgres://h:***@sh"),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("postgres://h:5432/d", "postgres://h:5432/d"),
            ("postgresql:///d?host=/run&password=hush", "postgresql:///d?***"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
