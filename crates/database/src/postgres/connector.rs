//! Connecting to a server, and closing connections so that the server has noticed.

use std::time::Duration;

use rustls::ClientConfig;
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    CancelToken, Client, Config, NoTls,
    config::{Host, TargetSessionAttrs},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    error::from_postgres,
    stream::{Address, Stream},
};
use crate::error::{Error, Result};

/// How long connecting may take: less than a request waits for a connection, so that the request fails with the cause.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// A setting that changes nothing here and that the server reports when it accepts it. It proves that the other settings, on which
/// durability and isolation rest, reached the server.
const PROBE: (&str, &str, &str) = ("-c intervalstyle=iso_8601", "IntervalStyle", "iso_8601");
/// The problem when they do not reach it.
pub(super) const POOLER: &str = "settings of a connection do not reach the server: a pooler such as PgBouncer is in between, which Tenantry can't \
     work through; connect to the PostgreSQL server itself";

/// The way to a server.
pub(super) struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

/// An open connection.
pub(super) struct Session {
    pub(super) client: Client,
    /// Ends when the server has closed the connection: until then it counts there, too.
    closed: JoinHandle<()>,
    address: Address,
}

/// The address to which the cancellation of a connection's statements is sent.
pub(super) struct CancelAddress(Address);

/// Fails when it takes too long.
pub(super) async fn within_connect_timeout<T>(connect: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| Error::unavailable("connecting took too long"))?
}

/// Fails unless the server reports the probe.
fn check_settings_arrived(reported: Option<&str>) -> Result<()> {
    if reported == Some(PROBE.2) { Ok(()) } else { Err(Error::unavailable(POOLER)) }
}

/// Classifies an error of connecting. A pooler that does not ignore settings refuses them.
fn from_refusal(error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(reported) if reported.message().starts_with("unsupported startup parameter") => Error::unavailable(POOLER),
        _ => from_postgres(error),
    }
}

impl Connector {
    pub(super) fn new(config: Config, tls: Option<ClientConfig>) -> Self {
        Self { config, tls: tls.map(MakeRustlsConnect::new) }
    }

    pub(super) fn hosts(&self) -> &[Host] {
        self.config.get_hosts()
    }

    /// Connects to a database with these session settings, at the first host that answers.
    pub(super) async fn connect(&self, database: &str, settings: &str) -> Result<Session> {
        within_connect_timeout(self.connect_to_any(database, settings)).await
    }

    async fn connect_to_any(&self, database: &str, settings: &str) -> Result<Session> {
        let mut config = self.config.clone();
        // The operator's settings come first, so ours take precedence.
        let configured = self.config.get_options().unwrap_or_default();
        config.dbname(database).options(format!("{configured} {settings} {}", PROBE.0));
        let mut problem = Error::unavailable("the address names no host");
        let hosts = u32::try_from(self.config.get_hosts().len().max(1)).unwrap_or(u32::MAX);
        for address in self.addresses() {
            // A host that does not answer leaves time for the next.
            match timeout(CONNECT_TIMEOUT / hosts, self.connect_at(&config, address)).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => problem = error,
                Err(_) => problem = Error::unavailable("the server does not answer"),
            }
        }
        Err(problem)
    }

    fn addresses(&self) -> impl Iterator<Item = Address> {
        let ips = self.config.get_hostaddrs();
        let ports = self.config.get_ports();
        self.config.get_hosts().iter().enumerate().map(move |(n, host)| {
            // One port for all hosts, or one for each.
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            Address { host: host.clone(), ip: ips.get(n).copied(), port }
        })
    }

    async fn connect_at(&self, config: &Config, address: Address) -> Result<Session> {
        let stream = Stream::open(&address).await.map_err(Error::unavailable)?;
        let (client, closed) = match self.tls_for(&address)? {
            Some(tls) => {
                let (client, connection) = config.connect_raw(stream, tls).await.map_err(from_refusal)?;
                check_settings_arrived(connection.parameter(PROBE.1))?;
                // The client's next call reports why the connection ended.
                (client, tokio::spawn(async { drop(connection.await) }))
            }
            None => {
                let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(from_refusal)?;
                check_settings_arrived(connection.parameter(PROBE.1))?;
                (client, tokio::spawn(async { drop(connection.await) }))
            }
        };
        if self.config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite {
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(from_postgres)?;
            if row.get(0) {
                return Err(Error::unavailable("the server is a standby"));
            }
        }
        Ok(Session { client, closed, address })
    }

    fn tls_for(&self, address: &Address) -> Result<Option<<MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect>> {
        match (&self.tls, &address.host) {
            (Some(tls), Host::Tcp(name)) => {
                MakeTlsConnect::<Stream>::make_tls_connect(&mut tls.clone(), name).map(Some).map_err(Error::unavailable)
            }
            _ => Ok(None),
        }
    }

    /// Asks the server to cancel the running statement of a connection.
    pub(super) async fn cancel(&self, token: &CancelToken, address: &CancelAddress) -> Result<()> {
        let stream = Stream::open(&address.0).await.map_err(Error::unavailable)?;
        match self.tls_for(&address.0)? {
            Some(tls) => token.cancel_query_raw(stream, tls).await,
            None => token.cancel_query_raw(stream, NoTls).await,
        }
        .map_err(from_postgres)
    }
}

impl Session {
    /// Closes the connection, and waits until the server has closed it, too. After `limit` the connection is cut.
    pub(super) async fn close(self, limit: Duration) {
        let Self { client, mut closed, .. } = self;
        drop(client);
        if timeout(limit, &mut closed).await.is_err() {
            closed.abort();
        }
    }

    pub(super) fn cancel_address(&self) -> CancelAddress {
        CancelAddress(self.address.clone())
    }
}
