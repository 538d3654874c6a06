//! The server against slow, silent, greedy and vanishing clients, over real sockets.
//!
//! Each defence has a control: the same client against a server without it, which the attack must hold up.

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
    extract::{Multipart, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use http_server::{BodyTooSlow, Limits, PeerAddr, ServeReport, serve};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The limit that a test is about.
const SHORT: Duration = Duration::from_millis(150);
/// How long a test watches that nothing happens: several times the limit.
const WATCH: Duration = Duration::from_millis(500);
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Limits that no test reaches.
fn no_limits() -> Limits {
    Limits {
        max_connections: usize::MAX,
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

async fn start(app: Router, limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    Server { addr, shutdown: shutdown.clone(), serving: tokio::spawn(serve(listener, app, limits, shutdown)) }
}

async fn start_undefended(app: Router) -> SocketAddr {
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

/// The next answer whose body is announced by its length: head and body.
async fn answer(stream: &mut TcpStream) -> String {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        let mut answer = String::from_utf8(head).unwrap();
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        answer.push_str(&String::from_utf8(body).unwrap());
        answer
    };
    timeout(PATIENCE, read).await.expect("an answer in time")
}

/// Reads until the server closes, whether in peace or by a reset.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 1024];
    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
}

async fn assert_closes(stream: &mut (impl AsyncRead + Unpin)) {
    timeout(PATIENCE, until_closed(stream)).await.expect("the server closes the connection");
}

async fn assert_stays_open(stream: &mut (impl AsyncRead + Unpin)) {
    timeout(WATCH, until_closed(stream)).await.expect_err("the server keeps the connection open");
}

/// Sends bytes one by one, each well within the limits on silence, until the server closes.
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

    let undefended = start_undefended(hello()).await;
    assert_stays_open(&mut connect(undefended).await).await;
}

#[tokio::test]
async fn a_header_section_that_drips_is_cut_off() {
    const HEAD: &str = "GET / HTTP/1.1\r\nx-endless: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let server = start(hello(), Limits { header_timeout: SHORT, ..no_limits() }).await;
    let (mut reader, dripping) = drip(connect(server.addr).await, HEAD);
    assert_closes(&mut reader).await;
    dripping.abort();

    let undefended = start_undefended(hello()).await;
    let (mut reader, dripping) = drip(connect(undefended).await, HEAD);
    assert_stays_open(&mut reader).await;
    dripping.abort();
}

#[tokio::test]
async fn a_later_header_section_has_the_header_timeout_too() {
    let server = start(hello(), Limits { header_timeout: SHORT, ..no_limits() }).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    answer(&mut stream).await;
    send(&mut stream, "GET / HTTP/1.1\r\n").await;
    assert_closes(&mut stream).await;
}

#[tokio::test]
async fn an_idle_connection_has_a_limit_of_its_own() {
    let limits = Limits { header_timeout: SHORT, idle_timeout: 5 * SHORT, ..no_limits() };
    let server = start(hello(), limits).await;
    let mut stream = connect(server.addr).await;
    for _ in 0..2 {
        send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(answer(&mut stream).await.ends_with("hello"));
        timeout(SHORT * 2, until_closed(&mut stream)).await.expect_err("idle for longer than the header time-out");
    }
    assert_closes(&mut stream).await;

    let undefended = start_undefended(hello()).await;
    let mut stream = connect(undefended).await;
    send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    answer(&mut stream).await;
    assert_stays_open(&mut stream).await;
}

#[tokio::test]
async fn a_handler_may_take_longer_than_any_client() {
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
        send(&mut stream, &format!("GET /{path} HTTP/1.1\r\nconnection: close\r\n\r\n")).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with(end), "{answer}");
    }
}

/// Answers with the size of what was posted, or 408.
fn counter() -> Router {
    fn refuse(error: impl Error + IntoResponse + 'static) -> Response {
        if BodyTooSlow::is_cause_of(&error) { StatusCode::REQUEST_TIMEOUT.into_response() } else { error.into_response() }
    }
    async fn count(body: Result<Bytes, BytesRejection>) -> Result<String, Response> {
        Ok(body.map_err(refuse)?.len().to_string())
    }
    async fn count_parts(mut parts: Multipart) -> Result<String, Response> {
        let mut size = 0;
        while let Some(part) = parts.next_field().await.map_err(refuse)? {
            size += part.bytes().await.map_err(refuse)?.len();
        }
        Ok(size.to_string())
    }
    Router::new().route("/", post(count)).route("/multipart", post(count_parts))
}

