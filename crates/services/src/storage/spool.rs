//! The spool: takes in uploads of any size with bounded memory and hashes them on the way.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    mem,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use domain::{ContentHash, Error, Result, random_bytes};
use futures_util::{
    FutureExt,
    future::{BoxFuture, try_join},
};
use md5::{Digest, Md5};
use sha2::Sha256;

use crate::{
    documents::detection::{HEAD, detect},
    storage::{blocking, failed},
};

/// Content up to this many bytes stays in memory and is hashed on the async thread: that takes about 150 µs, little more
/// than handing it to another thread and back.
const IN_MEMORY: usize = 64 * 1024;

/// Larger content goes to hashing and disk in pieces of this many bytes. An upload holds two of them at most: one is
/// being filled while the other is being written.
const PIECE: usize = 256 * 1024;

/// After this many bytes the disk is told to begin writing, so that little is left to wait for at the end.
const WRITE_BACK: usize = 8 * 1024 * 1024;

/// Where uploads are received.
///
/// Large content lies in temporary files, in a subdirectory that belongs to this `Spool` alone and that it holds a
/// `flock` on. The lock ends with the process however it ends, so what a crash left is told from what is in use without
/// trusting process ids, also by processes in other containers on the same directory.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: Arc<Directory>,
}

impl Spool {
    /// Opens the spool in this directory, which is made when it is missing, and removes what crashed processes left there.
    /// Blocks; meant for the start of a process.
    ///
    /// The directory must be on the file system that holds the objects of a [`LocalStorage`](crate::LocalStorage).
    pub fn new(directory: &Path) -> Result<Self> {
        let directory = Directory::claim(directory).map_err(failed)?;
        Ok(Self { directory: Arc::new(directory) })
    }

    /// Begins to receive content of at most `limit` bytes.
    #[must_use]
    pub fn begin(&self, limit: u64) -> Upload {
        let receiving = Receiving {
            directory: self.directory.clone(),
            size: 0,
            buffer: Vec::new(),
            detected_mime_type: None,
            writing: None,
            write_back: None,
        };
        Upload { limit, receiving: Some(receiving) }
    }
}

/// Content that is being received. Holds less than 1 MiB of it in memory, and no thread while the sender is slow.
///
/// Dropping it, or a future of it, at any moment gives the content up and removes its file.
pub struct Upload {
    limit: u64,
    /// Nothing once the content was given up: after an error, or after a `write` whose future was dropped.
    receiving: Option<Receiving>,
}

impl Upload {
    /// Takes the next bytes; waits while those before them are being written.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with the first byte past the limit, [`Error::Unavailable`] when the disk fails or is full. The
    /// content is given up then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let receiving = self.receiving.take().ok_or_else(given_up)?;
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
        self.receiving.ok_or_else(given_up)?.finish().await
    }
}

fn given_up() -> Error {
    Error::internal("the upload was given up before")
}

/// Content that was received completely. Its temporary file, if it has one, is removed with the last clone.
#[derive(Clone, Debug)]
pub struct SpooledContent {
    /// Bytes.
    pub size: u64,
    /// Both hashes.
    pub hash: ContentHash,
    /// What it is by its first bytes.
    pub detected_mime_type: &'static str,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Bytes, Arc<Directory>),
    File(Arc<TemporaryFile>),
}

impl SpooledContent {
    /// The content, when it is in memory.
    pub(crate) fn in_memory(&self) -> Option<&Bytes> {
        match &self.place {
            Place::Memory(bytes, _) => Some(bytes),
            Place::File(_) => None,
        }
    }

    /// Fills `bytes` with what is at `start`; it must lie within the content. Blocks.
    pub(crate) fn read(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        match &self.place {
            Place::Memory(content, _) => {
                let start = usize::try_from(start).map_err(io::Error::other)?;
                bytes.copy_from_slice(&content[start..start + bytes.len()]);
                Ok(())
            }
            Place::File(file) => file.file.read_exact_at(bytes, start),
        }
    }

