//! Parsers that several variables share.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use secrecy::SecretString;
use url::Url;

/// A parser of whole numbers in a range.
pub(super) fn number<T: FromStr + PartialOrd + Display>(bounds: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> {
    move |text| match text.parse() {
        Ok(number) if bounds.contains(&number) => Ok(number),
        _ => Err(format!("must be a whole number from {} to {}", bounds.start(), bounds.end())),
    }
}

/// A parser of durations of one second up to `max` seconds.
pub(super) fn seconds(max: u64) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let seconds = number(1..=max)(text).map_err(|problem| problem + " (seconds)")?;
        Ok(Duration::from_secs(seconds))
    }
}

/// Parses a truth value.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

/// Parses a non-empty text.
pub(super) fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Parses a non-empty secret.
pub(super) fn secret(secret: &str) -> Result<SecretString, String> {
    text(secret).map(SecretString::from)
}

/// Parses a positive number of bytes, with or without a unit (IEC 80000-13: kB is 1000 bytes, KiB is 1024).
///
/// # Errors
/// A message for the operator, when the text is not a number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: Option<u64> = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        "tb" => Some(1_000_000_000_000),
        "tib" => Some(1 << 40),
        _ => None,
    };
    let bytes = unit.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "must be a number of bytes like 104857600, 100MB or 100MiB".to_owned())
}

/// The parts of a comma-separated list, without empty ones.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Joins a list with commas.
pub(super) fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Parses an HTTP URL to which paths are appended: without query, fragment or credentials. Removes a trailing slash.
pub(super) fn base_url(text: &str) -> Result<String, String> {
    let problem = || "must be a URL like https://api.example.com".to_owned();
    let url = Url::parse(text).map_err(|_| problem())?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    let http = matches!(url.scheme(), "http" | "https");
    if http && plain { Ok(url.as_str().trim_end_matches('/').to_owned()) } else { Err(problem()) }
}

/// Parses an origin and serialises it as browsers do (RFC 6454, section 6.2): in lower case, without the default port.
pub(super) fn origin(text: &str) -> Result<String, String> {
    match base_url(text) {
        Ok(base) => match Url::parse(&base) {
            Ok(url) if url.path() == "/" => Ok(url.origin().ascii_serialization()),
            _ => Err("must be origins like https://app.example.com, without a path".to_owned()),
        },
        Err(_) => Err("must be origins like https://app.example.com".to_owned()),
    }
}
