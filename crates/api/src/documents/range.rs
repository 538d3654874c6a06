//! Ranges and preconditions of a download (RFC 9110, sections 13 and 14), as pure functions of the request's headers.
//!
//! All functions expect a strong entity tag, including its quotes.

use std::ops::Range;

use http::{HeaderMap, HeaderName, header};

/// The bytes to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// All bytes: 200.
    Full,
    /// A non-empty range: 206.
    Partial(Range<u64>),
    /// The range contains no bytes of the representation: 416.
    Unsatisfiable,
}

/// Evaluates `Range` and `If-Range` of a GET. Ignores a `Range` that is malformed, uses another unit or names several ranges, as
/// RFC 9110 allows. Also ignores any `Range` whose `If-Range` is not exactly this entity tag.
#[must_use]
pub(crate) fn select(headers: &HeaderMap, etag: &str, size: u64) -> Selection {
    let unchanged = headers.get_all(header::IF_RANGE).iter().all(|if_range| if_range == etag);
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (ranges.next(), ranges.next()) {
        (Some(range), None) if unchanged => range.to_str().ok().and_then(parse).map_or(Selection::Full, |range| range.within(size)),
        _ => Selection::Full,
    }
}

/// Whether `If-Match` holds: it is absent, `*`, or lists this entity tag (strong comparison). Otherwise the response is 412.
#[must_use]
pub(crate) fn if_match(headers: &HeaderMap, etag: &str) -> bool {
    !headers.contains_key(header::IF_MATCH) || lists(headers, &header::IF_MATCH, |listed| listed == etag)
}

