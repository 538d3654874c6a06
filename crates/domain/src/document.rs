//! Documents: what users upload, name and find again.

use crate::{
    DocumentId, File, Timestamp, UserId,
    text::{TextProblem, printable, text_type},
};

/// A document with the file that stores its content. Its owner never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its identifier.
    pub id: DocumentId,
    /// Its name, as shown to users.
    pub filename: String,
    /// Its media type, as declared by the client.
    pub mime_type: String,
    /// Its content.
    pub file: File,
    /// The number of its current version, counted from 1.
    pub version: u64,
    /// When its current content was set.
    pub content_at: Timestamp,
    /// Who set its current content.
    pub content_by: Option<UserId>,
    /// Its owner, a user of the main database.
    pub user_id: UserId,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who uploaded it.
    pub created_by: Option<UserId>,
    /// When it was moved to the trash, if it is there.
    pub deleted_at: Option<Timestamp>,
    /// Who moved it to the trash.
    pub deleted_by: Option<UserId>,
}

impl Document {
    /// Its entity tag (RFC 9110, section 8.8.3), quotes included. Every change yields a new one.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{}-{:x}\"", self.version, self.updated_at.micros())
    }
}

/// A current or former version of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentVersion {
    /// Its number, from 1.
    pub version: u64,
    /// Its media type.
    pub mime_type: String,
    /// The content.
    pub file: File,
    /// When the document received this content.
    pub created_at: Timestamp,
    /// Who set this content.
    pub created_by: Option<UserId>,
}

/// A filter over documents. A document must meet every condition that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentFilter {
    /// A substring of the name; their [search keys](crate::search_key) are compared.
    pub filename: Option<String>,
    /// The owner.
    pub user_id: Option<UserId>,
    /// The exact media type.
    pub mime_type: Option<MimeType>,
}

impl DocumentFilter {
    /// Parses a substring of a name. No character is a wildcard, and the empty string matches every name.
    pub fn parse_filename(text: &str) -> Result<String, TextProblem> {
        if text.chars().nth(255).is_some() {
            return Err("must be at most 255 characters");
        }
        if text.chars().any(char::is_control) {
            return Err("must not contain control characters");
        }
        Ok(text.to_owned())
    }
}

text_type! {
    /// A document's name: trimmed, 1 to 255 characters, no `/`, `\`, NUL or other control characters, none that override the
    /// direction of text, not only invisible ones, and not `.` or `..`.
    Filename
}

impl Filename {
    /// A stored name, which older rules may have accepted.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Parses a name.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        let name = printable(text, 255, "must be at most 255 characters")?;
        if name.contains(['/', '\\']) {
            return Err("must not contain / or \\");
        }
        if name == "." || name == ".." {
            return Err("must not be . or ..");
        }
        Ok(Self(name))
    }
}

text_type! {
    /// A media type: `type/subtype` in lower case, at most 100 characters, no parameters (RFC 6838).
    MimeType
}

impl MimeType {
    /// The media type of content of unknown type.
    #[must_use]
    pub fn octet_stream() -> Self {
        Self("application/octet-stream".to_owned())
    }

    /// Parses a media type.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        let text = text.trim();
        if text.len() > 100 {
            return Err("must be at most 100 characters");
        }
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
        };
        match text.split_once('/') {
            Some((kind, subtype)) if is_name(kind) && is_name(subtype) => Ok(Self(text.to_ascii_lowercase())),
            _ => Err("must be a media type like application/pdf"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_path_separators_are_rejected() {
        assert_eq!(Filename::parse(" Übersicht 2026.pdf ").unwrap().as_str(), "Übersicht 2026.pdf");
        for text in ["", "  ", "a/b", "..\\b", "a\0b", "a\nb", ".", "..", &"x".repeat(256)] {
            assert!(Filename::parse(text).is_err(), "{text:?}");
        }
        assert!(Filename::parse(&"ü".repeat(255)).is_ok());
    }

    #[test]
    fn media_types_are_lowercased_and_validated() {
        assert_eq!(MimeType::parse("Image/SVG+XML").unwrap().as_str(), "image/svg+xml");
        for text in ["", "text", "text/", "/plain", "text/plain; charset=utf-8", "te xt/plain", "text/plain/x"] {
            assert!(MimeType::parse(text).is_err(), "{text:?}");
        }
    }
}
