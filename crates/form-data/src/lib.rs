//! Reads `multipart/form-data` (RFC 7578) as browsers, HTTP libraries and mobile clients write it.
//!
//! Contents stream through and are never copied. Everything else is bounded: the preamble by [`MAX_PREAMBLE_BYTES`], the header
//! section of a part by [`MAX_HEAD_BYTES`], the number of parts by [`MAX_PARTS`]. The length of contents is for the caller to limit.

mod head;
mod parameters;
mod reader;

pub use head::Head;
pub use parameters::boundary;
pub use reader::{FormData, MAX_HEAD_BYTES, MAX_PARTS, MAX_PREAMBLE_BYTES, Part};

/// Why a form can't be read. `E` is the error of the body.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The body failed.
    #[error("the body can't be read")]
    Body(#[source] E),
    /// The body is not a valid form; says why.
    #[error("{0}")]
    Malformed(&'static str),
}

/// The reason why bytes are not a valid form.
pub type Problem = &'static str;
