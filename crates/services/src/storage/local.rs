//! Objects on the local file system.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, IoSliceMut},
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use domain::{Error, Noun, Result, failpoint};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{self, BoxFuture, Either},
    stream::{self, BoxStream},
};
use object_store::{ObjectStore, local::LocalFileSystem};
use rustix::{
    fs::{Access, access, statvfs},
    io::{ReadWriteFlags, preadv2},
};

use super::{
    ContentHeaders, DownloadUrl, Object, ObjectEntry, ObjectStorage, PIECE, bad_key, blocking, check_key, failed, is_prefix, unavailable,
};
use crate::{storage::buffers::Buffers, storage::spool::SpooledContent};

/// Objects as files, under a directory of the local file system. The key is the path.
///
/// Files are made with mode 0600, directories with 0700. Several processes may share the directory:
/// an `flock` on it keeps apart those who make directories and those who remove empty ones.
pub struct LocalStorage {
    root: PathBuf,
    files: LocalFileSystem,
}

impl LocalStorage {
    /// Opens the store in this directory, which is made when it is missing. Blocks; meant for the start of a process.
    ///
    /// The directory must be on the file system of the [`Spool`](crate::Spool) that content comes from.
    pub fn open(root: &Path) -> Result<Self> {
        let root = prepare(root).map_err(failed)?;
        let files = LocalFileSystem::new_with_prefix(&root).map_err(unavailable)?;
        Ok(Self { root, files })
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        check_key(key)?;
        Ok(self.root.join(key))
    }
}

