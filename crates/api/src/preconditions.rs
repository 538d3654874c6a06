//! Preconditions of a request (RFC 9110, section 13), as functions of its headers. Entity tags include their quotes.

use axum::response::{IntoResponse, Response};
use domain::Error;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::error::ApiError;

/// Whether `If-Match` holds: it is absent, `*`, or lists this entity tag (strong comparison, by which a weak one matches none). Otherwise the response is 412.
#[must_use]
pub(crate) fn if_match(headers: &HeaderMap, etag: &str) -> bool {
    let is_strong = !etag.starts_with("W/");
    !headers.contains_key(header::IF_MATCH) || lists(headers, &header::IF_MATCH, |listed| is_strong && listed == etag)
}

/// Whether `If-None-Match` holds: it is absent, or neither `*` nor lists this entity tag (weak comparison). Otherwise the response
/// to a GET is 304.
#[must_use]
pub(crate) fn if_none_match(headers: &HeaderMap, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim_start_matches("W/").to_owned();
    !lists(headers, &header::IF_NONE_MATCH, |listed| opaque(listed) == opaque(etag))
}

/// The response to a GET of a representation with this entity tag: 412, 304, or `full` with the tag.
pub(crate) fn conditional<R: IntoResponse>(headers: &HeaderMap, etag: &str, full: impl FnOnce() -> R) -> Result<Response, ApiError> {
    if !if_match(headers, etag) {
        return Err(ApiError::PreconditionFailed);
    }
    let mut response = if if_none_match(headers, etag) { full().into_response() } else { StatusCode::NOT_MODIFIED.into_response() };
    response.headers_mut().insert(header::ETAG, HeaderValue::try_from(etag).map_err(Error::internal)?);
    Ok(response)
}

/// Whether any of the header's lines is `*` or lists a matching entity tag. Ignores everything after a malformed tag.
fn lists(headers: &HeaderMap, name: &HeaderName, matches: impl Fn(&str) -> bool) -> bool {
    headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).any(|line| line.trim() == "*" || tags(line).any(&matches))
}

/// The entity tags of a list. A tag may contain commas.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let open = if rest.starts_with("W/\"") { 2 } else { 0 };
        let quoted = rest.get(open..)?.strip_prefix('"')?;
        let (tag, after) = rest.split_at(open + quoted.find('"')? + 2);
        rest = after;
        Some(tag)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ETAG: &str = "\"abc\"";

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn preconditions_compare_lists_of_tags() {
        // Value, whether If-Match passes, whether If-None-Match passes.
        let cases = [
            ("*", true, false),
            ("\"abc\"", true, false),
            ("\"x\", \"abc\"", true, false),
            (",, \"x,\" ,\t\"abc\"", true, false),
            ("W/\"abc\"", false, false),
            ("W/\"x\",W/\"abc\"", false, false),
            ("\"x\", \"y\"", false, true),
            ("\"x, \"abc\"", false, true),
            ("abc", false, true),
            ("w/\"abc\"", false, true),
            ("\"abc", false, true),
            ("", false, true),
        ];
        for (value, match_passes, none_match_passes) in cases {
            assert_eq!(if_match(&headers(&[(header::IF_MATCH, value)]), ETAG), match_passes, "If-Match: {value}");
            assert_eq!(if_none_match(&headers(&[(header::IF_NONE_MATCH, value)]), ETAG), none_match_passes, "If-None-Match: {value}");
        }
        let weak = [(header::IF_MATCH, "W/\"abc\""), (header::IF_NONE_MATCH, "\"abc\"")];
        assert!(!if_match(&headers(&weak), "W/\"abc\"") && !if_none_match(&headers(&weak), "W/\"abc\""));
        assert!(if_match(&HeaderMap::new(), ETAG) && if_none_match(&HeaderMap::new(), ETAG));
        let lines = [(header::IF_NONE_MATCH, "\"x\""), (header::IF_NONE_MATCH, "\"abc\"")];
        assert!(!if_none_match(&headers(&lines), ETAG));
    }

    proptest! {
        #[test]
        fn a_strong_match_is_also_a_weak_match(list in "[W/\"a-c*, \t]{0,16}") {
            let headers = headers(&[(header::IF_MATCH, &list), (header::IF_NONE_MATCH, &list)]);
            prop_assert!(!(if_match(&headers, ETAG) && if_none_match(&headers, ETAG)));
        }
    }
}