#[tokio::test]
async fn a_body_that_stalls_is_answered_408() {
    async fn stall(request: &str) {
        let server = start(counter(), Limits { body_idle_timeout: SHORT, ..no_limits() }).await;
        let mut stream = connect(server.addr).await;
        send(&mut stream, request).await;
        let mut last_answer = answer(&mut stream).await;
        if last_answer.starts_with("HTTP/1.1 100") {
            last_answer = answer(&mut stream).await;
        }
        assert!(last_answer.starts_with("HTTP/1.1 408") && last_answer.contains("connection: close"), "{last_answer}");
        assert_closes(&mut stream).await;

        let undefended = start_undefended(counter()).await;
        let mut stream = connect(undefended).await;
        send(&mut stream, request).await;
        assert_stays_open(&mut stream).await;
    }
    tokio::join!(
        stall("POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\nbeginning"),
        stall("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n9\r\nbeginning\r\n"),
        stall("POST / HTTP/1.1\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n"),
        stall(
            "POST /multipart HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=x\r\ncontent-length: 1000\r\n\r\n\
             --x\r\ncontent-disposition: form-data; name=file; filename=a\r\n\r\nbeginning"
        ),
    );
}

#[tokio::test]
async fn a_body_that_drips_is_answered_408() {
    async fn drip_body(limits: Limits) -> Result<String, tokio::time::error::Elapsed> {
        let server = start(counter(), limits).await;
        let mut stream = connect(server.addr).await;
        send(&mut stream, "POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n").await;
        let (mut reader, dripping) = drip(stream, "a");
        let mut answer = [0; 12];
        let answered = timeout(WATCH, reader.read_exact(&mut answer)).await;
        dripping.abort();
        answered.map(|read| {
            read.unwrap();
            String::from_utf8(answer.to_vec()).unwrap()
        })
    }
    let idle_only = Limits { body_idle_timeout: 2 * SHORT, body_grace: SHORT, ..no_limits() };
    let with_rate = Limits { body_min_rate: 1024, ..idle_only.clone() };
    assert_eq!(drip_body(with_rate).await.unwrap(), "HTTP/1.1 408");
    drip_body(idle_only).await.expect_err("without a rate, the drip goes on");
}

#[tokio::test]
async fn a_body_above_the_rate_may_outlast_the_grace() {
    let limits = Limits { body_grace: SHORT, body_min_rate: 1024, ..no_limits() };
    let server = start(counter(), limits).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, &format!("POST / HTTP/1.1\r\ncontent-length: 40960\r\n\r\n{}", "a".repeat(4096))).await;
    for _ in 1..10 {
        sleep(SHORT / 4).await;
        send(&mut stream, &"a".repeat(4096)).await;
    }
    assert!(answer(&mut stream).await.ends_with("40960"));
}

#[tokio::test]
async fn a_slow_handler_is_not_held_against_the_client() {
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
    send(&mut stream, &format!("POST / HTTP/1.1\r\ncontent-length: 30000\r\n\r\n{}", "a".repeat(30000))).await;
    assert!(answer(&mut stream).await.ends_with("30000"));
}