impl ObjectStorage for LocalStorage {
    fn put<'a>(&'a self, key: &'a str, content: &'a SpooledContent) -> BoxFuture<'a, Result<()>> {
        async move {
            let (root, path, content) = (self.root.clone(), self.path(key)?, content.clone());
            blocking(move || {
                let file = content.synced_file()?;
                link(file.path(), &path, &root)?;
                failpoint!("object.linked");
                sync_directories(&path, &root)
            })
            .await
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Object>> {
        async move {
            let path = self.path(key)?;
            let (file, size) = blocking(move || open(&path)).await?.ok_or(Error::NotFound(Noun::Object))?;
            let range = range.unwrap_or(0..size);
            if range.end > size {
                return Err(Error::internal(format!("bytes {range:?} of an object of {size} bytes")));
            }
            Ok(Object { size, bytes: read(file, range) })
        }
        .boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<u64>> {
        async move {
            let path = self.path(key)?;
            let (_, size) = blocking(move || open(&path)).await?.ok_or(Error::NotFound(Noun::Object))?;
            Ok(size)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let (root, path) = (self.root.clone(), self.path(key)?);
            blocking(move || remove(&path, &root)).await
        }
        .boxed()
    }

    fn copy<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let (root, from, to) = (self.root.clone(), self.path(from)?, self.path(to)?);
            let linked = blocking(move || {
                if open(&from)?.is_none() {
                    return Ok(None);
                }
                link(&from, &to, &root)?;
                sync_directories(&to, &root).map(Some)
            });
            linked.await?.ok_or(Error::NotFound(Noun::Object))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<ObjectEntry>> {
        if !is_prefix(prefix) {
            return stream::once(async move { Err(bad_key(prefix)) }).boxed();
        }
        let prefix = object_store::path::Path::from(prefix);
        let entries = self.files.list(Some(&prefix));
        entries.map_ok(|meta| ObjectEntry { key: meta.location.into(), size: meta.size }).map_err(unavailable).boxed()
    }

    fn signed_url<'a>(&'a self, _: &'a str, _: Duration, _: &'a ContentHeaders) -> BoxFuture<'a, Result<DownloadUrl>> {
        async { Ok(DownloadUrl::Api) }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<()>> {
        let root = self.root.clone();
        blocking(move || {
            access(&root, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
            match statvfs(&root)?.f_bavail {
                0 => Err(ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }
        })
        .boxed()
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the store's own directory, so that it survives a power failure.
fn prepare(root: &Path) -> io::Result<PathBuf> {
    make_directory(root)?;
    let root = root.canonicalize()?;
    root.parent().map_or(Ok(()), sync_directory)?;
    Ok(root)
}

/// Gives a file its place among the objects, unless it is taken.
fn link(file: &Path, path: &Path, root: &Path) -> io::Result<()> {
    // Until the object is in its directory, no delete may remove that as empty.
    let store = File::open(root)?;
    store.lock_shared()?;
    path.parent().map_or(Ok(()), make_directory)?;
    fs::hard_link(file, path)
}

/// Makes the path of an object survive a power failure: every directory, for one that exists already may have been made a
/// moment ago by somebody who has not synced it yet. A directory without changes takes 0.05 ms.
fn sync_directories(path: &Path, root: &Path) -> io::Result<()> {
    up_to(root, path).skip(1).try_for_each(sync_directory)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The path and the directories that it lies in, the root last.
fn up_to<'a>(root: &'a Path, path: &'a Path) -> impl Iterator<Item = &'a Path> {
    path.ancestors().take_while(move |directory| directory.starts_with(root))
}

/// Deletes a file for good, and the directories that it leaves empty.
fn remove(path: &Path, root: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Synced all the same: whoever removed it may not have come so far.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        removed => removed?,
    }
    let remaining = remove_empty_directories(path, root)?;
    for directory in up_to(root, remaining) {
        match sync_directory(directory) {
            // Another delete has just removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            synced => return synced,
        }
    }
    Ok(())
}

/// Removes the directories above a path that are empty; the first that remains.
fn remove_empty_directories<'a>(path: &'a Path, root: &'a Path) -> io::Result<&'a Path> {
    let store = File::open(root)?;
    store.lock()?;
    Ok(up_to(root, path).skip(1).find(|directory| *directory == root || fs::remove_dir(directory).is_err()).unwrap_or(root))
}

/// The file at this path and its size, if there is one.
fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => {
            let file = file?;
            let metadata = file.metadata()?;
            Ok(metadata.is_file().then_some((file, metadata.len())))
        }
    }
}

/// Reads these bytes of a file, one piece ahead of what is asked for. What is in the kernel's memory is read right here; only for
/// the disk is another thread made to wait.
fn read(file: File, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    // Used again and again: what was just sent is still in the processor's cache.
    let (file, buffers) = (Arc::new(file), Arc::<Buffers>::default());
    let pieces = range.clone().step_by(PIECE);
    stream::iter(pieces)
        .map(move |start| {
            let length = usize::try_from(range.end - start).map_or(PIECE, |left| left.min(PIECE));
            let mut piece = buffers.lend(length);
            let read = preadv2(&file, &mut [IoSliceMut::new(&mut piece.bytes)], start, ReadWriteFlags::NOWAIT);
            if read == Ok(length) {
                return Either::Left(future::ready(Ok(Bytes::from_owner(piece))));
            }
            let file = file.clone();
            Either::Right(blocking(move || {
                file.read_exact_at(&mut piece.bytes, start)?;
                Ok(Bytes::from_owner(piece))
            }))
        })
        .buffered(2)
        .boxed()
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Instant,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::Spool;

    struct Store {
        directory: TempDir,
        spool: Spool,
        storage: LocalStorage,
    }

    impl Store {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let spool = Spool::new(&directory.path().join("spool")).unwrap();
            let storage = LocalStorage::open(&directory.path().join("objects")).unwrap();
            Self { directory, spool, storage }
        }

        async fn content(&self, bytes: &[u8]) -> SpooledContent {
            let mut upload = self.spool.begin(u64::MAX);
            upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
            upload.finish().await.unwrap()
        }

        async fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
            self.storage.put(key, &self.content(bytes).await).await
        }

        async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>> {
            let object = self.storage.get(key, range).await?;
            Ok(object.bytes.try_collect::<Vec<_>>().await?.concat())
        }

        async fn list(&self, prefix: &str) -> Vec<(String, u64)> {
            let mut entries: Vec<_> = self.storage.list(prefix).map_ok(|entry| (entry.key, entry.size)).try_collect().await.unwrap();
            entries.sort();
            entries
        }

        /// Every file and directory below the directory of the test.
        fn everything(&self) -> Vec<PathBuf> {
            let mut found = vec![self.directory.path().to_owned()];
            let mut next = 0;
            while let Some(path) = found.get(next).cloned() {
                if path.is_dir() {
                    found.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                }
                next += 1;
            }
            found
        }
    }

    const KEY: &str = "tenants/0190a1b2/files/ab/cd/abcd_0190";

    fn bytes(size: usize) -> Vec<u8> {
        (0..251).cycle().take(size).collect()
    }

    #[tokio::test]
    async fn what_is_put_is_read_again_until_it_is_deleted() {
        let store = Store::new();
        for size in [1, 1000, 64 * 1024, 64 * 1024 + 1, 256 * 1024, 1_000_000] {
            let content = bytes(size);
            store.put(KEY, &content).await.unwrap();
            assert_eq!(store.storage.head(KEY).await.unwrap(), size as u64);
            assert!(store.read(KEY, None).await.unwrap() == content);
            for range in [0..1, size / 2..size, size - 1..size, size..size, size / 3..size / 2] {
                let part = store.read(KEY, Some(range.start as u64..range.end as u64)).await.unwrap();
                assert!(part == content[range.clone()], "{range:?} of {size}");
            }
            assert!(store.read(KEY, Some(0..size as u64 + 1)).await.is_err());
            store.storage.delete(KEY).await.unwrap();
            assert!(matches!(store.storage.head(KEY).await, Err(Error::NotFound(Noun::Object))));
            assert!(matches!(store.read(KEY, None).await, Err(Error::NotFound(Noun::Object))));
            store.storage.delete(KEY).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_read_goes_on_after_the_object_was_deleted() {
        let store = Store::new();
        let content = bytes(1_000_000);
        store.put(KEY, &content).await.unwrap();
        let object = store.storage.get(KEY, None).await.unwrap();
        assert_eq!(object.size, 1_000_000);
        store.storage.delete(KEY).await.unwrap();
        let pieces: Vec<Bytes> = object.bytes.try_collect().await.unwrap();
        assert!(pieces.iter().all(|piece| piece.len() <= 256 * 1024));
        assert!(pieces.concat() == content);
    }

    #[tokio::test]
    async fn a_key_is_never_used_twice() {
        let store = Store::new();
        store.put(KEY, b"first").await.unwrap();
        let before = store.everything();
        for other in [b"other".to_vec(), bytes(100_000)] {
            assert!(matches!(store.put(KEY, &other).await, Err(Error::Internal(_))));
            assert_eq!(store.everything(), before);
        }
        assert_eq!(store.read(KEY, None).await.unwrap(), b"first");
    }

    #[tokio::test]
    async fn of_two_puts_at_once_one_wins() {
        let store = Store::new();
        for size in [10, 100_000] {
            let (mine, yours) = (vec![1; size], vec![2; size]);
            let (first, second) = tokio::join!(store.put(KEY, &mine), store.put(KEY, &yours));
            let winner = match (first, second) {
                (Ok(()), Err(Error::Internal(_))) => mine,
                (Err(Error::Internal(_)), Ok(())) => yours,
                both => panic!("{both:?}"),
            };
            assert!(store.read(KEY, None).await.unwrap() == winner);
            store.storage.delete(KEY).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_delete_leaves_no_empty_directory_and_nobody_elses_object() {
        let store = Store::new();
        let neighbour = "tenants/0190a1b2/files/ab/ef/abef_0190";
        store.put(KEY, b"1").await.unwrap();
        store.put(neighbour, b"2").await.unwrap();
        store.storage.delete(KEY).await.unwrap();
        assert!(!store.storage.path("tenants/0190a1b2/files/ab/cd").unwrap().exists());
        assert_eq!(store.read(neighbour, None).await.unwrap(), b"2");
        store.storage.delete(neighbour).await.unwrap();
        assert!(fs::read_dir(&store.storage.root).unwrap().next().is_none());
        store.put(KEY, b"3").await.unwrap();
    }

    #[tokio::test]
    async fn lists_know_whole_segments() {
        let store = Store::new();
        for key in ["tenants/a/files/1", "tenants/a/files/22", "tenants/ab/files/3"] {
            store.put(key, key.as_bytes()).await.unwrap();
        }
        assert_eq!(store.list("tenants/a").await, [("tenants/a/files/1".to_owned(), 17), ("tenants/a/files/22".to_owned(), 18)]);
        assert_eq!(store.list("tenants/ab").await.len(), 1);
        assert_eq!(store.list("tenants/none").await, []);
    }

    #[tokio::test]
    async fn no_key_leads_out_of_the_store() {
        let store = Store::new();
        fs::write(store.directory.path().join("secret"), b"secret").unwrap();
        let long = format!("tenants/{}", "a".repeat(500));
        for key in [
            "",
            "tenants",
            "tenants/",
            "/tenants/a",
            "tenants//a",
            "tenants/../../secret",
            "tenants/./a",
            "other/a",
            "tenants/A",
            "tenants/a\0",
            &long,
        ] {
            assert!(matches!(store.storage.get(key, None).await, Err(Error::Internal(_))), "{key}");
            assert!(matches!(store.put(key, b"x").await, Err(Error::Internal(_))), "{key}");
            assert!(matches!(store.storage.delete(key).await, Err(Error::Internal(_))), "{key}");
            assert!(key == "tenants" || store.storage.list(key).next().await.unwrap().is_err(), "{key}");
        }
    }

    #[tokio::test]
    async fn files_and_directories_are_private() {
        let store = Store::new();
        store.put(KEY, b"small").await.unwrap();
        store.put("tenants/0190a1b2/files/ab/cd/abcd_0191", &bytes(100_000)).await.unwrap();
        for path in store.everything().into_iter().skip(1) {
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, expected, "{path:?}");
        }
    }

    #[tokio::test]
    async fn health_notices_that_the_directory_is_gone() {
        let store = Store::new();
        store.storage.check().await.unwrap();
        fs::remove_dir(&store.storage.root).unwrap();
        assert!(matches!(store.storage.check().await, Err(Error::Unavailable { dependency: "object storage", .. })));
    }

    /// Links into a directory that another thread keeps removing when it is empty, until one fails or the time is over.
    fn link_against_deletes(link: fn(&Path, &Path, &Path) -> io::Result<()>, time: Duration) -> io::Result<u64> {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("objects");
        fs::create_dir(&root).unwrap();
        let file = directory.path().join("file");
        fs::write(&file, b"content").unwrap();
        let (mine, theirs) = (root.join("a/b/c/mine"), root.join("a/b/c/theirs"));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    remove_empty_directories(&theirs, &root).unwrap();
                }
            });
            let start = Instant::now();
            let mut links = 0;
            let result = loop {
                if let Err(error) = link(&file, &mine, &root) {
                    break Err(error);
                }
                fs::remove_file(&mine).unwrap();
                links += 1;
                if start.elapsed() > time {
                    break Ok(links);
                }
            };
            over.store(true, Ordering::Relaxed);
            result
        })
    }

    #[test]
    fn a_put_succeeds_while_deletes_remove_its_directory() {
        let links = link_against_deletes(link, Duration::from_millis(500)).unwrap();
        assert!(links > 10, "{links}");
        // The control: without the lock it fails, so deletes do come in between.
        let unlocked = |file: &Path, path: &Path, _: &Path| {
            make_directory(path.parent().unwrap())?;
            fs::hard_link(file, path)
        };
        assert!(link_against_deletes(unlocked, Duration::from_secs(10)).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn puts_and_deletes_in_one_directory_get_along() {
        let store = Store::new();
        let rounds = |name: &'static str| {
            let store = &store;
            async move {
                for round in 0..50 {
                    let key = format!("tenants/t/files/ab/cd/{name}{round}");
                    store.put(&key, b"content").await.unwrap();
                    assert_eq!(store.read(&key, None).await.unwrap(), b"content");
                    store.storage.delete(&key).await.unwrap();
                }
            }
        };
        tokio::join!(rounds("a"), rounds("b"), rounds("c"));
        assert_eq!(store.list("tenants").await, []);
    }
}
