//! The address of the API, its limits, and the web sites that may call it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{ConfigError, Environment, Settings, values, variables};

/// The address of the API, and its limits.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address to listen on.
    pub host: IpAddr,
    /// The port to listen on; 0 for any free one.
    pub port: u16,
    /// The URL at which clients reach the API, without a trailing slash. None: the address listened on.
    pub public_url: Option<String>,
    /// The maximum number of open connections.
    pub max_connections: usize,
    /// Whether to serve the demonstration of the event bus.
    pub demo_routes: bool,
    /// The address of the metrics endpoint, if there is one.
    pub metrics_address: Option<SocketAddr>,
    /// The time that requests in flight have to finish after SIGTERM.
    pub shutdown_grace: Duration,
}

impl Server {
    pub(super) fn read(settings: &mut Settings, environment: Environment) -> Result<Self, ConfigError> {
        Ok(Self {
            demo_routes: settings.get_or(&variables::DEMO_ROUTES, values::boolean, || environment != Environment::Production)?,
            host: settings.get(&variables::HOST, |text| text.parse().map_err(|_| "must be an IP address".to_owned()))?,
            port: settings.get(&variables::PORT, values::number(0..=u16::MAX))?,
            public_url: settings.find(&variables::PUBLIC_URL, values::base_url)?,
            max_connections: settings.get(&variables::MAX_CONNECTIONS, values::number(1..=1_000_000))?,
            metrics_address: settings.find(&variables::METRICS_ADDRESS, |text| {
                text.parse().map_err(|_| "must be an IP address and a port, like 127.0.0.1:4998".to_owned())
            })?,
            shutdown_grace: settings.get(&variables::SHUTDOWN_GRACE, values::seconds(3_600))?,
        })
    }
}

/// The web sites whose pages may call the API from a browser (Fetch standard, CORS protocol).
#[derive(Clone, Debug)]
pub struct Cors {
    /// The origins of the sites.
    pub origins: Origins,
    /// Whether their pages may send cookies and HTTP authentication. Never together with [`Origins::Any`].
    pub allow_credentials: bool,
}

/// A set of origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// These origins, as browsers send them; may be empty.
    These(Vec<String>),
}

impl Cors {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        let origins = settings.get_or(&variables::CORS_ORIGINS, Origins::parse, || Origins::These(Vec::new()))?;
        let allow_credentials = settings.get(&variables::CORS_ALLOW_CREDENTIALS, values::boolean)?;
        if allow_credentials && origins == Origins::Any {
            let problem = "must list the origins when CORS_ALLOW_CREDENTIALS is true: with *, every site could act on behalf of its \
                           visitors, and browsers refuse it";
            return Err(ConfigError::of(&variables::CORS_ORIGINS, problem));
        }
        Ok(Self { origins, allow_credentials })
    }
}

impl Origins {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        values::list(text).map(values::origin).collect::<Result<_, _>>().map(Self::These)
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::These(origins) => f.write_str(&origins.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};
    use super::*;

    fn origins(text: &str) -> Origins {
        Workplace::new().load(&[("CORS_ORIGINS", text)]).unwrap().cors.origins
    }

    #[test]
    fn origins_are_normalised_as_browsers_send_them() {
        let written = origins("https://App.Example.com:443/, http://localhost:3000,http://[::1]:80");
        assert_eq!(written.to_string(), "https://app.example.com,http://localhost:3000,http://[::1]");
        assert_eq!(origins("*"), Origins::Any);
        assert_eq!(origins(""), Origins::These(Vec::new()));
    }

    #[test]
    fn an_invalid_origin_is_refused() {
        for text in ["app.example.com", "https://a.example/path", "https://u:p@a.example", "*,https://a.example", "null", "ftp://a.example"]
        {
            assert!(problem(&[("CORS_ORIGINS", text)]).starts_with("CORS_ORIGINS must be origins like"), "{text}");
        }
    }

    #[test]
    fn any_origin_with_credentials_is_refused() {
        for environment in ["development", "production"] {
            let line = problem(&[("CORS_ORIGINS", "*"), ("CORS_ALLOW_CREDENTIALS", "true"), ("TENANTRY_ENV", environment)]);
            assert!(line.starts_with("CORS_ORIGINS must list the origins when CORS_ALLOW_CREDENTIALS is true"), "{line}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        let config = Workplace::new().load(&[("HOST", "::"), ("PORT", "0"), ("PUBLIC_URL", "https://Example.com/api/")]).unwrap();
        assert_eq!((config.server.host.to_string().as_str(), config.server.port), ("::", 0));
        assert_eq!(config.server.public_url.as_deref(), Some("https://example.com/api"));
        assert_eq!(problem(&[("PORT", "65536")]), "PORT must be a whole number from 0 to 65535, not \"65536\"; for example PORT=4999");
        assert_eq!(problem(&[("HOST", "a\nb")]), "HOST must be an IP address, not \"a\\nb\"; for example HOST=127.0.0.1");
        for text in ["example.com", "ftp://example.com", "https://example.com?x", "https://u@example.com", ""] {
            assert!(problem(&[("PUBLIC_URL", text)]).starts_with("PUBLIC_URL must be a URL"), "{text}");
        }
        assert!(problem(&[("SHUTDOWN_GRACE", "30s")]).starts_with("SHUTDOWN_GRACE must be a whole number from 1 to 3600 (seconds)"));
    }
}
