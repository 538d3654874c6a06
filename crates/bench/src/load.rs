//! The load generator: prepared HTTP/1.1 requests over keep-alive connections, one task each, all on one thread, to leave as
//! much of the machine as possible to the server.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    net::TcpStream,
    task::JoinSet,
};

use crate::histogram::Histogram;

/// The size of a write.
const PIECE: usize = 256 * 1024;
/// The content of uploads, in pieces of this.
static FILLER: LazyLock<Vec<u8>> = LazyLock::new(|| (0..PIECE).map(|n| b"0123456789abcdef"[n * n / 7 % 16]).collect());
/// A counter that makes the contents of uploads distinct.
static UPLOADS: AtomicU64 = AtomicU64::new(0);
/// The boundary of a form.
const BOUNDARY: &str = "bench-5f2c1a";

/// A request that can be sent any number of times.
pub(crate) struct Request {
    head: Vec<u8>,
    content: Option<Content>,
}

/// The content of an upload: a unique number and filler.
struct Content {
    size: usize,
    tail: String,
}

impl Request {
    pub(crate) fn get(path: &str, token: &str) -> Self {
        Self { head: head("GET", path, Some(token), "").into(), content: None }
    }

    pub(crate) fn get_without_token(path: &str) -> Self {
        Self { head: head("GET", path, None, "").into(), content: None }
    }

    pub(crate) fn post(path: &str, token: Option<&str>, body: &Value) -> Self {
        let body = body.to_string();
        let about_body = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        Self { head: (head("POST", path, token, &about_body) + &body).into(), content: None }
    }

    /// An upload of `size` bytes, with a different content each time it is sent.
    pub(crate) fn upload(path: &str, token: &str, size: usize) -> Self {
        let part = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"Quarterly report.txt\"\r\ncontent-type: text/plain\r\n\r\n"
        );
        let tail = format!("\r\n--{BOUNDARY}--\r\n");
        let length = part.len() + size + tail.len();
        let about_body = format!("content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {length}\r\n");
        Self { head: (head("POST", path, Some(token), &about_body) + &part).into(), content: Some(Content { size, tail }) }
    }
}

fn head(method: &str, path: &str, token: Option<&str>, about_body: &str) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n{about_body}");
    if let Some(token) = token {
        let _infallible = write!(head, "authorization: Bearer {token}\r\n");
    }
    head + "\r\n"
}

/// A keep-alive connection.
pub(crate) struct Connection {
    stream: BufWriter<TcpStream>,
    input: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect to the server")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufWriter::with_capacity(PIECE, stream), input: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request and returns the status and the body of its response.
    pub(crate) async fn exchange(&mut self, request: &Request) -> Result<(u16, &[u8])> {
        self.stream.write_all(&request.head).await?;
        if let Some(Content { size, tail }) = &request.content {
            let mut number = [b'-'; 16];
            write!(&mut number[..], "{:016x}", UPLOADS.fetch_add(1, Ordering::Relaxed))?;
            let mut left = size.checked_sub(number.len()).context("an upload has at least 16 bytes")?;
            self.stream.write_all(&number).await?;
            while left > 0 {
                let piece = &FILLER[..left.min(PIECE)];
                self.stream.write_all(piece).await?;
                left -= piece.len();
            }
            self.stream.write_all(tail.as_bytes()).await?;
        }
        self.stream.flush().await?;
        let (status, body) = self.receive().await?;
        Ok((status, &self.input[body]))
    }

    /// Sends a request that must succeed, and returns the `data` of its response.
    pub(crate) async fn call(&mut self, request: &Request) -> Result<Value> {
        let (status, body) = self.exchange(request).await?;
        ensure!((200..300).contains(&status), "the server responded with status {status}: {}", String::from_utf8_lossy(body));
        Ok(serde_json::from_slice::<Value>(body)?["data"].take())
    }

    /// Sends a request that must succeed, discards the body of its response, and returns the body's length.
    pub(crate) async fn download(&mut self, request: &Request) -> Result<usize> {
        self.stream.write_all(&request.head).await?;
        self.stream.flush().await?;
        let (status, length, body) = self.receive_head().await?;
        ensure!(status == 200, "the server responded with status {status}");
        let mut left = length - (self.input.len() - body);
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let read = self.stream.get_mut().read(&mut piece).await?;
            ensure!(read > 0, "the server closed the connection");
            left -= read;
        }
        Ok(length)
    }

    async fn receive(&mut self) -> Result<(u16, Range<usize>)> {
        let (status, length, body) = self.receive_head().await?;
        while self.input.len() < body + length {
            self.receive_more().await?;
        }
        Ok((status, body..body + length))
    }

    /// Receives the head of a response: its status, the length of the body, and the body's position in the input.
    async fn receive_head(&mut self) -> Result<(u16, usize, usize)> {
        self.input.clear();
        let body = loop {
            match self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.receive_more().await?,
            }
        };
        let (status, length) = parse_head(&self.input[..body])?;
        Ok((status, length, body))
    }

    async fn receive_more(&mut self) -> Result<()> {
        ensure!(self.stream.get_mut().read_buf(&mut self.input).await? > 0, "the server closed the connection");
        Ok(())
    }
}

