//! The way to a server: connecting, and closing so that the server has noticed.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{
    CancelToken, Client, Config, NoTls,
    config::{Host, TargetSessionAttrs},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{CONNECT_TIMEOUT, from_postgres};
use crate::{Error, Result};

/// A setting that changes nothing here and that the server reports when it takes it: how we know that the others came through,
/// on which durability and isolation rest.
const MARK: (&str, &str, &str) = ("-c intervalstyle=iso_8601", "IntervalStyle", "iso_8601");
/// What is wrong when they do not come through.
pub(super) const POOLER: &str = "settings of a connection do not reach the server: a pooler such as PgBouncer is in between, which Tenantry can't \
     work through; connect to the PostgreSQL server itself";
/// After how long without traffic the kernel asks whether the other side is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How to reach a server.
pub(super) struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

/// An open connection.
pub(super) struct Wired {
    pub(super) client: Client,
    /// Ends when the server has closed the connection: until then it counts there, too.
    pub(super) closed: JoinHandle<()>,
    address: Address,
}

/// One of the places where the server may be.
#[derive(Clone)]
struct Address {
    host: Host,
    /// Where the host is, when that is not to be looked up.
    number: Option<IpAddr>,
    port: u16,
}

/// Fails unless the server reports our mark.
fn settings_arrived(reported: Option<&str>) -> Result<()> {
    if reported == Some(MARK.2) { Ok(()) } else { Err(Error::unavailable(POOLER)) }
}

/// Names the error of connecting. A pooler that does not ignore settings refuses them.
fn refused(error: tokio_postgres::Error) -> Error {
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
    pub(super) async fn connect(&self, database: &str, settings: &str) -> Result<Wired> {
        let mut config = self.config.clone();
        // Settings of the operator's own come first, ours have the last word.
        let own = self.config.get_options().unwrap_or_default();
        config.dbname(database).options(format!("{own} {settings} {}", MARK.0));
        let mut problem = Error::unavailable("the address names no host");
        let hosts = u32::try_from(self.config.get_hosts().len().max(1)).unwrap_or(u32::MAX);
        for address in self.addresses() {
            // One that does not answer leaves time for the next.
            match timeout(CONNECT_TIMEOUT / hosts, self.connect_at(&config, address)).await {
                Ok(Ok(wired)) => return Ok(wired),
                Ok(Err(error)) => problem = error,
                Err(_) => problem = Error::unavailable("the server does not answer"),
            }
        }
        Err(problem)
    }

    fn addresses(&self) -> impl Iterator<Item = Address> {
        let numbers = self.config.get_hostaddrs();
        let ports = self.config.get_ports();
        self.config.get_hosts().iter().enumerate().map(move |(n, host)| {
            // One port for all hosts, or one for each.
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
            Address { host: host.clone(), number: numbers.get(n).copied(), port }
        })
    }

    async fn connect_at(&self, config: &Config, address: Address) -> Result<Wired> {
        let stream = Stream::open(&address).await.map_err(Error::unavailable)?;
        let (client, closed) = match self.tls_for(&address)? {
            Some(tls) => {
                let (client, connection) = config.connect_raw(stream, tls).await.map_err(refused)?;
                settings_arrived(connection.parameter(MARK.1))?;
                // Why a connection ended is told to whoever uses it.
                (client, tokio::spawn(async { drop(connection.await) }))
            }
            None => {
                let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(refused)?;
                settings_arrived(connection.parameter(MARK.1))?;
                (client, tokio::spawn(async { drop(connection.await) }))
            }
        };
        if self.config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite {
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(from_postgres)?;
            if row.get(0) {
                return Err(Error::unavailable("the server is a standby"));
            }
        }
        Ok(Wired { client, closed, address })
    }

    fn tls_for(&self, address: &Address) -> Result<Option<<MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect>> {
        match (&self.tls, &address.host) {
            (Some(tls), Host::Tcp(name)) => {
                MakeTlsConnect::<Stream>::make_tls_connect(&mut tls.clone(), name).map(Some).map_err(Error::unavailable)
            }
            _ => Ok(None),
        }
    }

    /// Asks the server to end what a connection is doing.
    pub(super) async fn cancel(&self, token: &CancelToken, address: &CancelAddress) -> Result<()> {
        let stream = Stream::open(&address.0).await.map_err(Error::unavailable)?;
        match self.tls_for(&address.0)? {
            Some(tls) => token.cancel_query_raw(stream, tls).await,
            None => token.cancel_query_raw(stream, NoTls).await,
        }
        .map_err(from_postgres)
    }
}

/// Where a connection's statements are cancelled.
pub(super) struct CancelAddress(Address);

impl Wired {
    /// Closes the connection, and waits until the server has closed it, too. After `patience` it is cut.
    pub(super) async fn close(self, patience: Duration) {
        let Self { client, mut closed, .. } = self;
        drop(client);
        if timeout(patience, &mut closed).await.is_err() {
            closed.abort();
        }
    }

    pub(super) fn cancel_address(&self) -> CancelAddress {
        CancelAddress(self.address.clone())
    }
}

trait ReadWrite: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ReadWrite for T {}

/// A socket whose shutdown ends when the server has closed its side: then its process is gone.
struct Stream {
    socket: Box<dyn ReadWrite>,
    write_closed: bool,
}

impl Stream {
    async fn open(Address { host, number, port }: &Address) -> io::Result<Self> {
        let socket: Box<dyn ReadWrite> = match (host, number) {
            (Host::Tcp(_), Some(number)) => Box::new(prepared(TcpStream::connect((*number, *port)).await?)?),
            (Host::Tcp(name), None) => Box::new(prepared(TcpStream::connect((name.as_str(), *port)).await?)?),
            (Host::Unix(folder), _) => Box::new(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?),
        };
        Ok(Self { socket, write_closed: false })
    }
}

/// Sends at once, and notices when the other side is gone without a word: firewalls forget connections that are idle.
fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.write_closed = true;
        }
        let mut discarded = [0; 256];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // Closed, in whatever way.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
