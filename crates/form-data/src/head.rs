//! The header section of a part.

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;

use crate::{Problem, parameters::Parameters};

/// What a part's header section says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The name of its field.
    pub name: String,
    /// The name of its file, if it has one. May contain any character.
    pub filename: Option<String>,
    /// Its `Content-Type`, unparsed, if it has one.
    pub content_type: Option<String>,
}

impl Head {
    /// Parses the lines of a header section, which ends with an empty one. Its first line is the rest of the boundary's.
    pub(crate) fn parse(section: &[u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(section).map_err(|_| "the header section of a part is not UTF-8")?;
        let (padding, fields) = text.split_once("\r\n").unwrap_or_default();
        if !padding.trim_matches([' ', '\t']).is_empty() {
            return Err("a boundary is followed by other characters");
        }
        let mut disposition = None;
        let mut content_type = None;
        let mut type_came_first = false;
        for line in fields.split("\r\n").filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or("a header field of a part has no colon")?;
            if line.contains(['\n', '\r', '\0']) {
                return Err("a header field of a part contains a control character");
            }
            match name.trim().to_ascii_lowercase().as_str() {
                "content-disposition" if disposition.is_some() => return Err("a part has two Content-Disposition fields"),
                "content-disposition" => {
                    type_came_first = content_type.is_some();
                    disposition = Some(value.trim());
                }
                "content-type" => content_type = Some(value.trim().to_owned()),
                "content-transfer-encoding" => check_transfer_encoding(value.trim())?,
                _ => {}
            }
        }
        let disposition = Parameters::parse(disposition.ok_or("a part has no Content-Disposition field")?)?;
        if !disposition.value.eq_ignore_ascii_case("form-data") {
            return Err("the Content-Disposition of a part is not form-data");
        }
        let name = disposition.get("name")?.ok_or("a part has no name")?;
        Ok(Self { name: unescape(name), filename: filename(&disposition, type_came_first)?, content_type })
    }
}

/// Refuses encodings of the content (RFC 7578, section 4.7: senders should not use any).
fn check_transfer_encoding(encoding: &str) -> Result<(), Problem> {
    let is_identity = ["binary", "8bit", "7bit"].iter().any(|identity| encoding.eq_ignore_ascii_case(identity));
    if is_identity { Ok(()) } else { Err("the Content-Transfer-Encoding of a part is not binary") }
}

/// The file name: that of `filename*` if it is valid (RFC 8187), or else of `filename`.
fn filename(disposition: &Parameters<'_>, is_percent_encoded: bool) -> Result<Option<String>, Problem> {
    if let Some(name) = disposition.get("filename*")?.and_then(decode_extended) {
        return Ok(Some(name));
    }
    let name = disposition.get("filename")?;
    Ok(name.map(|name| decode_word(name).or_else(|| percent_decode(name, is_percent_encoded)).unwrap_or_else(|| unescape(name))))
}

/// `charset'language'value` (RFC 8187, section 3.2).
fn decode_extended(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    decode_charset(charset, &percent_decode_str(encoded).collect::<Vec<_>>())
}

/// `=?charset?B?value?=` (RFC 2047), which .NET writes.
fn decode_word(value: &str) -> Option<String> {
    let mut parts = value.strip_prefix("=?")?.strip_suffix("?=")?.split('?');
    let (charset, encoding, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !encoding.eq_ignore_ascii_case("b") {
        return None;
    }
    decode_charset(charset, &STANDARD.decode(encoded).ok()?)
}

fn decode_charset(charset: &str, bytes: &[u8]) -> Option<String> {
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" | "us-ascii" => String::from_utf8(bytes.to_vec()).ok(),
        "iso-8859-1" => Some(bytes.iter().copied().map(char::from).collect()),
        _ => None,
    }
}

/// Decodes a name that is percent-encoded as a whole (RFC 7578, section 2), as aiohttp sends it.
///
/// Other clients escape quotes and line ends only, so their `%41` is to be taken literally. A name counts as encoded if it has no
/// character that encoding would have replaced, and if it decodes to more than ASCII or `is_likely`, because the part's fields are in
/// aiohttp's order.
fn percent_decode(name: &str, is_likely: bool) -> Option<String> {
    let is_encoded = name.contains('%') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte));
    if !is_encoded || name.matches('%').count() != name.split('%').skip(1).filter(|part| is_hex_pair(part)).count() {
        return None;
    }
    let decoded = percent_decode_str(name).decode_utf8().ok()?;
    (is_likely || !decoded.is_ascii()).then(|| decoded.into_owned())
}

