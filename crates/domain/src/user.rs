//! Users.

use std::fmt;

use crate::{
    Timestamp, UserId,
    text::{TextProblem, printable, text_type},
};

/// A person with an account. Contains neither a password nor a password hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its identifier.
    pub id: UserId,
    /// First name.
    pub first_name: String,
    /// Last name.
    pub last_name: String,
    /// E-mail address, trimmed and lowercase; unique.
    pub email: String,
    /// Whether the user may log in.
    pub is_active: bool,
    /// When the account was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who created it; absent after self-registration.
    pub created_by: Option<UserId>,
}

text_type! {
    /// An e-mail address: trimmed, lowercase, at most 255 characters. It has the form `local@domain` that WHATWG's HTML standard
    /// requires of an e-mail field, with a dot in the domain.
    Email
}

impl Email {
    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        let address = text.trim();
        if address.is_empty() {
            return Err("must not be empty");
        }
        if address.len() > 255 {
            return Err("must be at most 255 characters");
        }
        let (local, domain) = address.split_once('@').ok_or("must be an e-mail address")?;
        if !is_local_part(local) || !is_domain(domain) {
            return Err("must be an e-mail address");
        }
        Ok(Self(address.to_ascii_lowercase()))
    }
}

fn is_local_part(local: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".!#$%&'*+/=?^_`{|}~-".contains(&byte);
    (1..=64).contains(&local.len()) && local.bytes().all(allowed)
}

fn is_domain(domain: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.contains('.') && domain.split('.').all(is_label)
}

text_type! {
    /// A first or last name: trimmed, 1 to 100 characters, no control characters.
    PersonName
}

impl PersonName {
    /// Parses a name.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        printable(text, 100, "must be at most 100 characters").map(Self)
    }
}

/// A newly chosen password: 8 to 256 characters with at least one letter and one digit. Its `Debug` output is redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct NewPassword(String);

impl NewPassword {
    /// The maximum size of a password in bytes: 256 characters of four bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Validates a password.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        if text.len() > Self::MAX_BYTES || text.chars().nth(256).is_some() {
            return Err("must be at most 256 characters");
        }
        if text.chars().count() < 8 {
            return Err("must be at least 8 characters");
        }
        if !text.chars().any(char::is_alphabetic) {
            return Err("must contain at least one letter");
        }
        if !text.chars().any(|c| c.is_ascii_digit()) {
            return Err("must contain at least one digit");
        }
        Ok(Self(text.to_owned()))
    }

    /// The password itself, for hashing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NewPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewPassword(…)")
    }
}

/// A stored password hash in PHC or modular crypt format. Its `Debug` output is redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Wraps a hash read from storage.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The hash itself, for storage and verification.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_trimmed_and_lowercased() {
        assert_eq!(Email::parse("  Alice@Example.COM ").unwrap().as_str(), "alice@example.com");
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        for text in ["", "alice", "@example.com", "alice@", "a@b", "a b@example.com", "a@-b.com", "a@b..com", "a@b@c.de", "ä@example.com"]
        {
            assert!(Email::parse(text).is_err(), "{text}");
        }
        assert!(Email::parse(&format!("{}@example.com", "a".repeat(65))).is_err());
    }

    #[test]
    fn passwords_need_a_letter_a_digit_and_a_minimum_length() {
        assert!(NewPassword::parse("secret12").is_ok());
        assert!(NewPassword::parse("pässwört1").is_ok());
        for text in ["secret1", "12345678", "abcdefgh", ""] {
            assert!(NewPassword::parse(text).is_err(), "{text}");
        }
        assert!(NewPassword::parse(&format!("a1{}", "x".repeat(254))).is_ok());
        assert!(NewPassword::parse(&format!("a1{}", "x".repeat(255))).is_err());
        assert_eq!(format!("{:?}", NewPassword::parse("secret12").unwrap()), "NewPassword(…)");
    }
}
