//! SIGTERM: what is under way finishes, nothing new begins, and it ends in time.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::Persona;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::process::{Home, PATIENCE, Server};

/// An upload that stops in the middle.
struct Upload {
    stream: TcpStream,
    rest: String,
}

impl Upload {
    async fn begin(server: &Server, alice: &Persona, tenant: &str) -> Self {
        let body =
            format!("--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n{}\r\n--x--\r\n", "a".repeat(100_000));
        let (half, rest) = body.split_at(50_000);
        let host = server.base.strip_prefix("http://").unwrap();
        let token = alice.access_token.as_ref().unwrap();
        let head = format!(
            "POST /api/tenants/{tenant}/documents HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        // IdempotentOutcome by now: the server has seen what was sent before.
        server.stranger().get("/health").await.expect(200);
        Self { stream, rest: rest.to_owned() }
    }

    async fn finish(mut self) -> String {
        self.stream.write_all(self.rest.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, self.stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }
}

#[tokio::test]
async fn what_is_under_way_finishes_and_nothing_new_begins() {
    let home = Home::new();
    let mut server = home.serve().await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let upload = Upload::begin(&server, &alice, &tenant).await;
    server.signal(Signal::TERM);
    server.wait_for("stopping", |log| log.contains("stopping")).await;
    let address = server.base.strip_prefix("http://").unwrap().to_owned();
    let refused = async {
        while TcpStream::connect(&address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("new connections are still taken");

    let answer = upload.finish().await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());

    // Another takes its place, on the very same port, and has what was uploaded at the last moment.
    let port = address.rsplit(':').next().unwrap();
    let next = home.serve_with(&[("PORT", port)]).await;
    assert_eq!(next.base, server.base);
    let documents = next.known(&alice).get(&format!("/api/tenants/{tenant}/documents")).await.expect(200);
    assert_eq!(documents.items()[0]["filename"], "a.txt");
    next.stop().await;
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off() {
    let home = Home::new();
    let mut server = home.serve_with(&[("SHUTDOWN_GRACE", "1")]).await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let mut upload = Upload::begin(&server, &alice, &tenant).await;
    let asked = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(1), "it was given no time: {took:?}");
    assert!(took < Duration::from_secs(8), "it was given too much time: {took:?}");
    let mut answer = Vec::new();
    // Closed or reset.
    drop(upload.stream.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP/1.1 201"));
    let next = home.serve().await;
    assert_eq!(next.known(&alice).get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).items().len(), 0);
    next.stop().await;
    assert_eq!(home.broken().await, Vec::<String>::new());
}
