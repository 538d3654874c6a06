//! The spool receives uploads of any size with bounded memory, and hashes them on the way.

mod directory;
#[cfg(test)]
mod tests;
mod writer;

use std::{io, mem, path::Path, sync::Arc};

use bytes::Bytes;
use domain::{ContentHash, Error, Result};
use futures_util::{FutureExt, future::BoxFuture};

pub(crate) use self::writer::Hasher;
use self::{
    directory::{Directory, TemporaryFile},
    writer::Writer,
};
use crate::{
    documents::detection::{HEAD, detect},
    storage::{blocking, failed},
};

/// The largest content that stays in memory. It is hashed on the async thread, which takes about 150 µs, little more than the transfer
/// to another thread and back.
const MAX_IN_MEMORY: usize = 64 * 1024;

/// The size of the chunks in which larger content is hashed and written. An upload holds at most two: one is filled while the other
/// is written.
const CHUNK_SIZE: usize = 256 * 1024;

/// The number of bytes after which write-back to the disk begins, so that little is left to wait for at the end.
const WRITE_BACK_AFTER: usize = 8 * 1024 * 1024;

/// Receives uploads.
///
/// Large content is written to temporary files in a subdirectory that belongs to this `Spool` alone and that it holds an `flock` on.
/// The lock ends with the process, however it ends. It distinguishes what a crash left from what is in use without process ids, also
/// for processes in other containers on the same directory.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: Arc<Directory>,
}

impl Spool {
    /// Opens the spool in this directory, creates the directory when it is missing, and removes files left by crashed processes.
    /// Blocks: meant for the start of a process.
    ///
    /// The directory must be on the file system of the objects of a [`LocalStorage`](crate::LocalStorage).
    pub fn new(directory: &Path) -> Result<Self> {
        let directory = Directory::claim(directory).map_err(failed)?;
        Ok(Self { directory: Arc::new(directory) })
    }

    /// Begins to receive content of at most `limit` bytes.
    #[must_use]
    pub fn begin(&self, limit: u64) -> Upload {
        Upload { limit, receiving: Some(Receiving::new(self.directory.clone())) }
    }
}

/// Content that is being received. Holds less than 1 MiB of it in memory, and no thread while it waits for the sender.
///
/// Dropping it, or one of its futures, at any time discards the content and removes its file.
pub struct Upload {
    limit: u64,
    /// Nothing once the content is discarded: after an error, or after a `write` whose future was dropped.
    receiving: Option<Receiving>,
}

impl Upload {
    /// Accepts the next bytes; waits while earlier ones are being written.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with the first byte past the limit, [`Error::Unavailable`] when the disk fails or is full. Both discard the
    /// content.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let receiving = self.receiving.take().ok_or_else(discarded)?;
        if receiving.size + bytes.len() as u64 > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        self.receiving = Some(receiving.write(&bytes).await?);
        Ok(())
    }

    /// Ends the content.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the disk fails or is full.
    pub async fn finish(self) -> Result<SpooledContent> {
        self.receiving.ok_or_else(discarded)?.finish().await
    }
}

fn discarded() -> Error {
    Error::internal("the upload was discarded before")
}

/// Completely received content. Its temporary file, if any, is removed with the last clone.
#[derive(Clone, Debug)]
pub struct SpooledContent {
    /// The size in bytes.
    pub size: u64,
    /// Both hashes.
    pub hash: ContentHash,
    /// The media type by its first bytes.
    pub detected_mime_type: &'static str,
    location: Location,
}

#[derive(Clone, Debug)]
enum Location {
    Memory(Bytes, Arc<Directory>),
    File(Arc<TemporaryFile>),
}

impl SpooledContent {
    /// The content, when it is in memory.
    pub(crate) fn in_memory(&self) -> Option<&Bytes> {
        match &self.location {
            Location::Memory(bytes, _) => Some(bytes),
            Location::File(_) => None,
        }
    }

