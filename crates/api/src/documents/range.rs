//! Ranges (RFC 9110, section 14), as pure functions of the request's headers.

use std::ops::Range;

use http::{HeaderMap, header};

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
/// RFC 9110 allows. Also ignores any `Range` whose `If-Range` is not exactly this entity tag, which has its quotes.
#[must_use]
pub(crate) fn select(headers: &HeaderMap, etag: &str, size: u64) -> Selection {
    let unchanged = headers.get_all(header::IF_RANGE).iter().all(|if_range| if_range == etag);
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (ranges.next(), ranges.next()) {
        (Some(range), None) if unchanged => range.to_str().ok().and_then(parse).map_or(Selection::Full, |range| range.within(size)),
        _ => Selection::Full,
    }
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
    use http::{HeaderName, HeaderValue};
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
        fn selections_lie_within_the_representation(range in "(bytes=)?[-0-9, =]{0,24}", size: u64) {
            if let Selection::Partial(range) = selected(&range, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
