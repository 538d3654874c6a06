//! What a request's head must satisfy beyond hyper's parser (RFC 9112).

use http::{HeaderMap, Request, StatusCode, Version, header};

/// The status with which to reject a request, if its head is invalid.
///
/// - Exactly one `Host`, and a valid one (RFC 9112, section 3.2). HTTP/1.0 needs none.
/// - No transfer coding but `chunked` (section 6.1): a proxy that reads the body differently could be made to smuggle a request.
pub(crate) fn problem<B>(request: &Request<B>) -> Option<StatusCode> {
    let headers = request.headers();
    if !has_valid_host(headers, request.version()) {
        return Some(StatusCode::BAD_REQUEST);
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some(StatusCode::NOT_IMPLEMENTED),
    }
}

fn has_valid_host(headers: &HeaderMap, version: Version) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(is_valid_host),
        (None, _) => version < Version::HTTP_11,
        _ => false,
    }
}

/// Whether this is a valid value of `Host`: `host [":" port]` (RFC 3986, section 3.2), without the characters that no host name has.
#[must_use]
pub fn is_valid_host(text: &str) -> bool {
    let (host, after) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("", after),
            _ => return false,
        },
        None => match text.find(':') {
            Some(colon) if colon > 0 => text.split_at(colon),
            Some(_) => return false,
            None if text.is_empty() => return false,
            None => (text, ""),
        },
    };
    let is_port = |port: &str| port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte))
        && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port))
}

/// Looks for line feeds without a carriage return in the heads of requests, which hyper's parser accepts as line ends.
///
/// A proxy in front that takes such a line feed for a part of a field's value would forward fields that it has not seen. Covers all
/// requests but those that a client sends before it has the response to the previous one; proxies do not do that.
#[derive(Default)]
pub(crate) struct LineEnds {
    /// The number of requests before the one whose head is read.
    requests: u64,
    last: Option<u8>,
    /// Bytes in the line so far, its carriage return included.
    line_length: usize,
    /// Whether a line of the head has begun: the empty lines before it are ignored.
    begun: bool,
    /// Whether the head is complete.
    ended: bool,
}

impl LineEnds {
    /// Checks the next bytes of the head of the request after `requests` others. Makes a bare line feed a NUL, which the parser
    /// refuses.
    pub(crate) fn check(&mut self, requests: u64, bytes: &mut [u8]) {
        if self.requests != requests {
            *self = Self { requests, ..Self::default() };
        }
        for byte in bytes {
            if self.ended {
                return;
            }
            self.advance(byte);
        }
    }

    fn advance(&mut self, byte: &mut u8) {
        let last = self.last.replace(*byte);
        match *byte {
            b'\n' if last.is_some_and(|last| last != b'\r') => {
                *byte = 0;
                self.ended = true;
            }
            b'\n' => {
                self.ended = self.begun && self.line_length == 1;
                self.line_length = 0;
            }
            b'\r' => self.line_length += 1,
            _ => {
                self.line_length += 1;
                self.begun = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Version, fields: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        problem(&request.body(()).unwrap()).map(|status| status.as_u16())
    }

    #[test]
    fn http_1_1_needs_exactly_one_valid_host() {
        for host in
            ["a", "example.com", "example.com:8080", "a_b-c.example:", "127.0.0.1:1", "[::1]", "[2001:db8::1]:443", "xn--bcher-kva.example"]
        {
            assert_eq!(status(Version::HTTP_11, &[("host", host)]), None, "{host}");
        }
        for host in [
            "",
            " ",
            "a b",
            "a/b",
            "a?b",
            "evil.example/path?",
            "a#b",
            "a@b",
            "user:pw@a",
            "a,b",
            "a:b",
            "a:1:2",
            ":80",
            "a:70000",
            "a:+1",
            "[::1",
            "[a]",
            "::1",
            "[::1]x",
            "a\\b",
            "a\"b",
            "http://a",
        ] {
            assert_eq!(status(Version::HTTP_11, &[("host", host)]), Some(400), "{host}");
        }
        assert_eq!(status(Version::HTTP_11, &[]), Some(400));
        assert_eq!(status(Version::HTTP_11, &[("host", "a"), ("host", "a")]), Some(400));
        assert_eq!(status(Version::HTTP_10, &[]), None);
        assert_eq!(status(Version::HTTP_10, &[("host", "a"), ("host", "b")]), Some(400));
    }

    #[test]
    fn only_chunked_is_a_known_transfer_coding() {
        let with = |codings: &[&'static str]| {
            let fields: Vec<_> =
                std::iter::once(("host", "a")).chain(codings.iter().map(|coding| ("transfer-encoding", *coding))).collect();
            status(Version::HTTP_11, &fields)
        };
        assert_eq!((with(&[]), with(&["chunked"]), with(&["Chunked"])), (None, None, None));
        for codings in
            [&["gzip, chunked"][..], &["gzip", "chunked"], &["chunked, chunked"], &["chunked", "chunked"], &["identity"], &["xchunked"]]
        {
            assert_eq!(with(codings), Some(501), "{codings:?}");
        }
    }

    /// The head as the parser gets it, when it arrives in pieces of this size.
    fn checked(head: &str, size: usize) -> String {
        let mut bytes = head.as_bytes().to_vec();
        let mut lines = LineEnds::default();
        for piece in bytes.chunks_mut(size) {
            lines.check(0, piece);
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_bare_line_feed_in_a_head_becomes_a_nul() {
        for size in 1..40 {
            for valid in
                ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\na: b\r\n\r\nbody\nbody\n\n"]
            {
                assert_eq!(checked(valid, size), valid, "in pieces of {size}");
            }
            for (bare, wanted) in [
                ("GET / HTTP/1.1\nhost: a\n\n", "GET / HTTP/1.1\0host: a\n\n"),
                ("GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n", "GET / HTTP/1.1\r\na: b\0c: d\r\n\r\n"),
                ("GET / HTTP/1.1\r\na: b\r\n\n", "GET / HTTP/1.1\r\na: b\r\n\0"),
                ("GET / HTTP/1.1\r\n\nbody", "GET / HTTP/1.1\r\n\0body"),
            ] {
                assert_eq!(checked(bare, size), wanted, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn every_request_of_a_connection_is_checked() {
        let mut lines = LineEnds::default();
        let mut first = *b"GET / HTTP/1.1\r\n\r\n";
        lines.check(0, &mut first);
        let mut second = *b"GET / HTTP/1.1\n\r\n";
        lines.check(1, &mut second);
        assert_eq!(second, *b"GET / HTTP/1.1\0\r\n");
        // The beginning of a head that arrived with the previous request is unknown.
        let mut rest = *b"\nhost: a\r\n\r\n";
        lines.check(2, &mut rest);
        assert_eq!(rest, *b"\nhost: a\r\n\r\n");
    }
}
