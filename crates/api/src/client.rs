//! Who calls, and at which URL: directly, or through proxies that the operator trusts.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::Ordering,
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, header, request::Parts},
};
use http_server::{PeerAddr, is_valid_host};

use crate::{App, error::ApiError, limits::Report};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The networks of the proxies whose `X-Forwarded-*` headers are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// Parses addresses and networks in CIDR notation.
    ///
    /// # Errors
    /// A message for the operator, when one of them is neither.
    pub fn parse<'a>(networks: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let problem = || "must be addresses or networks like 127.0.0.1,10.0.0.0/8,fd00::/8".to_owned();
        networks.map(|text| Network::parse(text).ok_or_else(problem)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether none is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is the address of a trusted proxy.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client's address: the last one in `X-Forwarded-For` that is not a trusted proxy's, since each proxy appends the one that it
    /// sees. The peer's, if that is not trusted.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let mut hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(',').map(parse_hop));
        let mut client = peer.to_canonical();
        while self.contains(client)
            && let Some(Some(before)) = hops.next()
        {
            client = before;
        }
        client
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&networks.join(","))
    }
}

/// An address in `X-Forwarded-For`, with or without a port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

/// Addresses with a common prefix, IPv4 ones mapped to IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address = address.parse::<IpAddr>().ok()?.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(most), |digits| digits.parse().ok())?;
        (prefix <= most).then_some(Self { address, prefix })
    }

    fn contains(self, other: IpAddr) -> bool {
        if self.address.is_ipv4() != other.is_ipv4() {
            return false;
        }
        let prefix = self.prefix + if self.address.is_ipv4() { 96 } else { 0 };
        let bits = |address: IpAddr| mapped(address).to_bits().checked_shr(128 - prefix).unwrap_or(0);
        bits(self.address) == bits(other)
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The address of a client without a user, whose request counts against the limit of its address.
pub(crate) struct LimitedClient(pub(crate) IpAddr);

impl FromRequestParts<App> for LimitedClient {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        // Only a test calls the router without a connection.
        let peer = parts.extensions.get().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer: &PeerAddr| peer.0.ip());
        let address = app.settings.trusted_proxies.client(peer, &parts.headers);
        if let Some(limiters) = app.limiters.as_ref().filter(|_| !app.is_behind_unknown_proxy(address, &parts.headers)) {
            limiters.check_address(address, &Report::of(parts))?;
        }
        Ok(Self(address))
    }
}

impl App {
    /// What a trusted proxy says of the request in this header.
    fn forwarded<'a>(&self, peer: Option<PeerAddr>, headers: &'a HeaderMap, name: HeaderName) -> Option<&'a str> {
        let value = headers.get(name)?;
        peer.filter(|peer| self.settings.trusted_proxies.contains(peer.0.ip().to_canonical()))?;
        value.to_str().ok()?.split(',').next().map(str::trim)
    }

    /// Whether the client reaches the API by TLS.
    pub(crate) fn is_behind_tls(&self, peer: Option<PeerAddr>, headers: &HeaderMap) -> bool {
        match &self.settings.public_url {
            Some(url) => url.starts_with("https://"),
            None => self.forwarded(peer, headers, FORWARDED_PROTO) == Some("https"),
        }
    }

    /// Whether the address seems to be that of a proxy that is not among the trusted ones: all clients would share one limit.
    fn is_behind_unknown_proxy(&self, address: IpAddr, headers: &HeaderMap) -> bool {
        let is_local = match address {
            IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
            IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
        };
        let found = is_local && headers.contains_key(FORWARDED_FOR) && self.settings.trusted_proxies.is_empty();
        if found && !self.warned_of_proxy.swap(true, Ordering::Relaxed) {
            tracing::warn!(peer = %address, "requests come through a proxy and are not limited per address; set TRUSTED_PROXIES");
        }
        found
    }
}

/// The URL at which the client reaches the API, without a trailing slash: the configured one, or else that of the request.
pub(crate) struct BaseUrl(pub(crate) String);

impl FromRequestParts<App> for BaseUrl {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        if let Some(url) = &app.settings.public_url {
            return Ok(Self(url.clone()));
        }
        let forwarded = |name| app.forwarded(parts.extensions.get().copied(), &parts.headers, name);
        let scheme = forwarded(FORWARDED_PROTO).filter(|scheme| matches!(*scheme, "http" | "https")).unwrap_or("http");
        let host = forwarded(FORWARDED_HOST).filter(|host| is_valid_host(host));
        // The server has checked it.
        let host = host.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
        Ok(Self(host.map(|host| format!("{scheme}://{host}")).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &str, peer: &str, forwarded: &[&str]) -> String {
        let proxies = TrustedProxies::parse(trusted.split(',').filter(|part| !part.is_empty())).unwrap();
        let headers = forwarded.iter().map(|line| (FORWARDED_FOR, line.parse().unwrap())).collect();
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_trusted_proxies_say_who_the_client_is() {
        for (trusted, peer, forwarded, wanted) in [
            ("", "127.0.0.1", &["192.0.2.1"][..], "127.0.0.1"),
            ("127.0.0.1", "127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", "127.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1", "192.0.2.9", &["192.0.2.1"], "192.0.2.9"),
            // What the client itself sent stands before what the proxy appended.
            ("127.0.0.1", "127.0.0.1", &["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1", "127.0.0.1", &["198.51.100.7", "192.0.2.1"], "192.0.2.1"),
            ("127.0.0.1,10.0.0.0/8", "127.0.0.1", &["198.51.100.7, 192.0.2.1, 10.1.2.3"], "192.0.2.1"),
            ("127.0.0.1,10.0.0.0/8", "127.0.0.1", &["10.1.2.3"], "10.1.2.3"),
            ("127.0.0.1", "127.0.0.1", &["192.0.2.1, nonsense"], "127.0.0.1"),
            ("127.0.0.1", "::ffff:127.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("fd00::/8", "fd12::1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("fd00::/8", "fd12::1", &["[2001:db8::1]"], "2001:db8::1"),
            ("0.0.0.0/0", "192.0.2.9", &["192.0.2.1"], "192.0.2.1"),
            ("0.0.0.0/0", "2001:db8::9", &["192.0.2.1"], "2001:db8::9"),
        ] {
            assert_eq!(client(trusted, peer, forwarded), wanted, "{trusted} {peer} {forwarded:?}");
        }
    }

    #[test]
    fn networks_are_parsed_and_shown() {
        let parse = |text: &str| TrustedProxies::parse(text.split(','));
        assert_eq!(parse("127.0.0.1,10.0.0.0/8,fd00::/8").unwrap().to_string(), "127.0.0.1/32,10.0.0.0/8,fd00::/8");
        for invalid in ["", "localhost", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "fd00::/129", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(parse(invalid).is_err(), "{invalid}");
        }
    }
}
