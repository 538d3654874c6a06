//! Conversions of numbers.

/// A number as databases store it; one that is too large becomes the largest.
pub fn saturating_i64(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
