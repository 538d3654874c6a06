//! What the server allows a client.

use std::time::Duration;

/// What a client may take, of time and of room. `Duration::MAX` is no limit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at a time. Each takes a file descriptor, so keep it below `RLIMIT_NOFILE` with room for files and
    /// databases. Default 10,000.
    ///
    /// At the limit newcomers wait in the listener's backlog, and none is refused. While one waits, the connection that has
    /// been idle between requests for longest is closed to let it in, so idle connections never lock anyone out; connections
    /// at work do, until one is done.
    pub max_connections: usize,
    /// From the acceptance of a connection, or from the first byte of a later request, to the end of the request's header
    /// section. Default 10 s.
    pub header_timeout: Duration,
    /// From the end of a response to the first byte of the next request. Longer than the idle time-out of the usual proxies
    /// (60 s), so that it is they who close and no request meets a closing connection. Default 75 s.
    pub idle_timeout: Duration,
    /// Bytes in a request's header section, request line included; also in a chunked body's trailers. More is answered 431
    /// (RFC 6585 §5), as are more than 100 fields. Default 32 KiB.
    pub max_header_bytes: usize,
    /// Bytes buffered per connection and direction, at least 8 KiB. Default 128 KiB.
    pub buffer_bytes: usize,
    /// Time without a byte of a request body that the handler is waiting for, after which reading it fails with
    /// [`BodyTooSlow`](crate::BodyTooSlow). Default 30 s.
    pub body_idle_timeout: Duration,
    /// Time that a handler may spend waiting for a request body in all, before what [`Self::body_min_rate`] adds. Default 30 s.
    pub body_grace: Duration,
    /// Bytes per second that a request body must bring on average: as many bytes add a second to [`Self::body_grace`], and when
    /// that is used up reading fails with [`BodyTooSlow`](crate::BodyTooSlow). Zero is no limit. Default 1 KiB/s.
    pub body_min_rate: u64,
    /// Time in which the client takes nothing of a response that is waiting to be sent, after which it is disconnected. The
    /// kernel's buffers count as taken, and report progress in steps of up to a third of their size. Default 30 s.
    pub write_timeout: Duration,
    /// How long, after a response to a request whose body was not read to its end, further bytes of that body are discarded
    /// before the connection closes. Closing at once would reset the connection, and with it a response that the client has
    /// not read yet (RFC 9112 §9.6). Default 5 s.
    pub linger_timeout: Duration,
    /// How long requests in flight may take after the shutdown began. Default 30 s.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: 32 * 1024,
            buffer_bytes: 128 * 1024,
            body_idle_timeout: Duration::from_secs(30),
            body_grace: Duration::from_secs(30),
            body_min_rate: 1024,
            write_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}