    /// Fills `bytes` from position `start`; the range must lie within the content. Blocks.
    pub(crate) fn read(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        match &self.location {
            Location::Memory(content, _) => {
                let start = usize::try_from(start).map_err(io::Error::other)?;
                bytes.copy_from_slice(&content[start..start + bytes.len()]);
                Ok(())
            }
            Location::File(file) => file.read_exact_at(bytes, start),
        }
    }

    /// The content in a file that survives a power failure. Blocks.
    pub(crate) fn synced_file(&self) -> io::Result<Arc<TemporaryFile>> {
        let file = match &self.location {
            Location::File(file) => file.clone(),
            Location::Memory(bytes, directory) => {
                let file = TemporaryFile::create(directory.clone())?;
                file.write_all(bytes)?;
                Arc::new(file)
            }
        };
        if self.size > WRITE_BACK_AFTER as u64 {
            file.write_back()?
        } else {
            file.sync()?
        }
        Ok(file)
    }
}

struct Receiving {
    directory: Arc<Directory>,
    size: u64,
    buffer: Vec<u8>,
    /// Nothing while the buffer holds everything.
    detected_mime_type: Option<&'static str>,
    /// The write of the last chunk, already in progress. Nothing while the buffer holds everything.
    writing: Option<BoxFuture<'static, Result<Writer>>>,
    /// The last write-back, already in progress.
    write_back: Option<BoxFuture<'static, Result<()>>>,
}

impl Receiving {
    fn new(directory: Arc<Directory>) -> Self {
        Self { directory, size: 0, buffer: Vec::new(), detected_mime_type: None, writing: None, write_back: None }
    }

    async fn write(mut self, mut bytes: &[u8]) -> Result<Self> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let (fitting, rest) = bytes.split_at(bytes.len().min(CHUNK_SIZE - self.buffer.len()));
            self.buffer.extend_from_slice(fitting);
            bytes = rest;
            if self.buffer.len() == CHUNK_SIZE {
                self.write_buffer().await?;
            }
        }
        Ok(self)
    }

    async fn finish(mut self) -> Result<SpooledContent> {
        if self.writing.is_none() && self.buffer.len() <= MAX_IN_MEMORY {
            return Ok(self.finish_in_memory());
        }
        self.write_buffer().await?;
        let writer = self.writing.ok_or_else(discarded)?.await?;
        if let Some(write_back) = self.write_back {
            write_back.await?;
        }
        let detected_mime_type = self.detected_mime_type.unwrap_or_default();
        Ok(SpooledContent { size: self.size, hash: writer.hasher.finish(), detected_mime_type, location: Location::File(writer.file) })
    }

    fn finish_in_memory(self) -> SpooledContent {
        let mut hasher = Hasher::default();
        hasher.update(&self.buffer);
        SpooledContent {
            size: self.size,
            hash: hasher.finish(),
            detected_mime_type: detect_head(&self.buffer),
            location: Location::Memory(self.buffer.into(), self.directory),
        }
    }

    /// Starts to write the buffer once the previous chunk is written. No thread is held between two chunks.
    async fn write_buffer(&mut self) -> Result<()> {
        let mut writer = match self.writing.take() {
            Some(writing) => writing.await?,
            None => {
                self.detected_mime_type = Some(detect_head(&self.buffer));
                let directory = self.directory.clone();
                blocking(move || Writer::create(directory)).await?
            }
        };
        if writer.unsynced >= WRITE_BACK_AFTER {
            self.start_write_back(&mut writer).await?;
        }
        let chunk = mem::replace(&mut self.buffer, mem::take(&mut writer.spare));
        self.writing = Some(writer.write(chunk).boxed());
        Ok(())
    }

    /// Starts a write-back after the previous one. With one at a time, the backlog of the disk is bounded and the disk never idles.
    async fn start_write_back(&mut self, writer: &mut Writer) -> Result<()> {
        if let Some(previous) = self.write_back.take() {
            previous.await?;
        }
        writer.unsynced = 0;
        let file = writer.file.clone();
        self.write_back = Some(blocking(move || file.write_back()).boxed());
        Ok(())
    }
}

/// The media type of content that begins with these bytes.
fn detect_head(bytes: &[u8]) -> &'static str {
    detect(&bytes[..bytes.len().min(HEAD)])
}
