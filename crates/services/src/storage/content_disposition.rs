//! `Content-Disposition`: the name that a download is saved under, and whether browsers display it.

use std::fmt::Write;

use domain::{Filename, MimeType};

/// The value of `Content-Disposition` (RFC 6266) for a document: `inline` when content of its type cannot run code in a browser,
/// otherwise `attachment`; the name in ASCII, and unchanged (RFC 8187) when that differs. Always a valid header value.
#[must_use]
pub fn content_disposition(filename: &Filename, mime_type: &MimeType) -> String {
    let name = filename.as_str();
    let ascii: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let disposition = if is_inert(mime_type.as_str()) { "inline" } else { "attachment" };
    let mut value = format!("{disposition}; filename=\"{ascii}\"");
    if ascii != name {
        value.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if is_attr_char(byte) {
                value.push(char::from(byte));
            } else {
                let _ = write!(value, "%{byte:02X}");
            }
        }
    }
    value
}

/// Whether browsers only display content of this type. Types that are not known to be harmless may contain scripts.
fn is_inert(mime_type: &str) -> bool {
    matches!(
        mime_type,
        "application/pdf" | "image/avif" | "image/bmp" | "image/gif" | "image/jpeg" | "image/png" | "image/webp" | "text/plain"
    ) || mime_type.starts_with("audio/")
        || mime_type.starts_with("video/")
}

/// Whether all browsers take this character in a quoted string literally: some unescape `%`, others `\`.
fn is_plain(c: char) -> bool {
    (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '"' | '\\' | '%')
}

/// `attr-char` of RFC 8187.
fn is_attr_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disposition(filename: &str, mime_type: &str) -> String {
        content_disposition(&Filename::parse(filename).unwrap(), &MimeType::parse(mime_type).unwrap())
    }

    #[test]
    fn names_are_sent_in_ascii_and_unchanged() {
        assert_eq!(disposition("report 2026.pdf", "application/pdf"), r#"inline; filename="report 2026.pdf""#);
        assert_eq!(
            disposition("Übersicht €.png", "image/png"),
            "inline; filename=\"_bersicht _.png\"; filename*=UTF-8''%C3%9Cbersicht%20%E2%82%AC.png"
        );
        assert_eq!(disposition("100%25.txt", "text/plain"), "inline; filename=\"100_25.txt\"; filename*=UTF-8''100%2525.txt");
        assert_eq!(
            disposition(r#"a"; filename="b.exe"#, "text/plain"),
            "inline; filename=\"a_; filename=_b.exe\"; filename*=UTF-8''a%22%3B%20filename%3D%22b.exe"
        );
    }

    #[test]
    fn active_content_is_an_attachment() {
        for inert in ["application/pdf", "image/png", "text/plain", "audio/ogg", "video/mp4"] {
            assert!(disposition("x", inert).starts_with("inline;"), "{inert}");
        }
        for active in
            ["text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "text/javascript", "application/octet-stream", "audiox/y"]
        {
            assert!(disposition("x", active).starts_with("attachment;"), "{active}");
        }
    }

    proptest! {
        #[test]
        fn every_name_becomes_one_header_value_that_decodes_to_it(text in "\\PC{1,80}") {
            let Ok(filename) = Filename::parse(&text) else { return Ok(()) };
            let value = content_disposition(&filename, &MimeType::octet_stream());
            prop_assert!(value.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{value}");
            prop_assert_eq!(value.matches('"').count(), 2);
            let name = match value.split_once("; filename*=UTF-8''") {
                Some((_, encoded)) => decode(encoded),
                None => value.split('"').nth(1).unwrap().to_owned(),
            };
            prop_assert_eq!(name, filename.as_str());
        }
    }

    fn decode(encoded: &str) -> String {
        let mut parts = encoded.split('%');
        let mut bytes = parts.next().unwrap().as_bytes().to_vec();
        for part in parts {
            bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
            bytes.extend_from_slice(&part.as_bytes()[2..]);
        }
        String::from_utf8(bytes).unwrap()
    }
}