    /// The content in a file that survives a power failure. Blocks.
    pub(crate) fn synced_file(&self) -> io::Result<Arc<TemporaryFile>> {
        let file = match &self.place {
            Place::File(file) => file.clone(),
            Place::Memory(bytes, directory) => {
                let file = TemporaryFile::create(directory.clone())?;
                (&file.file).write_all(bytes)?;
                Arc::new(file)
            }
        };
        if self.size > WRITE_BACK as u64 {
            file.write_back()?;
        } else {
            file.file.sync_data()?;
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
    /// The writing of the last piece, already under way. Nothing while the buffer holds everything.
    writing: Option<BoxFuture<'static, Result<Writer>>>,
    /// The last write-back, already under way.
    write_back: Option<BoxFuture<'static, Result<()>>>,
}

impl Receiving {
    async fn write(mut self, mut bytes: &[u8]) -> Result<Self> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let (fitting, rest) = bytes.split_at(bytes.len().min(PIECE - self.buffer.len()));
            self.buffer.extend_from_slice(fitting);
            bytes = rest;
            if self.buffer.len() == PIECE {
                self.hand_over().await?;
            }
        }
        Ok(self)
    }

    async fn finish(mut self) -> Result<SpooledContent> {
        if self.writing.is_none() && self.buffer.len() <= IN_MEMORY {
            let mut hasher = Hasher::default();
            hasher.update(&self.buffer);
            let detected_mime_type = detect_in(&self.buffer);
            let place = Place::Memory(self.buffer.into(), self.directory);
            return Ok(SpooledContent { size: self.size, hash: hasher.finish(), detected_mime_type, place });
        }
        self.hand_over().await?;
        let writer = self.writing.ok_or_else(given_up)?.await?;
        if let Some(write_back) = self.write_back {
            write_back.await?;
        }
        let detected_mime_type = self.detected_mime_type.unwrap_or_default();
        Ok(SpooledContent { size: self.size, hash: writer.hasher.finish(), detected_mime_type, place: Place::File(writer.file) })
    }

    /// Has the buffer written once the piece before it is. No thread is held between two pieces.
    async fn hand_over(&mut self) -> Result<()> {
        let mut writer = match self.writing.take() {
            Some(writing) => writing.await?,
            None => {
                self.detected_mime_type = Some(detect_in(&self.buffer));
                let directory = self.directory.clone();
                blocking(move || Writer::create(directory)).await?
            }
        };
        if writer.unsynced >= WRITE_BACK {
            // One write-back at a time: what the disk lags behind stays bounded, and it never runs out of work.
            if let Some(previous) = self.write_back.take() {
                previous.await?;
            }
            writer.unsynced = 0;
            let file = writer.file.clone();
            self.write_back = Some(blocking(move || file.write_back()).boxed());
        }
        let piece = mem::replace(&mut self.buffer, mem::take(&mut writer.spare));
        self.writing = Some(writer.write(piece).boxed());
        Ok(())
    }
}

/// What a content is that begins so.
fn detect_in(bytes: &[u8]) -> &'static str {
    detect(&bytes[..bytes.len().min(HEAD)])
}

/// Hashes and writes pieces, on whatever threads may block.
struct Writer {
    file: Arc<TemporaryFile>,
    hasher: Hasher,
    unsynced: usize,
    /// An empty buffer, to be filled next.
    spare: Vec<u8>,
}

impl Writer {
    fn create(directory: Arc<Directory>) -> io::Result<Self> {
        let file = Arc::new(TemporaryFile::create(directory)?);
        Ok(Self { file, hasher: Hasher::default(), unsynced: 0, spare: Vec::with_capacity(PIECE) })
    }

    /// Begins at once to hash and write a piece. MD5 takes longer than SHA-256 and writing together, so it gets a thread of its
    /// own.
    fn write(self, piece: Vec<u8>) -> impl Future<Output = Result<Self>> + Send + 'static {
        let Self { file, hasher: Hasher { mut md5, mut sha256 }, unsynced, .. } = self;
        let size = piece.len();
        let piece = Arc::new(piece);
        let (for_md5, for_sha256, target) = (Arc::clone(&piece), Arc::clone(&piece), Arc::clone(&file));
        let md5 = blocking(move || {
            md5.update(&*for_md5);
            Ok(md5)
        });
        let sha256 = blocking(move || {
            sha256.update(&*for_sha256);
            (&target.file).write_all(&for_sha256)?;
            Ok(sha256)
        });
        async move {
            let (md5, sha256) = try_join(md5, sha256).await?;
            // Both threads have let go of the piece.
            let mut spare = Arc::try_unwrap(piece).unwrap_or_default();
            spare.clear();
            Ok(Self { file, hasher: Hasher { md5, sha256 }, unsynced: unsynced + size, spare })
        }
    }
}

