//! SIGTERM: requests in flight finish, no new ones are accepted, and the server exits in time.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::Persona;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::process::{Home, Server, WAIT_TIMEOUT};

/// An upload that pauses in the middle.
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
        // A response to a later request shows that the server has received the first half.
        server.stranger().get("/health").await.expect(200);
        Self { stream, rest: rest.to_owned() }
    }

    async fn finish(mut self) -> String {
        self.stream.write_all(self.rest.as_bytes()).await.unwrap();
        let mut response = String::new();
        tokio::time::timeout(WAIT_TIMEOUT, self.stream.read_to_string(&mut response)).await.unwrap().unwrap();
        response
    }
}

#[tokio::test]
async fn requests_in_flight_finish_and_new_ones_are_refused() {
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
    tokio::time::timeout(WAIT_TIMEOUT, refused).await.expect("new connections are still accepted");

    let response = upload.finish().await;
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
    assert_eq!(server.exited().await.code(), Some(0), "{}", server.log());

    // Another server takes its place on the same port, and has the last upload.
    let port = address.rsplit(':').next().unwrap();
    let next = home.serve_with(&[("PORT", port)]).await;
    assert_eq!(next.base, server.base);
    let documents = next.known(&alice).get(&format!("/api/tenants/{tenant}/documents")).await.expect(200);
    assert_eq!(documents.items()[0]["filename"], "a.txt");
    next.stop().await;
}

#[tokio::test]
async fn requests_that_do_not_finish_are_cut_off() {
    let home = Home::new();
    let mut server = home.serve_with(&[("SHUTDOWN_GRACE", "1")]).await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let mut upload = Upload::begin(&server, &alice, &tenant).await;
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.exited().await.code(), Some(0), "{}", server.log());
    let took = signalled.elapsed();
    assert!(took >= Duration::from_secs(1), "there was no grace period: {took:?}");
    assert!(took < Duration::from_secs(8), "the grace period was too long: {took:?}");
    let mut response = Vec::new();
    // The connection is closed or reset.
    drop(upload.stream.read_to_end(&mut response).await);
    assert!(!response.starts_with(b"HTTP/1.1 201"));
    let next = home.serve().await;
    assert_eq!(next.known(&alice).get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).items().len(), 0);
    next.stop().await;
    home.assert_consistent().await;
}
