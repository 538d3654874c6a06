//! Cuts a body into parts.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use memchr::memmem::Finder;

use crate::{Error, Head};

/// The maximum number of bytes before the first boundary.
pub const MAX_PREAMBLE_BYTES: usize = 1024;
/// The maximum size of a part's header section in bytes, with the rest of the boundary's line before it.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The maximum number of parts.
pub const MAX_PARTS: usize = 1000;

/// A form whose parts are read one after the other.
pub struct FormData<S> {
    body: S,
    /// Received, but not used yet.
    buffer: Bytes,
    /// `CRLF "--" boundary`.
    delimiter: Finder<'static>,
    position: Position,
    parts: usize,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// The preamble, or the content of a part.
    Content,
    /// The rest of a delimiter's line.
    Delimited,
    /// The epilogue.
    End,
}

impl<E, S: Stream<Item = Result<Bytes, E>> + Unpin> FormData<S> {
    /// Reads the form from a body with this boundary.
    pub fn new(body: S, boundary: &str) -> Self {
        Self {
            body,
            // The first delimiter lacks the line end before it.
            buffer: Bytes::from_static(b"\r\n"),
            delimiter: Finder::new(&format!("\r\n--{boundary}")).into_owned(),
            position: Position::Content,
            parts: 0,
        }
    }

    /// The next part, or `None` after the last one. Skips what is left of the previous part.
    ///
    /// # Errors
    /// [`Error::Body`]; [`Error::Malformed`] if the form is invalid, incomplete or exceeds a limit.
    pub async fn next_part(&mut self) -> Result<Option<Part<'_, S>>, Error<E>> {
        let mut skipped = 0;
        while let Some(content) = self.next_content().await? {
            skipped += content.len();
            // The line end that stands for the start of the body is not a part of the preamble.
            if self.parts == 0 && skipped > MAX_PREAMBLE_BYTES + 2 {
                return Err(Error::Malformed("the first boundary is missing"));
            }
        }
        if self.position == Position::End {
            return Ok(None);
        }
        let Some(head) = self.read_head().await? else {
            self.position = Position::End;
            return Ok(None);
        };
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(Error::Malformed("it has too many parts"));
        }
        self.position = Position::Content;
        Ok(Some(Part { head: Head::parse(&head).map_err(Error::Malformed)?, form: self }))
    }

    /// The next bytes before the next delimiter; `None` at the delimiter, which is consumed.
    async fn next_content(&mut self) -> Result<Option<Bytes>, Error<E>> {
        while self.position == Position::Content {
            if let Some(found) = self.delimiter.find(&self.buffer) {
                let content = self.buffer.split_to(found);
                let _delimiter = self.buffer.split_to(self.delimiter.needle().len());
                self.position = Position::Delimited;
                return Ok(Some(content).filter(|content| !content.is_empty()));
            }
            let begun = self.begun_delimiter();
            let content = self.buffer.split_to(self.buffer.len() - begun);
            if !content.is_empty() {
                return Ok(Some(content));
            }
            let more = self.receive().await?;
            if let Some(content) = self.continue_delimiter(more) {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    /// The number of bytes at the end of the buffer that may begin a delimiter.
    fn begun_delimiter(&self) -> usize {
        // Only the first byte of a delimiter is a carriage return.
        let Some(start) = memchr::memrchr(b'\r', &self.buffer) else { return 0 };
        let begun = &self.buffer[start..];
        if self.delimiter.needle().starts_with(begun) { begun.len() } else { 0 }
    }

    /// Appends to a buffer that holds at most the beginning of a delimiter, without copying what is received. Returns the beginning if
    /// it turns out to be content.
    fn continue_delimiter(&mut self, mut more: Bytes) -> Option<Bytes> {
        if self.buffer.is_empty() {
            self.buffer = more;
            return None;
        }
        let needle = self.delimiter.needle();
        let missing = needle.len() - self.buffer.len();
        let next = &more[..missing.min(more.len())];
        if !needle[self.buffer.len()..].starts_with(next) {
            return Some(std::mem::replace(&mut self.buffer, more));
        }
        let mut begun = BytesMut::from(&self.buffer[..]);
        begun.extend_from_slice(&more.split_to(next.len()));
        if begun.len() == needle.len() {
            self.buffer = more;
            self.position = Position::Delimited;
        } else {
            self.buffer = begun.freeze();
        }
        None
    }

    /// The header section after a delimiter, with the line end before it; `None` after the last delimiter.
    async fn read_head(&mut self) -> Result<Option<Vec<u8>>, Error<E>> {
        let mut head = Vec::new();
        loop {
            // The end may have begun in what was read before.
            let searched = head.len().saturating_sub(3);
            let taken = self.buffer.len().min(MAX_HEAD_BYTES + 1 - head.len());
            head.extend_from_slice(&self.buffer[..taken]);
            if head.starts_with(b"--") {
                return Ok(None);
            }
            if let Some(found) = memchr::memmem::find(&head[searched..], b"\r\n\r\n") {
                let length = searched + found + 4;
                // The head ends in what was just taken.
                let _head = self.buffer.split_to(taken - (head.len() - length));
                head.truncate(length);
                return Ok(Some(head));
            }
            if head.len() > MAX_HEAD_BYTES {
                return Err(Error::Malformed("the header section of a part is too large"));
            }
            self.buffer = self.receive().await?;
        }
    }

    /// The next bytes of the body.
    async fn receive(&mut self) -> Result<Bytes, Error<E>> {
        match self.body.next().await {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(Error::Body(error)),
            None => Err(Error::Malformed("it ends before its last boundary")),
        }
    }
}

/// A part, whose content is read in pieces.
pub struct Part<'a, S> {
    head: Head,
    form: &'a mut FormData<S>,
}

impl<E, S: Stream<Item = Result<Bytes, E>> + Unpin> Part<'_, S> {
    /// Its name, file name and type.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The next bytes of its content, never empty; `None` at its end.
    ///
    /// # Errors
    /// [`Error::Body`]; [`Error::Malformed`] if the body ends before the content.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error<E>> {
        self.form.next_content().await
    }
}

#[cfg(test)]
mod tests;
