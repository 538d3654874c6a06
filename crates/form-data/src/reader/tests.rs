use std::convert::Infallible;

use futures_util::stream;
use proptest::prelude::*;

use super::*;

/// A part as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Received(String, Vec<u8>);

/// Reads a form that arrives in pieces of this size.
fn read(body: &[u8], boundary: &str, size: usize) -> Result<Vec<Received>, String> {
    let pieces: Vec<_> = body.chunks(size).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
    let mut form = FormData::new(stream::iter(pieces), boundary);
    let parts = async {
        let mut received = Vec::new();
        while let Some(mut part) = form.next_part().await? {
            let name = part.head().name.clone();
            let mut content = Vec::new();
            while let Some(chunk) = part.chunk().await? {
                assert!(!chunk.is_empty());
                content.extend_from_slice(&chunk);
            }
            received.push(Received(name, content));
        }
        // The end stays the end.
        assert!(form.next_part().await?.is_none());
        Ok(received)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(parts).map_err(|error: Error<Infallible>| error.to_string())
}

fn part(name: &str, content: &[u8], boundary: &str) -> Vec<u8> {
    [format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes(), content, b"\r\n"].concat()
}

fn form(parts: &[(&str, &[u8])], boundary: &str) -> Vec<u8> {
    let mut body: Vec<u8> = parts.iter().flat_map(|(name, content)| part(name, content, boundary)).collect();
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

#[test]
fn a_form_is_read_however_it_is_cut() {
    let contents: [&[u8]; 6] = [b"", b"hello", b"\r\n", b"--b\r\n--bo\r\n--boundar", b"\r\r\n--boundar\r\n--boundarx\r", b"--boundary--"];
    let parts: Vec<_> = contents.iter().map(|content| ("a", *content)).collect();
    let body = form(&parts, "boundary");
    let with_preamble = [b"This is ignored.\r\n", body.as_slice(), b"So is this.\r\n--boundary\r\n"].concat();
    for size in 1..=body.len() {
        for body in [&body, &with_preamble] {
            let received = read(body, "boundary", size).unwrap();
            assert_eq!(received, parts.iter().map(|(name, content)| Received((*name).into(), content.to_vec())).collect::<Vec<_>>());
        }
    }
}

#[test]
fn an_empty_form_has_no_parts() {
    for body in ["--b--", "--b--\r\n", "\r\n--b--\r\n", "preamble\r\n--b--"] {
        assert_eq!(read(body.as_bytes(), "b", 3), Ok(Vec::new()), "{body:?}");
    }
}

#[test]
fn an_incomplete_form_is_refused_wherever_it_ends() {
    let body = form(&[("a", b"hello"), ("b", b"world")], "b");
    // Without its last line end and the second hyphen before it, it is incomplete.
    for length in 0..body.len() - 2 {
        for size in [1, 7, body.len()] {
            assert_eq!(read(&body[..length], "b", size), Err("it ends before its last boundary".to_owned()), "{length} bytes");
        }
    }
}

#[test]
fn unread_contents_are_skipped() {
    let body = form(&[("a", &[b'x'; 5000]), ("b", b"kept")], "b");
    let pieces: Vec<_> = body.chunks(100).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
    let mut form = FormData::new(stream::iter(pieces), "b");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut first = form.next_part().await.unwrap().unwrap();
        assert!(first.chunk().await.unwrap().is_some());
        let mut second = form.next_part().await.unwrap().unwrap();
        assert_eq!(second.head().name, "b");
        assert_eq!(second.chunk().await.unwrap().unwrap(), "kept");
    });
}

/// Everything but contents is bounded: the reader fails before it has taken much more than the limit from the body.
#[test]
fn what_is_no_content_is_bounded() {
    let endless = |start: &[u8], unit: &[u8]| {
        let start = Bytes::copy_from_slice(start);
        let unit = Bytes::from(unit.repeat(1000 / unit.len()));
        stream::iter(std::iter::once(start).chain(std::iter::repeat(unit)).map(Ok::<_, Infallible>))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (what, start, unit, limit) in [
        ("a preamble", &b""[..], &b"x"[..], MAX_PREAMBLE_BYTES),
        ("a preamble of line ends", b"", b"\r\n", MAX_PREAMBLE_BYTES),
        ("a field", b"--b\r\nX: ", b"x", MAX_HEAD_BYTES),
        ("fields", b"--b\r\n", b"X: y\r\n", MAX_HEAD_BYTES),
        ("padding", b"--b", b" ", MAX_HEAD_BYTES),
        ("parts", b"", b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n", MAX_PARTS * 49),
    ] {
        let taken = std::cell::Cell::new(0);
        let body = endless(start, unit).inspect(|bytes| taken.set(taken.get() + bytes.as_ref().map_or(0, Bytes::len)));
        let mut form = FormData::new(body, "b");
        let failed = runtime.block_on(async {
            loop {
                match form.next_part().await {
                    Ok(part) => assert!(part.is_some()),
                    Err(error) => return error.to_string(),
                }
            }
        });
        assert!(taken.get() <= limit + 2000, "{what}: {failed} after {} bytes", taken.get());
    }
    let largest = format!("--b\r\nContent-Disposition: form-data; name=a\r\nX: {}\r\n\r\n\r\n--b--", "x".repeat(MAX_HEAD_BYTES - 54));
    assert_eq!(read(largest.as_bytes(), "b", 1000).map(|parts| parts.len()), Ok(1));
}

proptest! {
    #[test]
    fn every_form_is_read_back(
        contents in proptest::collection::vec("[\\r\\n\\-ab]{0,40}", 0..5),
        boundary in "[ab-]{1,5}",
        size in 1..50_usize,
    ) {
        // A boundary is chosen so that it does not occur.
        let boundary = format!("{boundary}#");
        let parts: Vec<_> = contents.iter().map(|content| ("n", content.as_bytes())).collect();
        let received = read(&form(&parts, &boundary), &boundary, size).unwrap();
        prop_assert_eq!(received.into_iter().map(|part| part.1).collect::<Vec<_>>(), contents.iter().map(|c| c.as_bytes().to_vec()).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_read_without_panic(body in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), any::<u8>()], 0..200), size in 1..50_usize) {
        let whole = read(&body, "b", body.len().max(1));
        prop_assert_eq!(read(&body, "b", size), whole);
    }

    #[test]
    fn any_header_section_is_read_without_panic(text in "(content-disposition: form-data; )?(name=)?(filename\\*?=)?[\"\\\\%;=a-f0-9'? \\PC]{0,30}") {
        let _ = Head::parse(format!("\r\n{text}\r\n\r\n").as_bytes());
    }
}
