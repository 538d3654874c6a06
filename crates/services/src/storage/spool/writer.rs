//! Hashes content and writes it to a temporary file, on threads that may block.

use std::{io, sync::Arc};

use domain::{ContentHash, Result};
use futures_util::future::try_join;
use md5::{Digest, Md5};
use sha2::Sha256;

use super::{
    CHUNK_SIZE,
    directory::{Directory, TemporaryFile},
};
use crate::storage::blocking;

/// Hashes and writes the chunks of one upload.
pub(super) struct Writer {
    pub(super) file: Arc<TemporaryFile>,
    pub(super) hasher: Hasher,
    /// Bytes since the last write-back.
    pub(super) unsynced: usize,
    /// An empty buffer, to be filled next.
    pub(super) spare: Vec<u8>,
}

impl Writer {
    pub(super) fn create(directory: Arc<Directory>) -> io::Result<Self> {
        let file = Arc::new(TemporaryFile::create(directory)?);
        Ok(Self { file, hasher: Hasher::default(), unsynced: 0, spare: Vec::with_capacity(CHUNK_SIZE) })
    }

    /// Starts at once to hash and write a chunk. MD5 takes longer than SHA-256 and writing together, so it runs on a thread of its own.
    pub(super) fn write(self, chunk: Vec<u8>) -> impl Future<Output = Result<Self>> + Send + 'static {
        let Self { file, hasher: Hasher { mut md5, mut sha256 }, unsynced, .. } = self;
        let size = chunk.len();
        let chunk = Arc::new(chunk);
        let (for_md5, for_sha256, target) = (Arc::clone(&chunk), Arc::clone(&chunk), Arc::clone(&file));
        let md5 = blocking(move || {
            md5.update(&*for_md5);
            Ok(md5)
        });
        let sha256 = blocking(move || {
            sha256.update(&*for_sha256);
            target.write_all(&for_sha256)?;
            Ok(sha256)
        });
        async move {
            let (md5, sha256) = try_join(md5, sha256).await?;
            // Both threads have released the chunk.
            let mut spare = Arc::try_unwrap(chunk).unwrap_or_default();
            spare.clear();
            Ok(Self { file, hasher: Hasher { md5, sha256 }, unsynced: unsynced + size, spare })
        }
    }
}

/// Computes both hashes of content.
#[derive(Default)]
pub(crate) struct Hasher {
    md5: Md5,
    sha256: Sha256,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
    }

    pub(crate) fn finish(self) -> ContentHash {
        ContentHash { md5: self.md5.finalize().into(), sha256: self.sha256.finalize().into() }
    }
}
