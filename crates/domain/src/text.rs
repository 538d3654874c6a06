//! Shared validation rules of text.

/// Why a text was rejected, phrased to follow the name of its field.
pub type TextProblem = &'static str;

/// Trims the text. Fails if it is empty, contains control characters, or exceeds `max` characters with the surrounding whitespace
/// counted.
pub(crate) fn printable(text: &str, max: usize, too_long: TextProblem) -> Result<String, TextProblem> {
    if text.chars().nth(max).is_some() {
        return Err(too_long);
    }
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters");
    }
    match text.trim() {
        "" => Err("must not be empty"),
        text => Ok(text.to_owned()),
    }
}

/// Declares a text type whose only constructor is its `parse`.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text, owned.
            #[must_use]
            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use text_type;