/// Refuses to read what is posted.
fn refusal() -> Router {
    Router::new().route("/", post(async || StatusCode::PAYLOAD_TOO_LARGE))
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_reaches_its_client() {
    /// Sends all of a body before it looks for an answer.
    async fn upload(linger_timeout: Duration) -> io::Result<String> {
        let server = start(refusal(), Limits { linger_timeout, ..no_limits() }).await;
        let mut stream = connect(server.addr).await;
        send(&mut stream, "POST / HTTP/1.1\r\ncontent-length: 10485760\r\n\r\n").await;
        for _ in 0..10 {
            stream.write_all(&[0; 1 << 20]).await?;
            sleep(SHORT / 10).await;
        }
        Ok(answer(&mut stream).await)
    }
    let answer = upload(PATIENCE).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"), "{answer}");
    upload(Duration::ZERO).await.expect_err("without lingering, the client is reset");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_goes_on_sending_a_refused_body_is_cut_off() {
    /// Whether a client is cut off that sends faster than a busy machine reads.
    async fn cuts_off_flood(linger_timeout: Duration, watch: Duration) -> bool {
        let server = start(refusal(), Limits { linger_timeout, ..no_limits() }).await;
        let mut stream = std::net::TcpStream::connect(server.addr).unwrap();
        let flood = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 1000000000000\r\n\r\n").unwrap();
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
        let cut_off = flood.await.unwrap();
        busy.abort();
        cut_off
    }
    assert!(cuts_off_flood(SHORT, PATIENCE / 4).await);
    assert!(!cuts_off_flood(Duration::MAX, WATCH).await, "without a limit, the flood goes on");
}

/// A route whose endless response tells when it is dropped.
fn endless() -> (Router, mpsc::UnboundedReceiver<()>) {
    struct TellDrop(mpsc::UnboundedSender<()>);
    impl Drop for TellDrop {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (dropped, drops) = mpsc::unbounded_channel();
    let respond = move || async move {
        let guard = TellDrop(dropped);
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
    send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    timeout(PATIENCE, drops.recv()).await.expect("the response is given up");

    let (app, mut drops) = endless();
    let undefended = start_undefended(app).await;
    let mut stream = connect(undefended).await;
    send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    timeout(WATCH, drops.recv()).await.expect_err("undefended, the response waits");
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_everything() {
    const SIZE: usize = 16 << 20;
    let limit = 3 * SHORT;
    let app = Router::new().route("/", get(async || Bytes::from(vec![0; SIZE])));
    let limits = Limits { write_timeout: limit, idle_timeout: limit, header_timeout: limit, ..no_limits() };
    let server = start(app, limits).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    let begun = Instant::now();
    let mut received = 0;
    let mut buffer = vec![0; 128 << 10];
    while received < SIZE {
        sleep(SHORT / 20).await;
        let read = stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "closed after {received} bytes");
        received += read;
    }
    assert!(begun.elapsed() > 2 * limit, "too fast to show anything");
}

#[tokio::test]
async fn a_client_that_is_gone_takes_its_request_with_it() {
    struct TellDrop(Option<oneshot::Sender<()>>);
    impl Drop for TellDrop {
        fn drop(&mut self) {
            self.0.take().map(|dropped| dropped.send(()));
        }
    }
    let (dropped, was_dropped) = oneshot::channel();
    let guard = Arc::new(Mutex::new(Some(TellDrop(Some(dropped)))));
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
    send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    begun.notified().await;
    drop(stream);
    timeout(PATIENCE, was_dropped).await.expect("the handler is dropped").unwrap();
}

/// Says when a request has begun, and answers it when released.
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
async fn at_the_cap_newcomers_wait_for_a_busy_connection_to_end() {
    async fn newcomer_waits(max_connections: usize) -> bool {
        let (app, begun, released) = gated();
        let server = start(app, Limits { max_connections, ..no_limits() }).await;
        let mut busy = connect(server.addr).await;
        send(&mut busy, "GET /gated HTTP/1.1\r\n\r\n").await;
        begun.notified().await;

        let mut newcomer = connect(server.addr).await;
        send(&mut newcomer, "GET / HTTP/1.1\r\n\r\n").await;
        let waits = timeout(WATCH, newcomer.peek(&mut [0])).await.is_err();
        released.notify_one();
        assert!(answer(&mut busy).await.ends_with("done"));
        assert!(answer(&mut newcomer).await.ends_with("hello"));
        waits
    }
    assert!(newcomer_waits(1).await);
    assert!(!newcomer_waits(2).await, "below the cap nobody waits");
}

#[tokio::test]
async fn at_the_cap_the_longest_idle_connection_makes_room() {
    let server = start(hello(), Limits { max_connections: 2, ..no_limits() }).await;
    let (mut longest, mut shorter, mut newcomer) = (connect(server.addr).await, connect(server.addr).await, connect(server.addr).await);
    for stream in [&mut longest, &mut shorter, &mut newcomer] {
        send(stream, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(answer(stream).await.ends_with("hello"));
    }
    assert_closes(&mut longest).await;
    for stream in [&mut shorter, &mut newcomer] {
        send(stream, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(answer(stream).await.ends_with("hello"));
    }
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight_and_closes_what_is_idle() {
    let (app, begun, released) = gated();
    let server = start(app, no_limits()).await;
    let mut fresh = connect(server.addr).await;
    let mut idle = connect(server.addr).await;
    send(&mut idle, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(!answer(&mut idle).await.contains("connection: close"));
    let mut in_flight = connect(server.addr).await;
    send(&mut in_flight, "GET /gated HTTP/1.1\r\n\r\n").await;
    begun.notified().await;

    server.shutdown.cancel();
    assert_closes(&mut fresh).await;
    assert_closes(&mut idle).await;
    TcpStream::connect(server.addr).await.expect_err("nobody listens any more");
    released.notify_one();
    let answer = answer(&mut in_flight).await;
    assert!(answer.contains("connection: close") && answer.ends_with("done"), "{answer}");
    let report = timeout(PATIENCE, server.serving).await.expect("all over").unwrap();
    assert_eq!(report, ServeReport { connections_cut: 0 });
}

#[tokio::test]
async fn shutdown_cuts_what_is_stuck() {
    async fn shut_down_while_stuck(shutdown_grace: Duration) -> Option<ServeReport> {
        let (app, begun, _never_released) = gated();
        let server = start(app, Limits { shutdown_grace, ..no_limits() }).await;
        let mut stuck = connect(server.addr).await;
        send(&mut stuck, "GET /gated HTTP/1.1\r\n\r\n").await;
        begun.notified().await;
        server.shutdown.cancel();
        timeout(WATCH, server.serving).await.ok().map(Result::unwrap)
    }
    assert_eq!(shut_down_while_stuck(SHORT).await, Some(ServeReport { connections_cut: 1 }));
    assert_eq!(shut_down_while_stuck(Duration::MAX).await, None, "without a deadline it never ends");
}

#[tokio::test]
async fn an_oversized_header_section_is_answered_431() {
    let server = start(hello(), Limits { max_header_bytes: 2000, ..no_limits() }).await;
    let long_value = format!("GET / HTTP/1.1\r\nx-long: {}\r\n\r\n", "a".repeat(2000));
    let many_fields = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
    let acceptable = format!("GET / HTTP/1.1\r\nx-long: {}\r\n{}\r\n", "a".repeat(1000), "x: y\r\n".repeat(99));
    for (request, status) in [(long_value, "431"), (many_fields, "431"), (acceptable, "200")] {
        let mut stream = connect(server.addr).await;
        send(&mut stream, &request).await;
        assert_eq!(&answer(&mut stream).await[9..12], status);
    }
}

#[tokio::test]
async fn requests_know_their_peer() {
    let app = Router::new().route("/", get(async |Extension(PeerAddr(peer)): Extension<PeerAddr>| peer.to_string()));
    let server = start(app, Limits::default()).await;
    let mut stream = connect(server.addr).await;
    send(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(answer(&mut stream).await.ends_with(&stream.local_addr().unwrap().to_string()));
}

/// Runs itself in a child process with few file descriptors, and there takes them all.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "tells the child process from its parent")]
async fn accepting_goes_on_after_the_descriptors_ran_out() {
    const IN_CHILD: &str = "TEST_WITH_FEW_DESCRIPTORS";
    if std::env::var(IN_CHILD).is_err() {
        let test = std::env::current_exe().unwrap();
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$0\" --exact accepting_goes_on_after_the_descriptors_ran_out --nocapture"])
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
    send(&mut busy, "GET /gated HTTP/1.1\r\n\r\n").await;
    begun.notified().await;
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }

    // One descriptor for the client, none for the server.
    hoard.pop();
    let mut newcomer = connect(server.addr).await;
    send(&mut newcomer, "GET / HTTP/1.1\r\n\r\n").await;
    timeout(WATCH, newcomer.peek(&mut [0])).await.expect_err("nothing to accept it with");
    hoard.pop();
    assert!(answer(&mut newcomer).await.ends_with("hello"));

    // The newcomer is idle now, and makes room for the next.
    hoard.pop();
    let mut next = connect(server.addr).await;
    send(&mut next, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(answer(&mut next).await.ends_with("hello"));
    assert_closes(&mut newcomer).await;
    released.notify_one();
    assert!(answer(&mut busy).await.ends_with("done"));
}
