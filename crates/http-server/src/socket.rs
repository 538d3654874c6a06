//! A socket that records its reads and writes, and adjusts what hyper does not leave to its user.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{App, PeerAddr, activity::Activity, head::LineEnds};

/// A socket that records its reads and writes in the connection's [`Activity`].
///
/// It refuses bare line feeds in heads. It gives the app's form to the responses that hyper makes on its own to what it can't parse.
pub(crate) struct Socket {
    stream: TcpStream,
    peer: PeerAddr,
    app: App,
    activity: Arc<Activity>,
    line_ends: LineEnds,
    /// Whether a response may be incomplete: hyper has written since its last flush.
    unflushed: bool,
    /// The rest of a response that takes the place of hyper's own.
    rejection: Option<Bytes>,
    write_closed: bool,
    /// Whether the socket discards what the client still sends.
    lingers: bool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, peer: PeerAddr, app: App, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            peer,
            app,
            activity,
            line_ends: LineEnds::default(),
            unflushed: false,
            rejection: None,
            write_closed: false,
            lingers: false,
        }
    }

    /// Begins a response in place of hyper's own, if that is what it writes: a response before a request reached the app.
    fn begin_rejection(&mut self, written: &[u8]) {
        if self.rejection.is_some() || self.unflushed || self.activity.reading_head().is_none() {
            return;
        }
        if let Some(status) = status_of(written) {
            self.rejection = Some(render(written, self.app.reject(status, self.peer)));
        }
    }

    /// Writes the response that takes the place of hyper's own to its end; `None` if there is none.
    fn poll_rejection(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<()>>> {
        while let Some(rest) = &mut self.rejection {
            if rest.is_empty() {
                self.rejection = None;
                self.unflushed = true;
                return Poll::Ready(Ok(Some(())));
            }
            let written = Pin::new(&mut self.stream).poll_write(cx, rest);
            self.activity.bytes_written(if let Poll::Ready(Ok(bytes)) = written { bytes } else { 0 }, written.is_pending());
            rest.advance(ready!(written)?);
        }
        Poll::Ready(Ok(None))
    }

    fn record_write(&mut self, written: &Poll<io::Result<usize>>) {
        self.unflushed = true;
        let bytes = if let Poll::Ready(Ok(bytes)) = written { *bytes } else { 0 };
        self.activity.bytes_written(bytes, written.is_pending());
    }

    /// Discards incoming bytes until the client closes its side.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut discarded = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut discarded);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.activity.bytes_read(bytes);
            if let Some(requests) = self.activity.reading_head() {
                self.line_ends.check(requests, &mut buffer.filled_mut()[before..]);
            }
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begin_rejection(bytes);
        if ready!(self.poll_rejection(cx))?.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write(&written);
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.begin_rejection(first);
        if ready!(self.poll_rejection(cx))?.is_some() {
            return Poll::Ready(Ok(first.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.record_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unflushed = false;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes the sending side. If the client may still be sending, discards incoming bytes until the client closes its side or the
    /// watchdog ends the wait.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.write_closed = true;
        }
        if self.lingers || self.activity.may_have_more_to_come() {
            self.lingers = true;
            self.activity.begin_linger();
            return self.poll_discard(cx);
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of a response head that reports a client error.
fn status_of(head: &[u8]) -> Option<StatusCode> {
    let rest = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    StatusCode::from_bytes(rest.get(..3)?).ok().filter(StatusCode::is_client_error)
}

/// The response with hyper's status line and fields, except that the body and its length are the app's.
fn render(head: &[u8], response: Response<Bytes>) -> Bytes {
    let lines = head.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let mut rendered = lines.filter(|line| !line.starts_with(b"content-length:")).collect::<Vec<_>>().concat();
    let (parts, body) = response.into_parts();
    for (name, value) in &parts.headers {
        rendered.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    rendered.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    rendered.extend_from_slice(&body);
    rendered.into()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;

    const HYPERS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

    /// A socket of an app whose rejections have a body, and the client's side of it.
    async fn connected() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let app = App::new(Router::new(), |_, _| Response::new(Bytes::from("in the app's form")));
        (Socket::new(stream, PeerAddr(peer), app, Arc::new(Activity::new(CancellationToken::new()))), client)
    }

    async fn received(mut socket: Socket, mut client: TcpStream) -> String {
        // Nothing more may come from the client, so closing does not linger.
        socket.activity.begin_request();
        socket.shutdown().await.unwrap();
        drop(socket);
        let mut received = String::new();
        client.read_to_string(&mut received).await.unwrap();
        received
    }

    #[tokio::test]
    async fn a_response_of_hypers_own_gets_the_apps_body() {
        let (mut socket, client) = connected().await;
        socket.write_all(HYPERS).await.unwrap();
        let received = received(socket, client).await;
        let wanted = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ndate: x\r\ncontent-length: 17\r\n\r\nin the app's form";
        assert_eq!(received, wanted);
    }

    #[tokio::test]
    async fn content_that_looks_like_one_is_sent_unchanged() {
        let hypers = String::from_utf8(HYPERS.to_vec()).unwrap();
        // As the response to a request.
        let (mut socket, client) = connected().await;
        socket.activity.begin_request();
        socket.write_all(HYPERS).await.unwrap();
        assert_eq!(received(socket, client).await, hypers);
        // As the rest of a response that hyper has not flushed, while the next request arrives already.
        let (mut socket, client) = connected().await;
        socket.activity.begin_request();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        socket.activity.end_response();
        socket.activity.bytes_read(1);
        socket.write_all(HYPERS).await.unwrap();
        assert_eq!(received(socket, client).await, format!("HTTP/1.1 200 OK\r\n\r\n{hypers}"));
    }
}
