//! The directories of the spool, one for each [`Spool`](super::Spool), and the temporary files in them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use domain::random_bytes;
use rustix::fs::{Advice, fadvise};

/// The prefix of the names of directories.
pub(super) const PREFIX: &str = "uploads-";

/// A locked subdirectory of the spool.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    files: AtomicU64,
    _lock: File,
}

impl Directory {
    /// Creates and locks a new directory, and removes abandoned ones.
    pub(super) fn claim(spool: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(spool)?;
        // No other process may search for abandoned directories between the creation and the locking of this one.
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

/// Removes the directories of processes that have ended.
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
            // Its process has just ended and removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// A file that is removed from the spool on drop. Hard links to it remain.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Keeps the directory while it has files.
    pub(super) _directory: Arc<Directory>,
}

impl TemporaryFile {
    pub(super) fn create(directory: Arc<Directory>) -> io::Result<Self> {
        let path = directory.path.join(directory.files.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file, _directory: directory })
    }

    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }

    pub(super) fn read_exact_at(&self, bytes: &mut [u8], start: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, start)
    }

    /// Makes the written bytes durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes the written bytes durable and drops them from the page cache, where large content would displace frequently read pages,
    /// above all those of databases.
    pub(super) fn write_back(&self) -> io::Result<()> {
        self.sync()?;
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // The next start removes files that cannot be removed now.
        let _ = fs::remove_file(&self.path);
    }
}
