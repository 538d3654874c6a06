//! The server against slow, silent, greedy and disconnecting clients, over real sockets.
//!
//! Each limit has a control: the same client against a server without the limit, where the attack must succeed.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

use std::{
    convert::Infallible,
    error::Error,
    fs::File,
    future::pending,
    io::{self, Write},
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::rejection::BytesRejection,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use form_data::FormData;
use futures_util::{StreamExt, stream};
use http_server::{App, BodyTooSlow, Limits, PeerAddr, ServeReport, serve};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, tcp::OwnedReadHalf},
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The limit under test.
const SHORT: Duration = Duration::from_millis(150);
/// How long a test verifies that nothing happens: several times the limit.
const WATCH: Duration = Duration::from_millis(500);
/// How long a test waits for an expected event.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Limits that no test reaches.
fn no_limits() -> Limits {
    Limits {
        max_connections: usize::MAX,
        max_connections_per_client: usize::MAX,
        header_timeout: Duration::MAX,
        idle_timeout: Duration::MAX,
        body_idle_timeout: Duration::MAX,
        body_grace: Duration::MAX,
        body_min_rate: 0,
        write_timeout: Duration::MAX,
        linger_timeout: Duration::MAX,
        shutdown_grace: Duration::MAX,
        ..Limits::default()
    }
}

struct Server {
    addr: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<ServeReport>,
}

async fn start(app: impl Into<App>, limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    Server { addr, shutdown: shutdown.clone(), serving: tokio::spawn(serve(listener, app.into(), limits, shutdown)) }
}

async fn start_without_limits(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

async fn send(stream: &mut TcpStream, request: &str) {
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads the next response, head and body, by its content-length.
async fn read_response(stream: &mut TcpStream) -> String {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a response"));
        }
        let mut response = String::from_utf8(head).unwrap();
        let length = response.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        response.push_str(&String::from_utf8(body).unwrap());
        response
    };
    timeout(WAIT_TIMEOUT, read).await.expect("a response in time")
}

/// Reads until the server closes the connection, gracefully or by a reset.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 1024];
    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
}

async fn assert_closes(stream: &mut (impl AsyncRead + Unpin)) {
    timeout(WAIT_TIMEOUT, until_closed(stream)).await.expect("the server closes the connection");
}

async fn assert_stays_open(stream: &mut (impl AsyncRead + Unpin)) {
    timeout(WATCH, until_closed(stream)).await.expect_err("the server keeps the connection open");
}

/// Sends bytes one by one, each well within the idle limits, until the server closes.
fn drip(stream: TcpStream, bytes: &'static str) -> (OwnedReadHalf, JoinHandle<()>) {
    let (reader, mut writer) = stream.into_split();
    let dripping = tokio::spawn(async move {
        for byte in bytes.bytes().cycle() {
            if writer.write_u8(byte).await.is_err() {
                break;
            }
            sleep(SHORT / 10).await;
        }
    });
    (reader, dripping)
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let server = start(hello(), Limits { header_timeout: SHORT, ..no_limits() }).await;
    assert_closes(&mut connect(server.addr).await).await;

    let unlimited = start_without_limits(hello()).await;
    assert_stays_open(&mut connect(unlimited).await).await;
}

#[tokio::test]
async fn a_slow_header_section_is_disconnected() {
    const HEAD: &str = "GET / HTTP/1.1\r\nx-endless: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let server = start(hello(), Limits { header_timeout: SHORT, ..no_limits() }).await;
    let (mut reader, dripping) = drip(connect(server.addr).await, HEAD);
    assert_closes(&mut reader).await;
    dripping.abort();

    let unlimited = start_without_limits(hello()).await;
    let (mut reader, dripping) = drip(connect(unlimited).await, HEAD);
    assert_stays_open(&mut reader).await;
    dripping.abort();
}

