//! A proxy that injects network faults.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::ReadHalf, tcp::WriteHalf},
    sync::{Mutex, watch},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// How a [`FaultyProxy`] treats its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Forwards everything.
    Pass,
    /// Resets every new connection at once. Existing connections behave as with [`Behaviour::Pass`].
    Refuse,
    /// Accepts connections and bytes, but neither forwards nor answers anything. The bytes are lost, so such a connection is
    /// unusable afterwards.
    BlackHole,
    /// Forwards each chunk, in both directions, after this time.
    Delay(Duration),
    /// Forwards this many bytes per second, in both directions.
    Throttle(u64),
    /// Forwards this many bytes of the body of each response, then resets the connection on both sides. With a protocol other
    /// than HTTP, it counts all bytes from the target.
    ResetResponseAfter(u64),
    /// Forwards this many bytes of each request, its head included, then resets the connection on both sides. With a protocol
    /// other than HTTP, it counts all bytes from the client.
    ResetRequestAfter(u64),
    /// Reads each HTTP request completely and answers it in place of the target.
    Answer(Answer),
    /// Answers the first requests, counted over all connections, and forwards the later ones.
    AnswerFirst(u64, Answer),
}

/// An answer to an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Answer {
    /// A response with this status and a short text.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, content_type: "text/plain", body: format!("status {status} from the proxy\n") }
    }

    /// An error in the format of S3.
    #[must_use]
    pub fn s3(status: u16, code: &str, message: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
             <Resource>/</Resource><RequestId>0</RequestId></Error>"
        );
        Self { status, content_type: "application/xml", body }
    }

    /// The S3 error for too many requests.
    #[must_use]
    pub fn slow_down() -> Self {
        Self::s3(503, "SlowDown", "Please reduce your request rate.")
    }

    /// The S3 error for an internal failure.
    #[must_use]
    pub fn internal_error() -> Self {
        Self::s3(500, "InternalError", "We encountered an internal error. Please try again.")
    }

    /// The S3 error for denied access.
    #[must_use]
    pub fn access_denied() -> Self {
        Self::s3(403, "AccessDenied", "Access Denied")
    }

    fn to_bytes(&self, is_head: bool) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Planned\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n");
        if is_head { head.into_bytes() } else { (head + body).into_bytes() }
    }
}

/// The traffic of a [`FaultyProxy`] since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Accepted connections, the refused ones included.
    pub connections: u64,
    /// HTTP requests that began, including those that the proxy answered.
    pub requests: u64,
    /// Bytes forwarded to the target.
    pub bytes_sent: u64,
    /// Bytes sent to the client.
    pub bytes_received: u64,
}