/// The status and the length of the body. The response must have a Content-Length.
fn parse_head(head: &[u8]) -> Result<(u16, usize)> {
    const LENGTH: &[u8] = b"content-length: ";
    let status = head.get(9..12).and_then(number).context("the server does not speak HTTP/1.1")?;
    let mut lines = head.split(|byte| *byte == b'\n');
    let length = lines.find_map(|line| line.split_at_checked(LENGTH.len()).filter(|(name, _)| name.eq_ignore_ascii_case(LENGTH)));
    let length = length.and_then(|(_, value)| number(value)).context("a response has no Content-Length")?;
    Ok((u16::try_from(status)?, length))
}

fn number(text: &[u8]) -> Option<usize> {
    str::from_utf8(text).ok()?.trim_ascii().parse().ok()
}

/// Requests over a number of connections, each of which waits for a response before it sends its next request.
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    /// Sent in turn; each connection starts at a different one.
    pub(crate) requests: Arc<[Request]>,
    pub(crate) connections: usize,
    /// The time after which no request is sent.
    pub(crate) duration: Duration,
    /// A response with another status counts as failed.
    pub(crate) expected_status: u16,
}

/// The outcome of a load.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The latencies of successful requests.
    pub(crate) latencies: Histogram,
    pub(crate) failed: u64,
    /// The time until the last response.
    pub(crate) elapsed: Duration,
}

impl Load {
    pub(crate) async fn run(&self) -> Result<Outcome> {
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            connections.push(Connection::open(self.address).await?);
        }
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for (n, connection) in connections.into_iter().enumerate() {
            let first = n * self.requests.len() / self.connections;
            tasks.spawn(keep_sending(connection, Arc::clone(&self.requests), first, began + self.duration, self.expected_status));
        }
        let mut total = Outcome::default();
        while let Some(part) = tasks.join_next().await {
            let (latencies, failed) = part??;
            total.latencies.merge(&latencies);
            total.failed += failed;
        }
        total.elapsed = began.elapsed();
        Ok(total)
    }
}

async fn keep_sending(
    mut connection: Connection,
    requests: Arc<[Request]>,
    first: usize,
    until: Instant,
    expected_status: u16,
) -> Result<(Histogram, u64)> {
    let (mut latencies, mut failed) = (Histogram::default(), 0);
    for request in requests.iter().cycle().skip(first) {
        let sent = Instant::now();
        if sent >= until {
            return Ok((latencies, failed));
        }
        if connection.exchange(request).await?.0 == expected_status {
            latencies.record(sent.elapsed());
        } else {
            failed += 1;
        }
    }
    bail!("there is no request to send")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server for one connection that sends these responses, and returns everything that it received.
    async fn responding(responses: &'static [&'static str]) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::with_capacity(2 * PIECE);
            for response in responses {
                stream.read_buf(&mut received).await.unwrap();
                // In pieces, as networks deliver them.
                for piece in response.as_bytes().chunks(7) {
                    stream.write_all(piece).await.unwrap();
                    stream.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
            stream.read_to_end(&mut received).await.unwrap();
            received
        });
        (address, received)
    }

    #[tokio::test]
    async fn responses_are_parsed() {
        let responses = &[
            "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"data\": \"one\"}",
            "HTTP/1.1 404 Not Found\r\nx: y\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ];
        let (address, _server) = responding(responses).await;
        let mut connection = Connection::open(address).await.unwrap();
        let get = Request::get("/", "token");
        assert_eq!(connection.call(&get).await.unwrap(), "one");
        assert_eq!(connection.exchange(&get).await.unwrap(), (404, &b""[..]));
        let unbounded = connection.exchange(&get).await.unwrap_err();
        assert_eq!(unbounded.to_string(), "a response has no Content-Length");
    }

    #[tokio::test]
    async fn uploads_have_their_declared_length_and_differ() {
        const CREATED: &[&str] = &["HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n"];
        let mut contents = Vec::new();
        for _ in 0..2 {
            let (address, received) = responding(CREATED).await;
            let mut connection = Connection::open(address).await.unwrap();
            connection.exchange(&Request::upload("/", "token", PIECE + 20)).await.unwrap();
            drop(connection);
            let received = String::from_utf8(received.await.unwrap()).unwrap();
            let (head, body) = received.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            let content = body.split_once("\r\n\r\n").unwrap().1.strip_suffix("\r\n--bench-5f2c1a--\r\n").unwrap();
            assert_eq!(content.len(), PIECE + 20);
            contents.push(content.to_owned());
        }
        assert_ne!(contents[0], contents[1]);
        assert_eq!(contents[0][16..], contents[1][16..]);
    }

    #[tokio::test]
    async fn other_statuses_count_as_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for status in [200, 503, 200].iter().cycle() {
                stream.read_buf(&mut Vec::new()).await.unwrap();
                stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            }
        });
        let requests = [Request::get("/", "token")].into();
        let load = Load { address, requests, connections: 1, duration: Duration::from_millis(100), expected_status: 200 };
        let outcome = load.run().await.unwrap();
        let sent = outcome.latencies.total() + outcome.failed;
        assert!(sent >= 3 && (sent / 3..=sent / 3 + 1).contains(&outcome.failed), "{} of {sent} failed", outcome.failed);
    }
}
