//! The address of the API, its limits, and the web sites that may call it.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    time::Duration,
};

use api::{Cors, Origins};

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
    /// The maximum number of open connections of a client address.
    pub max_connections_per_address: usize,
    /// Whether to serve `/docs` and `/openapi.json`.
    pub docs: bool,
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
            docs: settings.get(&variables::DOCS_ENABLED, values::boolean)?,
            demo_routes: settings.get_or(&variables::DEMO_ROUTES, values::boolean, || environment != Environment::Production)?,
            host: settings.get(&variables::HOST, resolve)?,
            port: settings.get(&variables::PORT, values::number(0..=u16::MAX))?,
            public_url: settings.find(&variables::PUBLIC_URL, values::base_url)?,
            max_connections: settings.get(&variables::MAX_CONNECTIONS, values::number(1..=1_000_000))?,
            max_connections_per_address: settings.get(&variables::MAX_CONNECTIONS_PER_ADDRESS, values::number(1..=1_000_000))?,
            metrics_address: settings.find(&variables::METRICS_ADDRESS, |text| {
                text.parse().map_err(|_| "must be an IP address and a port, like 127.0.0.1:4998".to_owned())
            })?,
            shutdown_grace: settings.get(&variables::SHUTDOWN_GRACE, values::seconds(3_600))?,
        })
    }
}

/// Parses an IP address, or resolves a host name.
fn resolve(text: &str) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let resolved = (text, 0).to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    resolved.map(|socket| socket.ip()).ok_or_else(|| "must be an IP address or the name of this host".to_owned())
}

/// Reads which web sites' pages may call the API from a browser.
pub(super) fn read_cors(settings: &mut Settings, environment: Environment) -> Result<Cors, ConfigError> {
    let unset = || if environment == Environment::Development { Origins::Loopback } else { Origins::default() };
    let origins = settings.get_or(&variables::CORS_ORIGINS, parse_origins, unset)?;
    let allow_credentials = settings.get(&variables::CORS_ALLOW_CREDENTIALS, values::boolean)?;
    if allow_credentials && origins == Origins::Any {
        let problem = "must list the origins when CORS_ALLOW_CREDENTIALS is true: with *, every site could act on behalf of its \
                       visitors, and browsers refuse it";
        return Err(ConfigError::of(&variables::CORS_ORIGINS, problem));
    }
    Ok(Cors { origins, allow_credentials })
}

fn parse_origins(text: &str) -> Result<Origins, String> {
    if text == "*" {
        return Ok(Origins::Any);
    }
    values::list(text).map(values::origin).collect::<Result<_, _>>().map(Origins::Listed)
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
        assert_eq!(origins(""), Origins::default());
    }

    #[test]
    fn a_host_name_is_resolved() {
        let host = |text: &str| Workplace::new().load(&[("HOST", text)]).unwrap().server.host;
        assert!(host("localhost").is_loopback());
        assert_eq!(host("::").to_string(), "::");
        assert!(problem(&[("HOST", "no such host")]).starts_with("HOST must be an IP address or the name of this host"));
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
        assert_eq!(
            problem(&[("HOST", "a\nb")]),
            "HOST must be an IP address or the name of this host, not \"a\\nb\"; for example HOST=127.0.0.1"
        );
        for text in ["example.com", "ftp://example.com", "https://example.com?x", "https://u@example.com", ""] {
            assert!(problem(&[("PUBLIC_URL", text)]).starts_with("PUBLIC_URL must be a URL"), "{text}");
        }
        assert!(problem(&[("SHUTDOWN_GRACE", "30s")]).starts_with("SHUTDOWN_GRACE must be a whole number from 1 to 3600 (seconds)"));
    }
}
