//! Requests that are done once, however often they are sent (draft-ietf-httpapi-idempotency-key-header).

use uuid::Uuid;

use crate::text::TextProblem;

/// What a client names a request by, so that it is done once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Parses the header's value: a string with its quotes, as the draft has it, or without, as most clients send it; 1 to 255
    /// visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        let text = text.trim();
        let key = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let is_good = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        if is_good { Ok(Self(key.to_owned())) } else { Err("must be 1 to 255 visible ASCII characters without quotes and backslashes") }
    }

    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A request that was made before with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastRequest {
    /// SHA-256 of what was asked for.
    pub fingerprint: [u8; 32],
    /// What it made.
    pub resource_id: Uuid,
    /// What was answered; absent while it is being done.
    pub answer: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_with_and_without_quotes() {
        assert_eq!(IdempotencyKey::parse("\"8e03978e-40d5\"").unwrap(), IdempotencyKey::parse(" 8e03978e-40d5 ").unwrap());
        for text in ["", "\"\"", "a b", "ä", "a\"b", "\"a", "a\\b", &"x".repeat(256)] {
            assert!(IdempotencyKey::parse(text).is_err(), "{text:?}");
        }
    }
}
