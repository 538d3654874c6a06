//! The rules that names have in common.

/// Why a text was refused, in words that follow the name of its field.
pub type TextProblem = &'static str;

/// The trimmed text, when it is not empty, has at most `max` characters with the blanks around it, and no control characters.
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

/// Declares a text type that can only be made by its `parse`.
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