/// Both hashes of a content, on the way.
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

/// A file that loses its name in the spool when it is dropped; hard links to it stay.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    path: PathBuf,
    file: File,
    /// Keeps the directory for as long as it has files.
    _directory: Arc<Directory>,
}

impl TemporaryFile {
    fn create(directory: Arc<Directory>) -> io::Result<Self> {
        let path = directory.path.join(directory.files.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file, _directory: directory })
    }

    /// Makes what was written durable, and lets go of the kernel's copy of it: large contents would push out of memory what is
    /// read again and again, databases above all.
    fn write_back(&self) -> io::Result<()> {
        self.file.sync_data()?;
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // What can't be removed now is removed by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory of our own within the spool's, held by a lock.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    files: AtomicU64,
    _lock: File,
}

impl Directory {
    fn claim(spool: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(spool)?;
        // Nobody else may look for abandoned directories between the making and the locking of ours.
        let starting = File::open(spool)?;
        starting.lock()?;
        remove_abandoned(spool)?;
        let path = spool.join(format!("{PREFIX}{}", hex::encode(random_bytes::<8>())));
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        lock.lock()?;
        Ok(Self { path, files: AtomicU64::new(0), _lock: lock })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

const PREFIX: &str = "uploads-";

/// Removes the directories of processes that are no more.
fn remove_abandoned(spool: &Path) -> io::Result<()> {
    for entry in fs::read_dir(spool)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let removed = match File::open(entry.path()).map(|directory| directory.try_lock()) {
            Ok(Ok(())) => fs::remove_dir_all(entry.path()),
            Ok(Err(TryLockError::WouldBlock)) => Ok(()),
            Ok(Err(TryLockError::Error(error))) | Err(error) => Err(error),
        };
        match removed {
            // Its process has just ended in an orderly way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::poll;
    use proptest::{prelude::*, test_runner::TestRunner};
    use tempfile::TempDir;

    use super::*;

    fn spool() -> (TempDir, Spool) {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path()).unwrap();
        (directory, spool)
    }

    fn names(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// The files of all uploads.
    fn files(spool: &Spool) -> Vec<PathBuf> {
        names(&spool.directory.path)
    }

    /// Waits for work on other threads, which ends by itself.
    async fn until_no_file_is_left(spool: &Spool) {
        let gone = async {
            while !files(spool).is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("a file was left");
    }

    fn bytes_of(content: &SpooledContent) -> Vec<u8> {
        fs::read(content.synced_file().unwrap().path()).unwrap()
    }

    fn hash_of(bytes: &[u8]) -> ContentHash {
        ContentHash { md5: Md5::digest(bytes).into(), sha256: Sha256::digest(bytes).into() }
    }

    #[test]
    fn chunking_makes_no_difference() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (_directory, spool) = spool();
        let sizes = prop_oneof![0..3_usize, IN_MEMORY - 1..IN_MEMORY + 2, PIECE - 1..PIECE + 2, 2 * PIECE - 1..2 * PIECE + 2, 0..3 * PIECE];
        let chunks = prop::collection::vec(prop_oneof![1..100_usize, 1..2 * PIECE], 1..20);
        let config = ProptestConfig::with_cases(64);
        let check = |(size, chunks, seed): (usize, Vec<usize>, usize)| {
            let content: Vec<u8> = (0..251).cycle().skip(seed).take(size).collect();
            runtime.block_on(async {
                let mut upload = spool.begin(size as u64);
                let mut rest = Bytes::from(content.clone());
                // The last chunk takes what is left.
                for length in chunks.into_iter().chain([size]) {
                    upload.write(rest.split_to(length.min(rest.len()))).await.unwrap();
                }
                let spooled = upload.finish().await.unwrap();
                prop_assert_eq!(spooled.size, size as u64);
                prop_assert_eq!(spooled.hash, hash_of(&content));
                prop_assert_eq!(files(&spool).len(), usize::from(size > IN_MEMORY));
                prop_assert!(bytes_of(&spooled) == content);
                drop(spooled);
                prop_assert!(files(&spool).is_empty());
                Ok(())
            })
        };
        TestRunner::new(config).run(&(sizes, chunks, 0..251_usize), check).unwrap();
    }

    #[tokio::test]
    async fn the_limit_is_exact_and_acts_at_once() {
        let (_directory, spool) = spool();
        for limit in [0, 10, IN_MEMORY, PIECE, 2 * PIECE] {
            let content = Bytes::from(vec![7; limit]);
            let mut upload = spool.begin(limit as u64);
            upload.write(content.clone()).await.unwrap();
            assert_eq!(upload.finish().await.unwrap().size, limit as u64);

            let mut upload = spool.begin(limit as u64);
            upload.write(content).await.unwrap();
            let refused = upload.write(Bytes::from_static(b"x")).await;
            assert!(matches!(refused, Err(Error::TooLarge { limit: l }) if l == limit as u64), "{refused:?}");
            until_no_file_is_left(&spool).await;
            assert!(matches!(upload.finish().await, Err(Error::Internal(_))));
        }
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_leaves_no_file() {
        let (_directory, spool) = spool();
        let mut upload = spool.begin(u64::MAX);
        for _ in 0..WRITE_BACK / PIECE + 2 {
            upload.write(Bytes::from(vec![7; PIECE])).await.unwrap();
        }
        assert_eq!(files(&spool).len(), 1);
        drop(upload);
        until_no_file_is_left(&spool).await;
    }

    #[tokio::test]
    async fn a_write_that_is_dropped_midway_leaves_no_file_and_no_half_content() {
        let (_directory, spool) = spool();
        let mut upload = spool.begin(u64::MAX);
        upload.write(Bytes::from(vec![7; 2 * PIECE])).await.unwrap();
        // On a busy machine the threads may be done with all pieces before anybody waits for them.
        let mut attempts = 0..100;
        while poll!(std::pin::pin!(upload.write(Bytes::from(vec![7; 8 * PIECE])))).is_ready() {
            assert!(attempts.next().is_some(), "no write ever has to wait");
        }
        until_no_file_is_left(&spool).await;
        assert!(matches!(upload.write(Bytes::from_static(b"x")).await, Err(Error::Internal(_))));
        assert!(matches!(upload.finish().await, Err(Error::Internal(_))));
    }

    #[tokio::test]
    async fn a_full_disk_makes_storage_unavailable() {
        let (_directory, spool) = spool();
        let mut upload = spool.begin(u64::MAX);
        upload.write(Bytes::from(vec![7; PIECE])).await.unwrap();
        let receiving = upload.receiving.as_mut().unwrap();
        let mut writer = receiving.writing.take().unwrap().await.unwrap();
        let path = writer.file.path.clone();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        writer.file = Arc::new(TemporaryFile { path, file: full, _directory: spool.directory.clone() });
        receiving.writing = Some(async { Ok(writer) }.boxed());
        upload.write(Bytes::from(vec![7; PIECE])).await.unwrap();
        let failed = upload.finish().await;
        let Err(Error::Unavailable { dependency: domain::Dependency::ObjectStorage, source }) = failed else { panic!("{failed:?}") };
        assert_eq!(source.downcast::<io::Error>().unwrap().kind(), io::ErrorKind::StorageFull);
        assert!(files(&spool).is_empty());
    }

    #[tokio::test]
    async fn a_start_removes_what_a_crash_left_and_nothing_else() {
        let (directory, running) = spool();
        let mut upload = running.begin(u64::MAX);
        upload.write(Bytes::from(vec![7; PIECE])).await.unwrap();
        upload.write(Bytes::from_static(b"x")).await.unwrap();
        let left = directory.path().join(format!("{PREFIX}0123456789abcdef"));
        let foreign = directory.path().join("foreign");
        for other in [&left, &foreign] {
            fs::create_dir(other).unwrap();
            fs::write(other.join("0"), b"content").unwrap();
        }

        let starting = Spool::new(directory.path()).unwrap();
        assert!(!left.exists());
        assert!(foreign.join("0").exists());
        let content = upload.finish().await.unwrap();
        assert_eq!(files(&running).len(), 1);
        assert_eq!(bytes_of(&content).len(), PIECE + 1);

        drop((content, running, starting));
        assert_eq!(names(directory.path()), [foreign]);
    }
}
