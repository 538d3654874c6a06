//! An SQLite file with its connections: one writer and several readers, opened when first used, each on lease to one caller at a
//! time.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use domain::TenantId;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    group_commit::Queue,
    limits::BUSY_TIMEOUT,
    migrate::migrate_file,
    open::{Access, open_file},
    threads::SqliteThreads,
};
use crate::{
    error::{Error, Result},
    schema::{Migrated, Schema},
};

/// How long a reader may assume that the path still names the same file. Whether a read began before the file was exchanged or
/// this little after makes no difference to its caller; a write always checks.
const RECHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Read connections per file. More than there are read threads would only wait for each other.
const READERS_PER_FILE: usize = 4;

/// A database file.
#[derive(Debug)]
pub(crate) struct SqliteFile {
    path: PathBuf,
    identity: Option<TenantId>,
    pub(super) threads: SqliteThreads,
    writer: Arc<AsyncMutex<Option<OpenFile>>>,
    readers: Mutex<Vec<OpenFile>>,
    /// The file that the path named when it was last checked, and when that was.
    found: Mutex<Option<(Inode, Instant)>>,
    reader_permits: Arc<Semaphore>,
    pub(super) commit_queue: Queue,
}

impl SqliteFile {
    /// A handle on the file, which must exist when it is first used. Opens nothing yet. When `identity` is given, every
    /// connection checks that the file is that tenant's.
    pub(crate) fn new(path: PathBuf, identity: Option<TenantId>, threads: SqliteThreads) -> Arc<Self> {
        Arc::new(Self {
            path,
            identity,
            threads,
            writer: Arc::default(),
            readers: Mutex::default(),
            found: Mutex::default(),
            reader_permits: Arc::new(Semaphore::new(READERS_PER_FILE)),
            commit_queue: Queue::default(),
        })
    }

    /// Leases a read connection.
    pub(super) async fn lease_reader(self: &Arc<Self>) -> Result<Lease> {
        let permit = match Arc::clone(&self.reader_permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => timeout(BUSY_TIMEOUT, Arc::clone(&self.reader_permits).acquire_owned())
                .await
                .map_err(|_| Error::Busy("every reader of the database is in use"))?
                .map_err(Error::internal)?,
        };
        let inode = self.inode_for_reading()?;
        let connection = match self.pooled_reader(inode) {
            Some(connection) => connection,
            None => self.open(Access::Read).await?,
        };
        Ok(Lease { connection: Some(connection), home: Home::Reader(Arc::clone(self), permit) })
    }

    /// Leases the writer.
    pub(super) async fn lease_writer(self: &Arc<Self>) -> Result<Lease> {
        let mut writer = self.lock_writer().await?;
        let inode = Inode::of(&self.path)?;
        let connection = match writer.take_if(|open| open.inode == inode) {
            Some(connection) => connection,
            None => self.open(Access::Write).await?,
        };
        Ok(Lease { connection: Some(connection), home: Home::Writer(writer, Arc::clone(self)) })
    }

    /// Runs `job` on a write thread while no transaction of this handle holds the file: for work that locks the file over a
    /// connection of its own. Waiting for such a transaction inside SQLite would block the thread on which it is to end.
    pub(crate) async fn exclusively<T: Send + 'static>(&self, job: impl FnOnce(&Path) -> Result<T> + Send + 'static) -> Result<T> {
        let writer = self.lock_writer().await?;
        let path = self.path.clone();
        let job = move || {
            let result = job(&path);
            drop(writer);
            result
        };
        self.threads.run(job).await
    }

    /// Applies all pending migrations.
    pub(crate) async fn migrate(&self, schema: Schema) -> Result<Migrated> {
        self.exclusively(move |path| migrate_file(path, schema)).await
    }

    /// A pooled reader of this file. Readers of the file that the path named before are closed.
    fn pooled_reader(&self, inode: Inode) -> Option<OpenFile> {
        let mut readers = self.readers.lock();
        while let Some(open) = readers.pop() {
            if open.inode == inode {
                return Some(open);
            }
            self.threads.writes.drop_there(open);
        }
        None
    }

    fn inode_for_reading(&self) -> Result<Inode> {
        let mut found = self.found.lock();
        match *found {
            Some((inode, at)) if at.elapsed() < RECHECK_INTERVAL => Ok(inode),
            _ => {
                let inode = Inode::of(&self.path)?;
                *found = Some((inode, Instant::now()));
                Ok(inode)
            }
        }
    }

    async fn open(&self, access: Access) -> Result<OpenFile> {
        let (path, identity) = (self.path.clone(), self.identity);
        let open = move || {
            // Before opening: if the file is exchanged in between, the connection is not used a second time.
            let inode = Inode::of(&path)?;
            Ok(OpenFile { connection: open_file(&path, access, identity)?, inode, is_slow_until: None })
        };
        let opened = self.threads.run(open).await?;
        // Otherwise readers would close it again for as long as they assume the file that was there before.
        *self.found.lock() = Some((opened.inode, Instant::now()));
        Ok(opened)
    }

    async fn lock_writer(&self) -> Result<OwnedMutexGuard<Option<OpenFile>>> {
        timeout(BUSY_TIMEOUT, Arc::clone(&self.writer).lock_owned())
            .await
            .map_err(|_| Error::Busy("another transaction holds the database"))
    }
}

impl Drop for SqliteFile {
    fn drop(&mut self) {
        // Closing a file's last connection moves its log into it, which waits for the disk.
        let readers = std::mem::take(self.readers.get_mut());
        self.threads.writes.drop_there((readers, Arc::clone(&self.writer)));
    }
}

/// A connection with the file that it is on. The path may name another file by now: a file that was deleted still accepts
/// writes, which are lost.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) connection: Connection,
    inode: Inode,
    /// Until when reads go to a thread at once, because the disk was slow.
    pub(super) is_slow_until: Option<Instant>,
}

/// A file, whatever its name: device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode(u64, u64);

impl Inode {
    /// The file of this name. Takes a microsecond, so it may run anywhere.
    fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::unavailable)?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }
}

/// A connection that returns to its file when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Option<OpenFile>,
    pub(super) home: Home,
}

/// The place that a leased connection returns to.
#[derive(Debug)]
pub(super) enum Home {
    Reader(Arc<SqliteFile>, #[expect(dead_code, reason = "held until the connection is back")] OwnedSemaphorePermit),
    Writer(
        OwnedMutexGuard<Option<OpenFile>>,
        #[expect(dead_code, reason = "the last handle closes the file, after the connection is back")] Arc<SqliteFile>,
    ),
}

impl Lease {
    pub(super) fn is_in_transaction(&self) -> bool {
        self.connection.as_ref().is_some_and(|open| !open.connection.is_autocommit())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(open) = self.connection.take() else { return };
        // A transaction that can't be rolled back ends with its connection.
        if !open.connection.is_autocommit() && open.connection.execute_batch("ROLLBACK").is_err() {
            return;
        }
        match &mut self.home {
            Home::Reader(file, _) => file.readers.lock().push(open),
            Home::Writer(slot, _) => **slot = Some(open),
        }
    }
}
