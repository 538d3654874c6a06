//! Idempotent requests (draft-ietf-httpapi-idempotency-key-header): executed once, however often the client sends them.

use uuid::Uuid;

use crate::text::TextProblem;

/// A client's key for a request that is to be executed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Parses the header's value: 1 to 255 visible ASCII characters, in quotes as the draft requires or without them as most
    /// clients send it.
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

/// An earlier request with the same idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastRequest {
    /// The SHA-256 of the request.
    pub fingerprint: [u8; 32],
    /// The resource that it created.
    pub resource_id: Uuid,
    /// Its response; absent while the request is in progress.
    pub answer: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_accepted_with_and_without_quotes() {
        assert_eq!(IdempotencyKey::parse("\"8e03978e-40d5\"").unwrap(), IdempotencyKey::parse(" 8e03978e-40d5 ").unwrap());
        for text in ["", "\"\"", "a b", "ä", "a\"b", "\"a", "a\\b", &"x".repeat(256)] {
            assert!(IdempotencyKey::parse(text).is_err(), "{text:?}");
        }
    }
}
