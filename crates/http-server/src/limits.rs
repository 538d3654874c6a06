//! Limits on clients.

use std::time::Duration;

/// Limits on the time and memory that a client may take. `Duration::MAX` means no limit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum number of open connections. Each takes a file descriptor, so keep it below `RLIMIT_NOFILE` with room for files and
    /// databases. Default 10,000.
    ///
    /// At the limit new connections wait in the listener's backlog, and none is refused. While one waits, the server closes the
    /// connection that has been idle between requests for longest, or else the one of a client that transfers least. So neither idle
    /// nor slow clients lock another one out; running handlers do, until one of them ends.
    pub max_connections: usize,
    /// Maximum number of open connections of a client: of an IPv4 address or an IPv6 /64 network. At the limit a new one takes the
    /// place of the client's own connection that is idle or transfers least; while handlers run for all of them, it is closed.
    /// Proxies have no such limit ([`App::with_proxies`](crate::App::with_proxies)). Default 512.
    pub max_connections_per_client: usize,
    /// Time from accepting a connection, or from the first byte of a later request, to the end of the request's header section.
    /// Default 10 s.
    pub header_timeout: Duration,
    /// Time from the end of a response to the first byte of the next request. Longer than the idle time-out of the usual proxies
    /// (60 s), so that the proxy closes first and no request meets a closing connection. Default 75 s.
    pub idle_timeout: Duration,
    /// Maximum size of a request's header section in bytes, including the request line; also of a chunked body's trailers. A larger
    /// one is answered 431 (RFC 6585 §5), as are more than 100 fields. Default 32 KiB.
    pub max_header_bytes: usize,
    /// Bytes buffered per connection and direction, at least 8 KiB. Default 128 KiB.
    pub buffer_bytes: usize,
    /// Maximum time that a handler waits for the next byte of a request body, after which reading it fails with
    /// [`BodyTooSlow`](crate::BodyTooSlow). Default 30 s.
    pub body_idle_timeout: Duration,
    /// Total time that a handler may wait for a request body, to which [`Self::body_min_rate`] adds. Default 30 s.
    pub body_grace: Duration,
    /// Minimum average rate of a request body, in bytes per second. Each that many bytes add a second to [`Self::body_grace`]; once
    /// that is used up, reading fails with [`BodyTooSlow`](crate::BodyTooSlow). Zero means no limit. Default 1 KiB/s.
    pub body_min_rate: u64,
    /// Maximum time without write progress on a response, after which the server disconnects the client. Data in the kernel's
    /// buffers counts as written, and the kernel reports progress in steps of up to a third of their size. Default 30 s.
    pub write_timeout: Duration,
    /// How long the server discards further bytes of an unread request body after the response, before it closes the connection.
    /// Closing at once would reset the connection and lose a response that the client has not read yet (RFC 9112 §9.6).
    /// Default 5 s.
    pub linger_timeout: Duration,
    /// Maximum time for requests in flight once shutdown has begun. Default 30 s.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_client: 512,
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