#[tokio::test]
async fn the_header_timeout_applies_to_later_requests() {
    let server = start(hello(), Limits { header_timeout: SHORT, ..no_limits() }).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    read_response(&mut stream).await;
    send(&mut stream, "GET / HTTP/1.1\r\n").await;
    assert_closes(&mut stream).await;
}

#[tokio::test]
async fn an_idle_connection_has_a_separate_limit() {
    let limits = Limits { header_timeout: SHORT, idle_timeout: 5 * SHORT, ..no_limits() };
    let server = start(hello(), limits).await;
    let mut stream = connect(server.addr).await;
    for _ in 0..2 {
        send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(read_response(&mut stream).await.ends_with("hello"));
        timeout(SHORT * 2, until_closed(&mut stream)).await.expect_err("idle for longer than the header time-out");
    }
    assert_closes(&mut stream).await;

    let unlimited = start_without_limits(hello()).await;
    let mut stream = connect(unlimited).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    read_response(&mut stream).await;
    assert_stays_open(&mut stream).await;
}

#[tokio::test]
async fn a_handler_may_exceed_all_client_limits() {
    let slow_start = get(async || {
        sleep(2 * SHORT).await;
        "at last"
    });
    let slow_stream = get(async || {
        let ticks = stream::unfold(0, async |n| {
            sleep(2 * SHORT).await;
            (n < 2).then_some((Ok::<_, Infallible>("tick"), n + 1))
        });
        Body::from_stream(ticks)
    });
    let app = Router::new().route("/start", slow_start).route("/stream", slow_stream);
    let limits = Limits { header_timeout: SHORT, idle_timeout: SHORT, write_timeout: SHORT, body_idle_timeout: SHORT, ..no_limits() };
    let server = start(app, limits).await;
    for (path, end) in [("start", "at last"), ("stream", "tick\r\n0\r\n\r\n")] {
        let mut stream = connect(server.addr).await;
        send(&mut stream, &format!("GET /{path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with(end), "{response}");
    }
}

/// Responds with the size of the posted body, or 408.
fn counter() -> Router {
    fn refuse(error: impl Error + IntoResponse + 'static) -> Response {
        if BodyTooSlow::is_cause_of(&error) { StatusCode::REQUEST_TIMEOUT.into_response() } else { error.into_response() }
    }
    async fn count(body: Result<Bytes, BytesRejection>) -> Result<String, Response> {
        Ok(body.map_err(refuse)?.len().to_string())
    }
    async fn count_part(body: Body) -> Result<String, form_data::Error<axum::Error>> {
        let mut form = FormData::new(body.into_data_stream(), "x");
        let mut part = form.next_part().await?.unwrap();
        let mut size = 0;
        while let Some(bytes) = part.chunk().await? {
            size += bytes.len();
        }
        Ok(size.to_string())
    }
    // The reader of the form wraps the error, too.
    let count_parts = async |body: Body| {
        count_part(body)
            .await
            .map_err(|error| if BodyTooSlow::is_cause_of(&error) { StatusCode::REQUEST_TIMEOUT } else { StatusCode::BAD_REQUEST })
    };
    Router::new().route("/", post(count)).route("/multipart", post(count_parts))
}

#[tokio::test]
async fn a_stalled_body_is_answered_408() {
    async fn stall(request: &str) {
        let server = start(counter(), Limits { body_idle_timeout: SHORT, ..no_limits() }).await;
        let mut stream = connect(server.addr).await;
        send(&mut stream, request).await;
        let mut last_response = read_response(&mut stream).await;
        if last_response.starts_with("HTTP/1.1 100") {
            last_response = read_response(&mut stream).await;
        }
        assert!(last_response.starts_with("HTTP/1.1 408") && last_response.contains("connection: close"), "{last_response}");
        assert_closes(&mut stream).await;

        let unlimited = start_without_limits(counter()).await;
        let mut stream = connect(unlimited).await;
        send(&mut stream, request).await;
        assert_stays_open(&mut stream).await;
    }
    tokio::join!(
        stall("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nbeginning"),
        stall("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n9\r\nbeginning\r\n"),
        stall("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n"),
        stall(
            "POST /multipart HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=x\r\ncontent-length: 1000\r\n\r\n\
             --x\r\ncontent-disposition: form-data; name=file; filename=a\r\n\r\nbeginning"
        ),
    );
}

#[tokio::test]
async fn a_slow_body_is_answered_408() {
    async fn drip_body(limits: Limits) -> Result<String, tokio::time::error::Elapsed> {
        let server = start(counter(), limits).await;
        let mut stream = connect(server.addr).await;
        send(&mut stream, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").await;
        let (mut reader, dripping) = drip(stream, "a");
        let mut status_line = [0; 12];
        let answered = timeout(WATCH, reader.read_exact(&mut status_line)).await;
        dripping.abort();
        answered.map(|read| {
            read.unwrap();
            String::from_utf8(status_line.to_vec()).unwrap()
        })
    }
    let idle_only = Limits { body_idle_timeout: 2 * SHORT, body_grace: SHORT, ..no_limits() };
    let with_rate = Limits { body_min_rate: 1024, ..idle_only.clone() };
    assert_eq!(drip_body(with_rate).await.unwrap(), "HTTP/1.1 408");
    drip_body(idle_only).await.expect_err("without a minimum rate, the slow body continues");
}

#[tokio::test]
async fn a_body_above_the_minimum_rate_may_exceed_the_grace_period() {
    let limits = Limits { body_grace: SHORT, body_min_rate: 1024, ..no_limits() };
    let server = start(counter(), limits).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40960\r\n\r\n{}", "a".repeat(4096))).await;
    for _ in 1..10 {
        sleep(SHORT / 4).await;
        send(&mut stream, &"a".repeat(4096)).await;
    }
    assert!(read_response(&mut stream).await.ends_with("40960"));
}

#[tokio::test]
async fn a_slow_handler_does_not_use_up_the_clients_time() {
    let sip = async |body: Body| {
        let mut frames = body.into_data_stream();
        let mut size = 0;
        while let Some(frame) = frames.next().await {
            size += frame.unwrap().len();
            sleep(2 * SHORT).await;
        }
        size.to_string()
    };
    let limits = Limits { body_idle_timeout: SHORT, body_grace: SHORT, body_min_rate: 1_000_000, buffer_bytes: 8192, ..no_limits() };
    let server = start(Router::new().route("/", post(sip)), limits).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n{}", "a".repeat(30000))).await;
    assert!(read_response(&mut stream).await.ends_with("30000"));
}

/// Rejects a POST without reading its body.
fn rejection() -> Router {
    Router::new().route("/", post(async || StatusCode::PAYLOAD_TOO_LARGE))
}

#[tokio::test]
async fn a_response_before_the_end_of_the_body_reaches_the_client() {
    /// Sends the whole body before reading the response.
    async fn upload(linger_timeout: Duration) -> io::Result<String> {
        let server = start(rejection(), Limits { linger_timeout, ..no_limits() }).await;
        let mut stream = connect(server.addr).await;
        send(&mut stream, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10485760\r\n\r\n").await;
        for _ in 0..10 {
            stream.write_all(&[0; 1 << 20]).await?;
            sleep(SHORT / 10).await;
        }
        Ok(read_response(&mut stream).await)
    }
    let response = upload(WAIT_TIMEOUT).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 413") && response.contains("connection: close"), "{response}");
    upload(Duration::ZERO).await.expect_err("without lingering, the client is reset");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_keeps_sending_a_rejected_body_is_disconnected() {
    /// Whether the server disconnects a client that sends faster than a busy machine reads.
    async fn disconnects_flood(linger_timeout: Duration, watch: Duration) -> bool {
        let server = start(rejection(), Limits { linger_timeout, ..no_limits() }).await;
        let mut stream = std::net::TcpStream::connect(server.addr).unwrap();
        let flood = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000000\r\n\r\n").unwrap();
            while stream.write_all(&[0; 1 << 16]).is_ok() {
                if begun.elapsed() > watch {
                    return false;
                }
            }
            true
        });
        let busy = tokio::spawn(async {
            loop {
                std::thread::sleep(SHORT / 20);
                tokio::task::yield_now().await;
            }
        });
        let disconnected = flood.await.unwrap();
        busy.abort();
        disconnected
    }
    assert!(disconnects_flood(SHORT, WAIT_TIMEOUT / 4).await);
    assert!(!disconnects_flood(Duration::MAX, WATCH).await, "without a limit, the flood continues");
}

/// A route whose endless response signals when it is dropped.
fn endless() -> (Router, mpsc::UnboundedReceiver<()>) {
    struct NotifyOnDrop(mpsc::UnboundedSender<()>);
    impl Drop for NotifyOnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (dropped, drops) = mpsc::unbounded_channel();
    let respond = move || async move {
        let guard = NotifyOnDrop(dropped);
        let chunk = Bytes::from(vec![0; 1 << 20]);
        Body::from_stream(stream::repeat_with(move || {
            let _ = &guard;
            Ok::<_, Infallible>(chunk.clone())
        }))
    };
    (Router::new().route("/", get(respond)), drops)
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected() {
    let (app, mut drops) = endless();
    let server = start(app, Limits { write_timeout: SHORT, ..no_limits() }).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    timeout(WAIT_TIMEOUT, drops.recv()).await.expect("the server drops the response");

    let (app, mut drops) = endless();
    let unlimited = start_without_limits(app).await;
    let mut stream = connect(unlimited).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    timeout(WATCH, drops.recv()).await.expect_err("without a limit, the response waits");
}

#[tokio::test]
async fn a_client_that_reads_slowly_receives_everything() {
    const SIZE: usize = 16 << 20;
    let limit = 3 * SHORT;
    let app = Router::new().route("/", get(async || Bytes::from(vec![0; SIZE])));
    let limits = Limits { write_timeout: limit, idle_timeout: limit, header_timeout: limit, ..no_limits() };
    let server = start(app, limits).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let begun = Instant::now();
    let mut received = 0;
    let mut buffer = vec![0; 128 << 10];
    while received < SIZE {
        sleep(SHORT / 20).await;
        let read = stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "closed after {received} bytes");
        received += read;
    }
    assert!(begun.elapsed() > 2 * limit, "too fast to prove anything");
}

#[tokio::test]
async fn the_handler_of_a_disconnected_client_is_dropped() {
    struct NotifyOnDrop(Option<oneshot::Sender<()>>);
    impl Drop for NotifyOnDrop {
        fn drop(&mut self) {
            self.0.take().map(|dropped| dropped.send(()));
        }
    }
    let (dropped, was_dropped) = oneshot::channel();
    let guard = Arc::new(Mutex::new(Some(NotifyOnDrop(Some(dropped)))));
    let begun = Arc::new(Notify::new());
    let handler = {
        let begun = Arc::clone(&begun);
        async move || {
            let _guard = guard.lock().unwrap().take();
            begun.notify_one();
            pending::<()>().await;
        }
    };
    let server = start(Router::new().route("/", get(handler)), no_limits()).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    begun.notified().await;
    drop(stream);
    timeout(WAIT_TIMEOUT, was_dropped).await.expect("the handler is dropped").unwrap();
}

/// A route that signals when a request has begun, and responds when released.
fn gated() -> (Router, Arc<Notify>, Arc<Notify>) {
    let (begun, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (begun, released) = (Arc::clone(&begun), Arc::clone(&released));
        async move || {
            begun.notify_one();
            released.notified().await;
            "done"
        }
    };
    let app = hello().route("/gated", get(handler));
    (app, begun, released)
}

#[tokio::test]
async fn at_the_limit_new_connections_wait_for_a_busy_one_to_end() {
    async fn newcomer_waits(max_connections: usize) -> bool {
        let (app, begun, released) = gated();
        let server = start(app, Limits { max_connections, ..no_limits() }).await;
        let mut busy = connect(server.addr).await;
        send(&mut busy, "GET /gated HTTP/1.1\r\nhost: a\r\n\r\n").await;
        begun.notified().await;

        let mut newcomer = connect(server.addr).await;
        send(&mut newcomer, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let waits = timeout(WATCH, newcomer.peek(&mut [0])).await.is_err();
        released.notify_one();
        assert!(read_response(&mut busy).await.ends_with("done"));
        assert!(read_response(&mut newcomer).await.ends_with("hello"));
        waits
    }
    assert!(newcomer_waits(1).await);
    assert!(!newcomer_waits(2).await, "below the limit no connection waits");
}

#[tokio::test]
async fn at_the_limit_the_longest_idle_connection_is_closed() {
    let server = start(hello(), Limits { max_connections: 2, ..no_limits() }).await;
    let (mut longest, mut shorter, mut newcomer) = (connect(server.addr).await, connect(server.addr).await, connect(server.addr).await);
    for stream in [&mut longest, &mut shorter, &mut newcomer] {
        send(stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(read_response(stream).await.ends_with("hello"));
    }
    assert_closes(&mut longest).await;
    for stream in [&mut shorter, &mut newcomer] {
        send(stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(read_response(stream).await.ends_with("hello"));
    }
}

/// Connects from another loopback address.
async fn connect_from(client: &str, addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{client}:0").parse().unwrap()).unwrap();
    socket.connect(addr).await.unwrap()
}

/// Clients from `client` whose bodies arrive a byte at a time, for ever.
async fn slow_bodies(client: &str, addr: SocketAddr, count: usize) -> Vec<(OwnedReadHalf, JoinHandle<()>)> {
    let mut slow = Vec::new();
    for _ in 0..count {
        let mut stream = connect_from(client, addr).await;
        send(&mut stream, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").await;
        slow.push(drip(stream, "x"));
    }
    slow
}

/// Whether the server responds to a new client at this address within `patience`.
async fn is_served(client: &str, addr: SocketAddr, patience: Duration) -> bool {
    let respond = async {
        let mut stream = connect_from(client, addr).await;
        send(&mut stream, "GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.is_ok() && first == *b"HTTP/1.1 200"
    };
    timeout(patience, respond).await.unwrap_or(false)
}

#[tokio::test]
async fn slow_clients_give_way_to_new_ones() {
    let app = || counter().route("/hello", get(async || "hello"));
    let limits = Limits { max_connections: 20, max_connections_per_client: 10, ..no_limits() };
    let server = start(app(), limits.clone()).await;
    // One client takes all that it may, and others are served without delay.
    let slow = slow_bodies("127.0.0.2", server.addr, 10).await;
    assert!(is_served("127.0.0.1", server.addr, WAIT_TIMEOUT).await);
    sleep(Duration::from_millis(1200)).await;
    // Its next connection takes the place of its own slowest one.
    assert!(is_served("127.0.0.2", server.addr, WAIT_TIMEOUT).await);
    // Several clients take all that there is: the slowest connection of all gives way.
    let more = slow_bodies("127.0.0.3", server.addr, 10).await;
    sleep(Duration::from_millis(1200)).await;
    for _ in 0..5 {
        assert!(is_served("127.0.0.1", server.addr, WAIT_TIMEOUT).await);
    }
    let ended = slow.iter().chain(&more).filter(|(_, dripping)| dripping.is_finished()).count();
    assert!(ended < 10, "{ended} of 20 slow clients were disconnected for 6 others");

    // The control: one client has all connections, and all of them are busy.
    let unlimited = start(app(), Limits { max_connections: 10, ..no_limits() }).await;
    let (_slow, began) = (slow_bodies("127.0.0.2", unlimited.addr, 10).await, Instant::now());
    assert!(!is_served("127.0.0.1", unlimited.addr, WATCH).await && began.elapsed() >= WATCH);
    for (_, dripping) in slow.into_iter().chain(more) {
        dripping.abort();
    }
}

#[tokio::test]
async fn a_client_whose_requests_are_all_being_handled_is_refused_and_a_proxy_is_not() {
    for (is_proxy, served) in [(false, false), (true, true)] {
        let (app, begun, released) = gated();
        let app = rejecting(app).with_proxies(move |_| is_proxy);
        let server = start(app, Limits { max_connections_per_client: 2, ..no_limits() }).await;
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut stream = connect(server.addr).await;
            send(&mut stream, "GET /gated HTTP/1.1\r\nhost: a\r\n\r\n").await;
            begun.notified().await;
            busy.push(stream);
        }
        let mut newcomer = connect(server.addr).await;
        send(&mut newcomer, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut response = [0; 12];
        assert_eq!(newcomer.read_exact(&mut response).await.is_ok(), served);
        for mut stream in busy {
            released.notify_one();
            assert!(read_response(&mut stream).await.ends_with("done"));
        }
    }
}

#[tokio::test]
async fn shutdown_finishes_requests_in_flight_and_closes_idle_connections() {
    let (app, begun, released) = gated();
    let server = start(app, no_limits()).await;
    let mut fresh = connect(server.addr).await;
    let mut idle = connect(server.addr).await;
    send(&mut idle, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!read_response(&mut idle).await.contains("connection: close"));
    let mut in_flight = connect(server.addr).await;
    send(&mut in_flight, "GET /gated HTTP/1.1\r\nhost: a\r\n\r\n").await;
    begun.notified().await;

    server.shutdown.cancel();
    assert_closes(&mut fresh).await;
    assert_closes(&mut idle).await;
    TcpStream::connect(server.addr).await.expect_err("the listener is closed");
    released.notify_one();
    let response = read_response(&mut in_flight).await;
    assert!(response.contains("connection: close") && response.ends_with("done"), "{response}");
    let report = timeout(WAIT_TIMEOUT, server.serving).await.expect("the shutdown completes").unwrap();
    assert_eq!(report, ServeReport { connections_cut: 0 });
}

#[tokio::test]
async fn shutdown_aborts_stuck_requests() {
    async fn shut_down_while_stuck(shutdown_grace: Duration) -> Option<ServeReport> {
        let (app, begun, _never_released) = gated();
        let server = start(app, Limits { shutdown_grace, ..no_limits() }).await;
        let mut stuck = connect(server.addr).await;
        send(&mut stuck, "GET /gated HTTP/1.1\r\nhost: a\r\n\r\n").await;
        begun.notified().await;
        server.shutdown.cancel();
        timeout(WATCH, server.serving).await.ok().map(Result::unwrap)
    }
    assert_eq!(shut_down_while_stuck(SHORT).await, Some(ServeReport { connections_cut: 1 }));
    assert_eq!(shut_down_while_stuck(Duration::MAX).await, None, "without a deadline the shutdown never completes");
}

#[tokio::test]
async fn an_oversized_header_section_is_answered_431() {
    let server = start(hello(), Limits { max_header_bytes: 2000, ..no_limits() }).await;
    let long_value = format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "a".repeat(2000));
    let many_fields = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(100));
    let acceptable = format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n{}\r\n", "a".repeat(1000), "x: y\r\n".repeat(98));
    for (request, status) in [(long_value, "431"), (many_fields, "431"), (acceptable, "200")] {
        let mut stream = connect(server.addr).await;
        send(&mut stream, &request).await;
        assert_eq!(&read_response(&mut stream).await[9..12], status);
    }
}

/// An app whose rejections say what they got.
fn rejecting(router: Router) -> App {
    App::new(router, |status, PeerAddr(peer)| {
        let mut response = axum::http::Response::new(Bytes::from(format!("{} for {}", status.as_u16(), peer.ip())));
        response.headers_mut().insert("x-request-id", "r1".parse().unwrap());
        response
    })
}

#[tokio::test]
async fn what_is_no_valid_http_is_answered_in_the_apps_form() {
    let long = "a".repeat(10_000);
    let cases = [
        ("GET / HTTP/1.1\r\nhost: a\r\nnonsense\r\n\r\n", 400),
        ("\u{1}\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400),
        (&*format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\nhost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: y\nz: 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ];
    let limits = || Limits { max_header_bytes: 2000, ..no_limits() };
    let (server, plain) = (start(rejecting(hello()), limits()).await, start(hello(), limits()).await);
    for (request, status) in cases {
        // On a new connection, and after a good request on the same one.
        for good in ["", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
            let mut stream = connect(server.addr).await;
            if !good.is_empty() {
                send(&mut stream, good).await;
                assert!(read_response(&mut stream).await.ends_with("hello"));
            }
            send(&mut stream, request).await;
            let response = read_response(&mut stream).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {response}");
            assert!(response.ends_with(&format!("\r\n\r\n{status} for 127.0.0.1")), "{request:?}: {response}");
            assert!(response.contains("x-request-id: r1\r\n") && response.contains("connection: close\r\n"), "{response}");
            assert_eq!(response.matches("content-length").count(), 1, "{response}");
            assert!(response.contains("\r\ndate: "), "{response}");
            assert_closes(&mut stream).await;
        }
        // Without a form of the app's own, the body is empty.
        let mut stream = connect(plain.addr).await;
        send(&mut stream, request).await;
        assert!(read_response(&mut stream).await.ends_with("\r\n\r\n"));
    }
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(read_response(&mut stream).await.ends_with("hello"), "HTTP/1.0 needs no Host");
}

#[tokio::test]
async fn a_client_that_is_still_sending_a_rejected_head_gets_the_response() {
    let server = start(rejecting(hello()), Limits { max_header_bytes: 2000, ..no_limits() }).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, &format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "a".repeat(10_000))).await;
    for _ in 0..20 {
        sleep(Duration::from_millis(20)).await;
        send(&mut stream, &"a".repeat(10_000)).await;
    }
    assert!(read_response(&mut stream).await.ends_with("431 for 127.0.0.1"));
}

#[tokio::test]
async fn requests_know_their_peer() {
    let app = Router::new().route("/", get(async |Extension(PeerAddr(peer)): Extension<PeerAddr>| peer.to_string()));
    let server = start(app, Limits::default()).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(read_response(&mut stream).await.ends_with(&stream.local_addr().unwrap().to_string()));
}

/// Runs itself in a child process with few file descriptors, which uses them all up.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "distinguishes the child process from its parent")]
async fn accepting_continues_after_running_out_of_descriptors() {
    const IN_CHILD: &str = "TEST_WITH_FEW_DESCRIPTORS";
    if std::env::var(IN_CHILD).is_err() {
        let test = std::env::current_exe().unwrap();
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$0\" --exact accepting_continues_after_running_out_of_descriptors --nocapture"])
            .arg(test)
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
        return;
    }
    let (app, begun, released) = gated();
    let server = start(app, no_limits()).await;
    let mut busy = connect(server.addr).await;
    send(&mut busy, "GET /gated HTTP/1.1\r\nhost: a\r\n\r\n").await;
    begun.notified().await;
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }

    // Free one descriptor for the client, none for the server.
    hoard.pop();
    let mut newcomer = connect(server.addr).await;
    send(&mut newcomer, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    timeout(WATCH, newcomer.peek(&mut [0])).await.expect_err("no descriptor to accept it with");
    hoard.pop();
    assert!(read_response(&mut newcomer).await.ends_with("hello"));

    // The newcomer is idle now, so the server closes it to make room for the next.
    hoard.pop();
    let mut next = connect(server.addr).await;
    send(&mut next, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(read_response(&mut next).await.ends_with("hello"));
    assert_closes(&mut newcomer).await;
    released.notify_one();
    assert!(read_response(&mut busy).await.ends_with("done"));
}
