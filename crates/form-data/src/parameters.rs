//! Parameters of header fields: `; name=value`, as clients write them.

use crate::Problem;

/// A value and its parameters: `form-data; name="file"; filename="a.txt"`.
pub(crate) struct Parameters<'a> {
    /// What stands before the first semicolon.
    pub(crate) value: &'a str,
    /// Names as they are written, with their values without quotes.
    pub(crate) parameters: Vec<(&'a str, String)>,
}

impl<'a> Parameters<'a> {
    pub(crate) fn parse(field: &'a str) -> Result<Self, Problem> {
        let (value, mut rest) = field.split_once(';').unwrap_or((field, ""));
        let mut parameters = Vec::new();
        while let Some((name, after)) = next_name(rest)? {
            let (value, after) = next_value(after);
            parameters.push((name, value));
            rest = after;
        }
        Ok(Self { value: value.trim(), parameters })
    }

    /// The only parameter of this name, in any case.
    pub(crate) fn get(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.parameters.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        match (values.next(), values.next()) {
            (_, Some(_)) => Err("a parameter of a header field occurs twice"),
            (first, None) => Ok(first.map(|(_, value)| value.as_str())),
        }
    }
}

/// The next name, and what follows its `=`; `None` at the end.
fn next_name(rest: &str) -> Result<Option<(&str, &str)>, Problem> {
    let rest = rest.trim_start_matches([' ', '\t', ';']);
    if rest.is_empty() {
        return Ok(None);
    }
    let (name, after) = rest.split_once('=').ok_or("a parameter of a header field has no value")?;
    Ok(Some((name.trim(), after.trim_start_matches([' ', '\t']))))
}

/// A value, quoted or not, and what follows it.
fn next_value(rest: &str) -> (String, &str) {
    match rest.strip_prefix('"') {
        Some(quoted) => {
            let end = closing_quote(quoted);
            (unescape(&quoted[..end]), quoted[end..].trim_start_matches('"'))
        }
        None => {
            let (value, after) = rest.split_once(';').unwrap_or((rest, ""));
            (value.trim().to_owned(), after)
        }
    }
}

/// The position of the closing quote: the first one that is not escaped and that ends the parameter. Some clients write a quote
/// within a file name as it is.
fn closing_quote(quoted: &str) -> usize {
    let ends = |position: usize| {
        let after = quoted[position + 1..].trim_start_matches([' ', '\t']);
        after.is_empty() || after.starts_with(';')
    };
    let mut escaped = false;
    for (position, byte) in quoted.bytes().enumerate() {
        match byte {
            // Browsers do not escape backslashes, so one before the last quote is a part of the name.
            b'"' if (!escaped || quoted[position + 1..].trim().is_empty()) && ends(position) => return position,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    quoted.len()
}

/// Undoes the escapes of a quoted string (RFC 9110, section 5.6.4) that clients write: `\"` and `\\`.
fn unescape(quoted: &str) -> String {
    let mut plain = String::with_capacity(quoted.len());
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('"' | '\\')) => plain.extend(chars.next()),
            _ => plain.push(c),
        }
    }
    plain
}

/// The boundary in a `Content-Type` field, if its type is `multipart/form-data`: `None` for another type.
///
/// # Errors
/// If there is not exactly one boundary of 1 to 70 printable ASCII characters (RFC 2046, section 5.1.1).
pub fn boundary(content_type: &str) -> Result<Option<String>, Problem> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("multipart/form-data") {
        return Ok(None);
    }
    let parameters = Parameters::parse(content_type)?;
    let boundary = parameters.get("boundary")?.ok_or("its Content-Type has no boundary")?;
    let is_valid = (1..=70).contains(&boundary.len()) && boundary.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if is_valid && !boundary.ends_with(' ') { Ok(Some(boundary.to_owned())) } else { Err("its boundary is not valid") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_is_found_as_clients_write_it() {
        for (field, found) in [
            ("multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", "----WebKitFormBoundary7MA4YWxkTrZu0gW"),
            ("Multipart/Form-Data;BOUNDARY=\"a b:c\"", "a b:c"),
            ("multipart/form-data; charset=utf-8; boundary=abc", "abc"),
            ("multipart/form-data; boundary = abc ;charset=utf-8", "abc"),
            ("multipart/form-data; boundary=\"a;b\"", "a;b"),
            ("multipart/form-data; boundary=abc;", "abc"),
        ] {
            assert_eq!(boundary(field), Ok(Some(found.to_owned())), "{field}");
        }
        for other in ["application/json", "multipart/mixed; boundary=a", "multipart/form-datax; boundary=a", ""] {
            assert_eq!(boundary(other), Ok(None), "{other}");
        }
        let long = format!("multipart/form-data; boundary={}", "a".repeat(71));
        for invalid in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=a; boundary=b",
            "multipart/form-data; boundary=ä",
            "multipart/form-data; boundary=\"a \"",
            "multipart/form-data; boundary",
            &long,
        ] {
            assert!(boundary(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn quotes_end_where_a_parameter_ends() {
        for (field, name) in [
            (r#"x; n="a""#, "a"),
            (r#"x; n="a;b"; m=c"#, "a;b"),
            (r#"x; n="a\"b""#, r#"a"b"#),
            (r#"x; n="a\\b""#, r"a\b"),
            (r#"x; n="a\b""#, r"a\b"),
            (r#"x; n="a\""#, r"a\"),
            (r#"x; n="a"b.txt""#, r#"a"b.txt"#),
            (r#"x; n="a" ; m=c"#, "a"),
            (r#"x; n="; m=c""#, "; m=c"),
            (r#"x; n="a"#, "a"),
            ("x; n=a", "a"),
            ("x;n=a b ;m=c", "a b"),
            ("x; N=a", "a"),
        ] {
            assert_eq!(Parameters::parse(field).unwrap().get("n"), Ok(Some(name)), "{field}");
        }
        assert!(Parameters::parse("x; n=a; N=b").unwrap().get("n").is_err());
        assert!(Parameters::parse("x; n").is_err());
    }
}
