//! Conversions of numbers.

/// Converts a number for storage in a database, saturating at the maximum.
pub fn saturating_i64(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