/// A TCP proxy on 127.0.0.1 in front of a target. Its behaviour can change while it runs, which applies at once to existing
/// connections, too. Dropping it ends it and its connections.
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl FaultyProxy {
    /// Starts a proxy that forwards everything.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let now = watch::Sender::new(Now { behaviour: Behaviour::Pass, dropped: 0 });
        let shared = Arc::new(Shared { target, now, answered: AtomicU64::new(0), traffic: Counters::default() });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, accepting }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as an HTTP URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the behaviour. Existing connections stay open.
    pub fn set(&self, behaviour: Behaviour) {
        self.change(behaviour, 0);
    }

    /// Sets the behaviour and resets existing connections, so that clients can't reuse pooled ones.
    pub fn set_and_drop(&self, behaviour: Behaviour) {
        self.change(behaviour, 1);
    }

    fn change(&self, behaviour: Behaviour, drops: u64) {
        self.shared.now.send_modify(|now| {
            self.shared.answered.store(0, Relaxed);
            *now = Now { behaviour, dropped: now.dropped + drops };
        });
    }

    /// The traffic so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let Counters { connections, requests, bytes_sent, bytes_received } = &self.shared.traffic;
        Traffic {
            connections: connections.load(Relaxed),
            requests: requests.load(Relaxed),
            bytes_sent: bytes_sent.load(Relaxed),
            bytes_received: bytes_received.load(Relaxed),
        }
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Now {
    behaviour: Behaviour,
    /// How many times connections were dropped.
    dropped: u64,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

struct Shared {
    target: SocketAddr,
    now: watch::Sender<Now>,
    /// Requests counted since the behaviour was set.
    answered: AtomicU64,
    traffic: Counters,
}

impl Shared {
    fn behaviour(&self) -> Behaviour {
        self.now.borrow().behaviour.clone()
    }

    /// The proxy's answer to a request that begins now; absent if the target is to answer.
    fn answer(&self) -> Option<Answer> {
        match &self.now.borrow().behaviour {
            Behaviour::Answer(answer) => Some(answer.clone()),
            Behaviour::AnswerFirst(first, answer) => (self.answered.fetch_add(1, Relaxed) < *first).then(|| answer.clone()),
            _ => None,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        shared.traffic.connections.fetch_add(1, Relaxed);
        connections.spawn(serve(client, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut changes = shared.now.subscribe();
    let dropped = changes.borrow().dropped;
    let is_passed = tokio::select! {
        passed = pass(&mut client, &shared) => passed.is_ok(),
        _ = changes.wait_for(|now| now.dropped != dropped) => false,
    };
    if !is_passed {
        // With this, closing the connection sends a reset.
        let _ = client.set_zero_linger();
    }
}

/// Forwards both directions until both have ended. Fails if the connection is to be reset.
async fn pass(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    match shared.behaviour() {
        Behaviour::Refuse => return Err(io::ErrorKind::ConnectionRefused.into()),
        Behaviour::BlackHole => {
            tokio::io::copy(client, &mut tokio::io::sink()).await?;
            return Ok(());
        }
        _ => {}
    }
    let mut target = TcpStream::connect(shared.target).await?;
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    let passed = {
        let (from_client, to_client) = client.split();
        let (from_target, to_target) = target.split();
        // Both the target and the proxy itself send to the client.
        let (to_client, requests) = (Mutex::new(to_client), AtomicU64::new(0));
        tokio::try_join!(
            pass_requests(from_client, to_target, &to_client, &requests, shared),
            pass_responses(from_target, &to_client, &requests, shared),
        )
    };
    if passed.is_err() {
        target.set_zero_linger()?;
    }
    passed.map(|_| ())
}

/// The size of the read buffer.
const CHUNK_SIZE: usize = 16 * 1024;

async fn pass_requests(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    to_client: &Mutex<WriteHalf<'_>>,
    requests: &AtomicU64,
    shared: &Shared,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_SIZE];
    let (mut parser, mut answer, mut sent) = (Requests::default(), None, 0);
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let mut rest = &buffer[..read];
        while let Some(first) = rest.first() {
            if parser.begins(*first) {
                shared.traffic.requests.fetch_add(1, Relaxed);
                requests.fetch_add(1, Relaxed);
                (answer, sent) = (shared.answer(), 0);
            }
            let (taken, is_whole) = parser.take(rest);
            if answer.is_none() {
                forward(&rest[..taken], &mut sent, &mut to, Way::Request, shared).await?;
            }
            rest = &rest[taken..];
            if is_whole && let Some(answer) = answer.take() {
                let bytes = answer.to_bytes(parser.is_head);
                to_client.lock().await.write_all(&bytes).await?;
                shared.traffic.bytes_received.fetch_add(bytes.len() as u64, Relaxed);
            }
        }
    }
}

async fn pass_responses(mut from: ReadHalf<'_>, to_client: &Mutex<WriteHalf<'_>>, requests: &AtomicU64, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_SIZE];
    let (mut head, mut request, mut sent) = (Head::default(), 0, 0);
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to_client.lock().await.shutdown().await;
        }
        let bytes = &buffer[..read];
        let current = requests.load(Relaxed);
        if request != current {
            (request, sent) = (current, 0);
            head = Head::default();
        }
        let (in_head, body) = bytes.split_at(if request == 0 { 0 } else { head.take(bytes) });
        let mut to = to_client.lock().await;
        forward(in_head, &mut 0, &mut to, Way::Head, shared).await?;
        forward(body, &mut sent, &mut to, Way::Response, shared).await?;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Head,
    Response,
}

/// Forwards bytes according to the behaviour, which may change from chunk to chunk. Fails if the connection is to be reset.
async fn forward(mut bytes: &[u8], sent: &mut u64, to: &mut WriteHalf<'_>, way: Way, shared: &Shared) -> io::Result<()> {
    while !bytes.is_empty() {
        let (mut length, mut pause, mut resets) = (bytes.len(), Duration::ZERO, false);
        match (shared.behaviour(), way) {
            (Behaviour::BlackHole, _) => return Ok(()),
            (Behaviour::Delay(time), _) => pause = time,
            (Behaviour::Throttle(rate), _) => {
                // Twenty chunks per second.
                length = length.min(usize::try_from(rate / 20).map_or(CHUNK_SIZE, |size| size.max(1)));
                pause = Duration::from_secs(1) * u32::try_from(length).unwrap_or(u32::MAX) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
            }
            (Behaviour::ResetRequestAfter(limit), Way::Request) | (Behaviour::ResetResponseAfter(limit), Way::Response) => {
                let left = usize::try_from(limit.saturating_sub(*sent)).unwrap_or(usize::MAX);
                resets = left <= length;
                length = left.min(length);
            }
            _ => {}
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
        to.write_all(&bytes[..length]).await?;
        let counter = if way == Way::Request { &shared.traffic.bytes_sent } else { &shared.traffic.bytes_received };
        counter.fetch_add(length as u64, Relaxed);
        *sent += length as u64;
        if resets {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        bytes = &bytes[length..];
    }
    Ok(())
}

/// Finds where the head of a message ends.
#[derive(Default)]
struct Head {
    /// How many bytes of the line breaks that end the head were matched.
    matched: usize,
}

impl Head {
    /// How many of these bytes belong to the head.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.matched < 4 && taken < bytes.len() {
            self.matched = match (bytes[taken], self.matched) {
                (b'\r', 0 | 2) | (b'\n', 1 | 3) => self.matched + 1,
                (b'\r', _) => 1,
                _ => 0,
            };
            taken += 1;
        }
        taken
    }

    fn is_whole(&self) -> bool {
        self.matched == 4
    }
}

/// Finds the ends of HTTP requests in a client's bytes. Anything that does not begin like HTTP counts as another protocol.
#[derive(Default)]
struct Requests {
    part: Part,
    /// Whether the last request was a `HEAD`, whose response has no body.
    is_head: bool,
}

#[derive(Default)]
enum Part {
    #[default]
    Start,
    Head(Head, Vec<u8>),
    Body(u64),
    ChunkSize(Vec<u8>),
    Chunk(u64),
    Trailers(Head),
    Other,
}

impl Requests {
    /// Whether a request begins with this byte.
    fn begins(&mut self, first: u8) -> bool {
        if !matches!(self.part, Part::Start) {
            return false;
        }
        let is_http = first.is_ascii_uppercase();
        self.part = if is_http { Part::Head(Head::default(), Vec::new()) } else { Part::Other };
        is_http
    }

    /// How many of these bytes belong to the current request, and whether they complete it.
    fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let (taken, next) = match &mut self.part {
                Part::Start => return (at, true),
                Part::Other => return (bytes.len(), false),
                Part::Head(head, text) => {
                    let taken = head.take(rest);
                    text.extend(&rest[..taken]);
                    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
                    self.is_head = text.starts_with("head ");
                    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                    let next = if field("transfer-encoding:").is_some_and(|value| value.ends_with("chunked")) {
                        Part::ChunkSize(Vec::new())
                    } else {
                        Part::Body(field("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0))
                    };
                    (taken, head.is_whole().then_some(next))
                }
                Part::Body(left) | Part::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    (taken, None)
                }
                Part::ChunkSize(line) => {
                    line.push(rest[0]);
                    let text = String::from_utf8_lossy(line);
                    let size = text.split([';', '\r']).next().and_then(|size| u64::from_str_radix(size.trim(), 16).ok()).unwrap_or(0);
                    // After the last chunk, trailers may precede the blank line, whose line break was counted already.
                    let next = if size == 0 { Part::Trailers(Head { matched: 2 }) } else { Part::Chunk(size + 2) };
                    (1, (rest[0] == b'\n').then_some(next))
                }
                Part::Trailers(head) => (head.take(rest), None),
            };
            at += taken;
            if let Some(next) = next {
                self.part = next;
            }
            match &self.part {
                Part::Chunk(0) => self.part = Part::ChunkSize(Vec::new()),
                Part::Body(0) => self.part = Part::Start,
                Part::Trailers(head) if head.is_whole() => self.part = Part::Start,
                _ => {}
            }
            if matches!(self.part, Part::Start) {
                return (at, true);
            }
        }
        (at, false)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, time::Instant};

    use reqwest::{Client, StatusCode};
    use tokio::time::timeout;

    use super::*;

    /// An HTTP server that echoes the body of each request.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer_all(stream));
            }
        });
        address
    }

    async fn answer_all(mut stream: TcpStream) -> io::Result<()> {
        let (mut parser, mut request, mut buffer) = (Requests::default(), Vec::new(), vec![0; CHUNK_SIZE]);
        loop {
            let read = stream.read(&mut buffer).await?;
            let Some(first) = buffer[..read].first() else { return Ok(()) };
            parser.begins(*first);
            let (taken, is_whole) = parser.take(&buffer[..read]);
            assert_eq!(taken, read, "no client here pipelines requests");
            request.extend(&buffer[..read]);
            if is_whole {
                let body = request.split_off(Head::default().take(&request));
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(&[head.as_bytes(), &body].concat()).await?;
                request.clear();
            }
        }
    }

    struct Network {
        proxy: FaultyProxy,
        client: Client,
    }

    impl Network {
        async fn new() -> Self {
            Self { proxy: FaultyProxy::start(echo().await).await, client: Client::new() }
        }

        async fn send(&self, body: &str) -> reqwest::Result<(StatusCode, String)> {
            let response = self.client.put(self.proxy.url()).body(body.to_owned()).send().await?;
            Ok((response.status(), response.text().await?))
        }

        /// Sends a request with 10 bytes of content over a connection of its own, and reads the response.
        async fn raw(&self) -> (Vec<u8>, io::Result<usize>) {
            let mut stream = TcpStream::connect(self.proxy.address()).await.unwrap();
            let mut response = Vec::new();
            let _ = stream.write_all(b"PUT / HTTP/1.1\r\ncontent-length: 10\r\n\r\n0123456789").await;
            let read = timeout(Duration::from_millis(300), stream.read_to_end(&mut response)).await;
            (response, read.unwrap_or(Err(ErrorKind::TimedOut.into())))
        }
    }

    fn is_reset(read: &io::Result<usize>) -> bool {
        read.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    }

    const OK: StatusCode = StatusCode::OK;

    #[tokio::test]
    async fn pass_forwards_and_counts_traffic() {
        let network = Network::new().await;
        let large = "x".repeat(1_000_000);
        for body in ["", "hello", &large] {
            assert_eq!(network.send(body).await.unwrap(), (OK, body.to_owned()));
        }
        let traffic = network.proxy.traffic();
        assert_eq!((traffic.connections, traffic.requests), (1, 3));
        assert!((1_000_005..1_002_000).contains(&traffic.bytes_sent), "{traffic:?}");
        assert!((1_000_005..1_002_000).contains(&traffic.bytes_received), "{traffic:?}");
    }

    #[tokio::test]
    async fn other_protocols_are_forwarded_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultyProxy::start(listener.local_addr().unwrap()).await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut target, _) = listener.accept().await.unwrap();
        client.write_all(b"\0\0\0\x08GET").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        target.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"\0\0\0\x08GET");
        proxy.set(Behaviour::ResetResponseAfter(3));
        target.write_all(b"12345").await.unwrap();
        let mut received = [0; 3];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"123");
        assert!(is_reset(&client.read(&mut received).await));
        assert_eq!(proxy.traffic().requests, 0);
    }

    #[tokio::test]
    async fn refuse_resets_new_connections() {
        let network = Network::new().await;
        network.send("pooled").await.unwrap();
        network.proxy.set(Behaviour::Refuse);
        assert!(is_reset(&network.raw().await.1));
        network.send("over the pooled connection").await.unwrap();
        network.proxy.set_and_drop(Behaviour::Refuse);
        assert!(network.send("no").await.is_err());
        network.proxy.set(Behaviour::Pass);
        network.send("again").await.unwrap();
    }

    #[tokio::test]
    async fn a_black_hole_never_answers() {
        let network = Network::new().await;
        network.send("pooled").await.unwrap();
        network.proxy.set(Behaviour::BlackHole);
        assert!(timeout(Duration::from_millis(200), network.send("over the pooled connection")).await.is_err());
        let (response, read) = network.raw().await;
        assert_eq!((response.len(), read.unwrap_err().kind()), (0, ErrorKind::TimedOut));
        network.proxy.set_and_drop(Behaviour::Pass);
        network.send("again").await.unwrap();
    }

    #[tokio::test]
    async fn delay_applies_in_both_directions() {
        let network = Network::new().await;
        network.proxy.set(Behaviour::Delay(Duration::from_millis(50)));
        let start = Instant::now();
        assert_eq!(network.send("hello").await.unwrap(), (OK, "hello".to_owned()));
        assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn throttle_keeps_the_rate() {
        let network = Network::new().await;
        network.proxy.set(Behaviour::Throttle(100_000));
        let start = Instant::now();
        let body = "x".repeat(20_000);
        assert_eq!(network.send(&body).await.unwrap(), (OK, body));
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        // The change applies from the next chunk on.
        network.proxy.set(Behaviour::Pass);
        network.send("hello").await.unwrap();
    }

    #[tokio::test]
    async fn a_response_is_cut_off_in_its_body() {
        let network = Network::new().await;
        for limit in [0, 4, 9] {
            network.proxy.set(Behaviour::ResetResponseAfter(limit));
            let (response, read) = network.raw().await;
            let body = response.len() - Head::default().take(&response);
            assert_eq!((body as u64, is_reset(&read)), (limit, true));
        }
        network.proxy.set(Behaviour::ResetResponseAfter(11));
        network.send("0123456789").await.unwrap();
        network.send("0123456789").await.unwrap();
    }

    #[tokio::test]
    async fn a_request_is_cut_off() {
        let network = Network::new().await;
        for limit in [0, 5, 45] {
            let before = network.proxy.traffic().bytes_sent;
            network.proxy.set(Behaviour::ResetRequestAfter(limit));
            let (response, read) = network.raw().await;
            assert_eq!((response.len(), is_reset(&read)), (0, true));
            assert_eq!(network.proxy.traffic().bytes_sent - before, limit);
        }
    }

    #[tokio::test]
    async fn answer_replaces_the_target() {
        let network = Network::new().await;
        network.proxy.set(Behaviour::Answer(Answer::access_denied()));
        let large = "x".repeat(1_000_000);
        for body in ["", &large] {
            let (status, answer) = network.send(body).await.unwrap();
            assert_eq!(status, 403);
            assert!(answer.contains("<Code>AccessDenied</Code>"), "{answer}");
        }
        let head = network.client.head(network.proxy.url()).send().await.unwrap();
        assert_eq!(head.status(), 403);
        let traffic = network.proxy.traffic();
        assert_eq!((traffic.connections, traffic.requests, traffic.bytes_sent), (1, 3, 0));
        network.proxy.set(Behaviour::Answer(Answer::status(500)));
        assert_eq!(network.send("").await.unwrap().0, 500);
    }

    #[tokio::test]
    async fn only_the_first_requests_are_answered() {
        let network = Network::new().await;
        network.proxy.set(Behaviour::AnswerFirst(2, Answer::slow_down()));
        let mut statuses = Vec::new();
        for _ in 0..4 {
            statuses.push(network.send("hello").await.unwrap().0.as_u16());
        }
        assert_eq!(statuses, [503, 503, 200, 200]);
        assert_eq!(network.proxy.traffic().connections, 1);
    }

    #[test]
    fn the_parser_finds_the_ends_of_requests() {
        let text = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\na: b\r\n\r\n\
                    HEAD / HTTP/1.1\r\n\r\nPUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nGETPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        for size in [1, 2, 7, text.len()] {
            let (mut parser, mut begun, mut ended) = (Requests::default(), 0, 0);
            for mut rest in text.as_bytes().chunks(size) {
                while let Some(first) = rest.first() {
                    begun += usize::from(parser.begins(*first));
                    let (taken, is_whole) = parser.take(rest);
                    ended += usize::from(is_whole);
                    rest = &rest[taken..];
                }
            }
            assert_eq!((begun, ended), (4, 4), "in chunks of {size}");
        }
    }
}
