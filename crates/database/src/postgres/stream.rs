//! Sockets to a server.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::config::Host;

/// The time without traffic after which the kernel probes whether the server is reachable.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// One of the addresses that the server may have.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) host: Host,
    /// The host's IP address, when it is not to be looked up.
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
}

trait ReadWrite: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ReadWrite for T {}

/// A socket whose shutdown ends when the server has closed its side: by then the server's process has ended.
pub(super) struct Stream {
    socket: Box<dyn ReadWrite>,
    write_closed: bool,
}

impl Stream {
    pub(super) async fn open(Address { host, ip, port }: &Address) -> io::Result<Self> {
        let socket: Box<dyn ReadWrite> = match (host, ip) {
            (Host::Tcp(_), Some(ip)) => Box::new(configured(TcpStream::connect((*ip, *port)).await?)?),
            (Host::Tcp(name), None) => Box::new(configured(TcpStream::connect((name.as_str(), *port)).await?)?),
            (Host::Unix(folder), _) => Box::new(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?),
        };
        Ok(Self { socket, write_closed: false })
    }
}

/// Sends without delay, and probes idle connections: firewalls drop these silently.
fn configured(stream: TcpStream) -> io::Result<TcpStream> {
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
                // Closed, or reset.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