fn is_hex_pair(text: &str) -> bool {
    text.as_bytes().get(..2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
}

/// Undoes the escapes of browsers and libraries in a name: `%22`, `%0D` and `%0A` (WHATWG HTML, multipart form data), and those of
/// other control characters. Every other `%` is literal.
fn unescape(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(found) = rest.find('%') {
        let (before, escape) = rest.split_at(found);
        plain.push_str(before);
        let code = escape.get(1..3).filter(|_| is_hex_pair(&escape[1..])).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match code.filter(|code| *code == b'"' || code.is_ascii_control()) {
            Some(code) => {
                plain.push(char::from(code));
                rest = &escape[3..];
            }
            None => {
                plain.push('%');
                rest = &escape[1..];
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a header section of these lines.
    fn head(lines: &[&str]) -> Result<Head, Problem> {
        Head::parse(format!("\r\n{}\r\n\r\n", lines.join("\r\n")).as_bytes())
    }

    fn filename(parameters: &str) -> String {
        head(&[&format!("Content-Disposition: form-data; name=\"file\"; {parameters}")]).unwrap().filename.unwrap()
    }

    /// What clients send for a file named `Größe "2026".pdf`, in the order in which they write it.
    #[test]
    fn a_name_is_read_as_clients_write_it() {
        let wanted = "Gr\u{f6}\u{df}e \"2026\".pdf";
        for (client, lines) in [
            (
                "Chrome, Firefox, Safari, undici, OkHttp, curl",
                &["Content-Disposition: form-data; name=\"file\"; filename=\"Größe %222026%22.pdf\"", "Content-Type: application/pdf"][..],
            ),
            (
                "curl with --form-escape, Go, Apache",
                &[r#"Content-Disposition: form-data; name="file"; filename="Größe \"2026\".pdf""#, "Content-Type: application/pdf"],
            ),
            (
                "form-data of npm, Alamofire",
                &[r#"Content-Disposition: form-data; name="file"; filename="Größe "2026".pdf""#, "Content-Type: application/pdf"],
            ),
            (
                "Dart",
                &["content-type: application/pdf", "content-disposition: form-data; name=\"file\"; filename=\"Größe %222026%22.pdf\""],
            ),
            (
                "aiohttp",
                &[
                    "Content-Type: application/pdf",
                    "Content-Disposition: form-data; name=\"file\"; filename=\"Gr%C3%B6%C3%9Fe%20%222026%22.pdf\"",
                ],
            ),
            ("requests before 2.32", &["Content-Disposition: form-data; name=\"file\"; filename*=utf-8''Gr%C3%B6%C3%9Fe%20%222026%22.pdf"]),
            (
                ".NET",
                &[
                    "Content-Type: application/pdf",
                    "Content-Disposition: form-data; name=file; filename=\"=?utf-8?B?R3LDtsOfZSAiMjAyNiIucGRm?=\"; filename*=utf-8''Gr%C3%B6%C3%9Fe%20%222026%22.pdf",
                ],
            ),
            (".NET, FileName alone", &["Content-Disposition: form-data; name=file; filename=\"=?utf-8?B?R3LDtsOfZSAiMjAyNiIucGRm?=\""]),
            (
                "in another order",
                &["CONTENT-DISPOSITION: Form-Data; FileName*=ISO-8859-1'de'Gr%F6%DFe%20%222026%22.pdf; filename=x; NAME=\"file\""],
            ),
        ] {
            let head = head(lines).unwrap();
            assert_eq!((head.name.as_str(), head.filename.as_deref()), ("file", Some(wanted)), "{client}");
        }
    }

    #[test]
    fn percent_signs_of_a_name_stay() {
        for (sent, name) in [
            ("filename=\"100%25.txt\"", "100%25.txt"),
            ("filename=\"My%20Doc.pdf\"", "My%20Doc.pdf"),
            ("filename=\"50%.txt\"", "50%.txt"),
            ("filename=\"%\"", "%"),
            ("filename=\"a%2\"", "a%2"),
            ("filename=\"a%C3%B6 b\"", "a%C3%B6 b"),
            ("filename=\"a%C3.txt\"", "a%C3.txt"),
            ("filename=\"%é2\"", "%é2"),
            ("filename=\"%+2\"", "%+2"),
        ] {
            assert_eq!(filename(sent), name, "{sent}");
        }
        let aiohttp = ["Content-Type: text/plain", "Content-Disposition: form-data; name=\"file\"; filename=\"My%20Doc.pdf\""];
        assert_eq!(head(&aiohttp).unwrap().filename.as_deref(), Some("My Doc.pdf"));
    }

    #[test]
    fn nothing_within_a_name_is_a_parameter() {
        let head = head(&[r#"Content-Disposition: form-data; filename="x; name=evil; filename=y"; name="file""#]).unwrap();
        assert_eq!((head.name.as_str(), head.filename.as_deref()), ("file", Some("x; name=evil; filename=y")));
        assert_eq!(filename("filename=\"a%0D%0AX: y\""), "a\r\nX: y");
        assert_eq!(filename("filename*=utf-8''bad%FF; filename=good"), "good");
        assert_eq!(filename("filename=\"\""), "");
    }

    #[test]
    fn an_invalid_header_section_is_refused() {
        let disposition = "Content-Disposition: form-data; name=\"a\"";
        for lines in [
            &["Content-Type: text/plain"][..],
            &[],
            &["Content-Disposition: form-data"],
            &["Content-Disposition: attachment; name=\"a\""],
            &["Content-Disposition: form-data; name=a; name=b"],
            &["Content-Disposition: form-data; name=a; filename=b; filename=c"],
            &[disposition, disposition],
            &[disposition, "no colon"],
            &[disposition, "X: a\nb"],
            &[disposition, "Content-Transfer-Encoding: base64"],
        ] {
            assert!(head(lines).is_err(), "{lines:?}");
        }
        assert!(Head::parse(b"x\r\nContent-Disposition: form-data; name=a\r\n\r\n").is_err());
        assert!(Head::parse(b"\r\nContent-Disposition: form-data; name=\xff\r\n\r\n").is_err());
        let padded =
            Head::parse(b" \t\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: Binary\r\nContent-Length: 3\r\n\r\n");
        assert_eq!(padded.unwrap().name, "a");
    }
}
