//! The media type of content, detected from its first bytes, independent of its declared type.

/// How many bytes are inspected.
pub(crate) const HEAD: usize = 8 * 1024;

/// The media type of content that begins with these bytes.
pub(crate) fn detect(head: &[u8]) -> &'static str {
    match infer::get(head) {
        Some(kind) => kind.mime_type(),
        None if is_text(head) => "text/plain",
        None => "application/octet-stream",
    }
}

/// Whether this is UTF-8 text, possibly cut in the middle of a character, without control characters that do not occur in text.
fn is_text(head: &[u8]) -> bool {
    let valid = match str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && head.len() - error.valid_up_to() < 4,
    };
    valid && head.iter().all(|byte| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_determine_the_media_type() {
        for (head, mime_type) in [
            (&b"%PDF-1.7\n"[..], "application/pdf"),
            (b"\x89PNG\r\n\x1a\n0000", "image/png"),
            (b"a,b\r\n1,2\r\n", "text/plain"),
            ("höflich".as_bytes(), "text/plain"),
            (&"ö".as_bytes()[..1], "text/plain"),
            (b"\xff\xfe\x00", "application/octet-stream"),
            (b"a\0b", "application/octet-stream"),
        ] {
            assert_eq!(detect(head), mime_type, "{head:?}");
        }
    }
}
