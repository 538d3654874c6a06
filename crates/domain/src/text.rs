//! Text: what is refused, what searches compare, and what passwords become.

use icu_casemap::{CaseMapper, CaseMapperBorrowed};
use icu_normalizer::{ComposingNormalizer, ComposingNormalizerBorrowed, DecomposingNormalizer, DecomposingNormalizerBorrowed};
use icu_properties::{CodePointSetData, CodePointSetDataBorrowed, props::DefaultIgnorableCodePoint};

const NFC: ComposingNormalizerBorrowed<'static> = ComposingNormalizer::new_nfc();
const NFKC: ComposingNormalizerBorrowed<'static> = ComposingNormalizer::new_nfkc();
const NFD: DecomposingNormalizerBorrowed<'static> = DecomposingNormalizer::new_nfd();
const CASE: CaseMapperBorrowed<'static> = CaseMapper::new();
const IGNORABLE: CodePointSetDataBorrowed<'static> = CodePointSetData::new::<DefaultIgnorableCodePoint>();

/// What searches compare instead of the text: NFKC_Casefold (Unicode, section 3.13, R5), without the dot that the fold of `İ` leaves
/// over its `i`. Texts that differ in case, composition, width or invisible characters have the same key.
#[must_use]
pub fn search_key(text: &str) -> String {
    // Most names are ASCII, for which all of this is lower case.
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let visible: String = text.chars().filter(|c| !IGNORABLE.contains(*c)).collect();
    // The definition of compatibility caseless matching (D146): folding may undo a normalisation, and the other way round.
    let folded = NFKC.normalize(&CASE.fold_string(&NFD.normalize(&visible))).into_owned();
    let folded = NFKC.normalize(&CASE.fold_string(&folded)).into_owned();
    folded.replace("i\u{307}", "i")
}

/// A password as it is hashed: RFC 8265's OpaqueString profile, in which every space is U+0020 and characters are composed.
#[must_use]
pub fn opaque_string(password: &str) -> String {
    if password.is_ascii() {
        return password.to_owned();
    }
    let spaced: String = password.chars().map(|c| if is_space(c) { ' ' } else { c }).collect();
    NFC.normalize(&spaced).into_owned()
}

/// The general category Zs.
const fn is_space(c: char) -> bool {
    matches!(c, '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}')
}

/// Whether the character changes the direction of what follows it, so that a name can be made to look like another one.
const fn is_bidirectional_control(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether nothing is displayed for the character: white space, what fonts ignore, annotation marks, the empty Braille pattern.
fn is_invisible(c: char) -> bool {
    c.is_whitespace() || IGNORABLE.contains(c) || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{2800}')
}

/// Why a text was rejected, phrased to follow the name of its field.
pub type TextProblem = &'static str;

/// Trims the text. Fails if nothing of it is visible, if it contains control characters, also such that change the direction of text,
/// or if it exceeds `max` characters with the surrounding white space counted.
pub(crate) fn printable(text: &str, max: usize, too_long: TextProblem) -> Result<String, TextProblem> {
    if text.chars().nth(max).is_some() {
        return Err(too_long);
    }
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters");
    }
    if text.chars().any(is_bidirectional_control) {
        return Err("must not contain characters that override the direction of text");
    }
    match text.trim() {
        "" => Err("must not be empty"),
        text if text.chars().all(is_invisible) => Err("must contain a visible character"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_look_alike_have_the_same_key() {
        for (text, key) in [
            ("Report 2026.PDF", "report 2026.pdf"),
            ("Größe", "grösse"),
            ("Gro\u{308}ße", "grösse"),
            ("STRASSE", "strasse"),
            ("Straße", "strasse"),
            ("İstanbul", "istanbul"),
            ("I\u{307}stanbul", "istanbul"),
            ("ISTANBUL", "istanbul"),
            ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
            ("ﬁle", "file"),
            ("①", "1"),
            ("ｶﾞ", "ガ"),
            ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
            ("σίσυφος", "σίσυφοσ"),
            ("soft\u{ad}hyphen\u{200b}\u{feff}", "softhyphen"),
            ("\u{202e}gpj.exe", "gpj.exe"),
            ("e\u{323}\u{302}", "ệ"),
            ("\u{1fb3}", "αι"),
            ("α\u{345}", "αι"),
            ("", ""),
        ] {
            assert_eq!(search_key(text), key, "{text:?}");
        }
    }

    #[test]
    fn a_key_is_its_own_key_whatever_the_form_of_the_text() {
        for c in (0..=0x10_ffff_u32).filter_map(char::from_u32) {
            let text = format!("a{c}b");
            let key = search_key(&text);
            assert_eq!(search_key(&key), key, "U+{:04X}", u32::from(c));
            assert_eq!(search_key(&NFD.normalize(&text)), key, "decomposed U+{:04X}", u32::from(c));
            assert_eq!(search_key(&NFC.normalize(&text)), key, "composed U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn passwords_are_composed_and_their_spaces_are_plain() {
        assert_eq!(opaque_string("pa\u{308}sswort1"), "pässwort1");
        assert_eq!(opaque_string("correct\u{a0}horse\u{3000}1"), "correct horse 1");
        // Neither case nor width is changed, and nothing is trimmed.
        for same in ["PässWort1 ", " ｐassword1", "\u{200b}x", "ſ"] {
            assert_eq!(opaque_string(same), same);
        }
    }

    #[test]
    fn names_that_deceive_are_refused() {
        let parse = |text: &str| printable(text, 10, "too long");
        for refused in [
            "\u{202e}gpj.exe",
            "a\u{2066}b",
            "\u{200b}",
            "\u{feff}\u{200d}",
            "\u{3164}",
            "\u{2800} ",
            "\u{ad}",
            "\u{e0041}",
            "",
            " ",
            "a\nb",
        ] {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
        // Joiners and marks of direction belong to the spelling of some languages, and of emoji.
        for accepted in ["a\u{200b}b", "نامه\u{200c}ای", "\u{200f}שלום", "👩\u{200d}💻", "❤\u{fe0f}", "日本"] {
            assert_eq!(parse(accepted).as_deref(), Ok(accepted));
        }
    }
}