/// Whether `If-None-Match` holds: it is absent, or neither `*` nor lists this entity tag (weak comparison). Otherwise the response
/// to a GET is 304.
#[must_use]
pub(crate) fn if_none_match(headers: &HeaderMap, etag: &str) -> bool {
    !lists(headers, &header::IF_NONE_MATCH, |listed| listed.strip_prefix("W/").unwrap_or(listed) == etag)
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

/// One requested byte range. Numbers beyond `u64` become `u64::MAX`: no representation is that large.
#[derive(Clone, Copy)]
enum RangeSpec {
    /// `first-last`, `first <= last`.
    FromTo(u64, u64),
    /// `first-`
    From(u64),
    /// `-length`
    Last(u64),
}

impl RangeSpec {
    fn within(self, size: u64) -> Selection {
        let (start, end) = match self {
            Self::FromTo(first, last) => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            // A suffix of an empty representation is the whole representation.
            Self::Last(1..) if size == 0 => return Selection::Full,
            Self::Last(length) => (size.saturating_sub(length), size),
        };
        if start < end { Selection::Partial(start..end) } else { Selection::Unsatisfiable }
    }
}

fn parse(value: &str) -> Option<RangeSpec> {
    let (unit, range) = value.trim().split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") || [first, last].iter().any(|digits| !digits.bytes().all(|byte| byte.is_ascii_digit())) {
        return None;
    }
    let number = |digits: &str| digits.parse().unwrap_or(u64::MAX);
    match (first, last) {
        ("", "") => None,
        ("", length) => Some(RangeSpec::Last(number(length))),
        (first, "") => Some(RangeSpec::From(number(first))),
        (first, last) => Some(RangeSpec::FromTo(number(first), number(last))).filter(|_| number(first) <= number(last)),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const ETAG: &str = "\"abc\"";

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn selected(range: &str, size: u64) -> Selection {
        select(&headers(&[(header::RANGE, range)]), ETAG, size)
    }

    #[test]
    fn examples_of_rfc_9110() {
        assert_eq!(selected("bytes=0-499", 10_000), Selection::Partial(0..500));
        assert_eq!(selected("bytes=500-999", 10_000), Selection::Partial(500..1_000));
        assert_eq!(selected("bytes=-500", 10_000), Selection::Partial(9_500..10_000));
        assert_eq!(selected("bytes=9500-", 10_000), Selection::Partial(9_500..10_000));
        assert_eq!(selected("bytes=0-0", 10_000), Selection::Partial(0..1));
    }

    #[test]
    fn boundary_values() {
        assert_eq!(selected("bytes=0-", 10), Selection::Partial(0..10));
        assert_eq!(selected("bytes=9-20", 10), Selection::Partial(9..10));
        assert_eq!(selected("bytes=-20", 10), Selection::Partial(0..10));
        assert_eq!(selected("BYTES=1-1", 10), Selection::Partial(1..2));
        assert_eq!(selected("bytes=0-99999999999999999999999", 10), Selection::Partial(0..10));
        for unsatisfiable in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(selected(unsatisfiable, 10), Selection::Unsatisfiable, "{unsatisfiable}");
        }
        assert_eq!(selected("bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(selected("bytes=-1", 0), Selection::Full);
    }

    #[test]
    fn all_but_a_single_byte_range_is_ignored() {
        let ignored = [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=0-1,3-4",
            "bytes=0-1,",
            "bytes=+1-2",
            "bytes=--1",
            "lines=0-1",
            "0-1",
        ];
        for range in ignored {
            assert_eq!(selected(range, 10), Selection::Full, "{range}");
        }
        let two = headers(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=3-4")]);
        assert_eq!(select(&two, ETAG, 10), Selection::Full);
        assert_eq!(select(&HeaderMap::new(), ETAG, 10), Selection::Full);
    }

    #[test]
    fn a_range_of_another_version_is_ignored() {
        let selected = |if_range| select(&headers(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, if_range)]), ETAG, 10);
        assert_eq!(selected("\"abc\""), Selection::Partial(0..2));
        for other in ["\"abd\"", "W/\"abc\"", "abc", "*", "\"abc\", \"abd\"", "Sat, 29 Oct 1994 19:43:31 GMT"] {
            assert_eq!(selected(other), Selection::Full, "{other}");
        }
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
        assert!(if_match(&HeaderMap::new(), ETAG) && if_none_match(&HeaderMap::new(), ETAG));
        let lines = [(header::IF_NONE_MATCH, "\"x\""), (header::IF_NONE_MATCH, "\"abc\"")];
        assert!(!if_none_match(&headers(&lines), ETAG));
    }

    /// The positions of a representation of `size` bytes that a range selects, one by one.
    fn model(first: Option<u64>, last: Option<u64>, size: u64) -> Vec<u64> {
        let named = |position: &u64| match (first, last) {
            (Some(first), Some(last)) => (first..=last).contains(position),
            (Some(first), None) => *position >= first,
            (None, Some(length)) => size - position <= length,
            (None, None) => false,
        };
        (0..size).filter(named).collect()
    }

    proptest! {
        #[test]
        fn selections_agree_with_the_model(first: Option<u8>, last: Option<u8>, size in 1..=255_u64) {
            let (first, last) = (first.map(u64::from), last.map(u64::from));
            let text = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
            let selection = selected(&format!("bytes={}-{}", text(first), text(last)), size);
            let malformed = (first, last) == (None, None) || matches!((first, last), (Some(first), Some(last)) if first > last);
            let expected = model(first, last, size);
            match selection {
                Selection::Full => prop_assert!(malformed),
                Selection::Partial(range) => prop_assert_eq!(range.collect::<Vec<_>>(), expected),
                Selection::Unsatisfiable => prop_assert!(!malformed && expected.is_empty()),
            }
        }

        #[test]
        fn selections_lie_within_the_representation(range in "(bytes=)?[-0-9, =]{0,24}", list in "[W/\"a-c*, \t]{0,16}", size: u64) {
            if let Selection::Partial(range) = selected(&range, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
            let headers = headers(&[(header::IF_MATCH, &list), (header::IF_NONE_MATCH, &list)]);
            // A strong match is also a weak match.
            prop_assert!(!(if_match(&headers, ETAG) && if_none_match(&headers, ETAG)));
        }
    }
}
