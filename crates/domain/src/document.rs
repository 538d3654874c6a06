//! Documents: what people upload, name and find again.

use crate::{
    DocumentId, File, Timestamp, UserId,
    text::{TextProblem, printable, text_type},
};

/// A document with the file that holds its content. Its owner never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its identifier.
    pub id: DocumentId,
    /// Its name, as people see it.
    pub filename: String,
    /// Its media type, as its owner says.
    pub mime_type: String,
    /// Its content.
    pub file: File,
    /// Which of its contents this is: the first is 1, and each that follows the next number.
    pub version: u64,
    /// Since when it has this content, and by whom.
    pub content_at: Timestamp,
    /// Who gave it this content.
    pub content_by: Option<UserId>,
    /// Its owner, a user of the main database.
    pub user_id: UserId,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who uploaded it.
    pub created_by: Option<UserId>,
    /// When it was put into the trash, if it is there.
    pub deleted_at: Option<Timestamp>,
    /// Who put it there.
    pub deleted_by: Option<UserId>,
}

impl Document {
    /// Its entity tag (RFC 9110, section 8.8.3), with the quotes: another one after every change.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{}-{:x}\"", self.version, self.updated_at.micros())
    }
}

/// A content that a document has or had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentVersion {
    /// Its number, from 1.
    pub version: u64,
    /// Its media type.
    pub mime_type: String,
    /// The content.
    pub file: File,
    /// Since when the document had it.
    pub created_at: Timestamp,
    /// Who gave the document this content.
    pub created_by: Option<UserId>,
}

/// Which documents a list shows: those that meet every condition given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentFilter {
    /// A part of the name, in any case.
    pub filename: Option<String>,
    /// The owner.
    pub user_id: Option<UserId>,
    /// The media type, exactly.
    pub mime_type: Option<MimeType>,
}

impl DocumentFilter {
    /// Parses a part of a name; nothing of it is special. An empty one is in every name.
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
    /// A document's name: trimmed, 1 to 255 characters, no `/`, `\`, NUL or other control characters, and not `.` or `..`.
    Filename
}

impl Filename {
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
    /// What is taken for content of unknown type.
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
    fn names_with_path_parts_are_refused() {
        assert_eq!(Filename::parse(" Übersicht 2026.pdf ").unwrap().as_str(), "Übersicht 2026.pdf");
        for text in ["", "  ", "a/b", "..\\b", "a\0b", "a\nb", ".", "..", &"x".repeat(256)] {
            assert!(Filename::parse(text).is_err(), "{text:?}");
        }
        assert!(Filename::parse(&"ü".repeat(255)).is_ok());
    }

    #[test]
    fn media_types_are_lowered_and_checked() {
        assert_eq!(MimeType::parse("Image/SVG+XML").unwrap().as_str(), "image/svg+xml");
        for text in ["", "text", "text/", "/plain", "text/plain; charset=utf-8", "te xt/plain", "text/plain/x"] {
            assert!(MimeType::parse(text).is_err(), "{text:?}");
        }
    }
}
