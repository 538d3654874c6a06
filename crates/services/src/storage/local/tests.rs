use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    files::{create_directory, remove_empty_directories},
    *,
};
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

    /// All files and directories below the directory of the test.
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
async fn a_stored_object_is_readable_until_it_is_deleted() {
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
async fn a_read_continues_after_the_object_is_deleted() {
    let store = Store::new();
    let content = bytes(1_000_000);
    store.put(KEY, &content).await.unwrap();
    let object = store.storage.get(KEY, None).await.unwrap();
    assert_eq!(object.size, 1_000_000);
    store.storage.delete(KEY).await.unwrap();
    let chunks: Vec<Bytes> = object.bytes.try_collect().await.unwrap();
    assert!(chunks.iter().all(|chunk| chunk.len() <= 256 * 1024));
    assert!(chunks.concat() == content);
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
async fn one_of_two_concurrent_puts_succeeds() {
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
async fn a_delete_removes_empty_directories_and_no_other_object() {
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
async fn lists_match_whole_segments() {
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
async fn the_health_check_fails_when_the_directory_is_missing() {
    let store = Store::new();
    store.storage.check().await.unwrap();
    fs::remove_dir(&store.storage.root).unwrap();
    assert!(matches!(store.storage.check().await, Err(Error::Unavailable { dependency: domain::Dependency::ObjectStorage, .. })));
}

/// Links into a directory that another thread keeps removing while it is empty, until a link fails or the time has passed.
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
    // The control: without the lock a link fails, so deletes do interfere.
    let unlocked = |file: &Path, path: &Path, _: &Path| {
        create_directory(path.parent().unwrap())?;
        fs::hard_link(file, path)
    };
    assert!(link_against_deletes(unlocked, Duration::from_secs(10)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_puts_and_deletes_in_one_directory_succeed() {
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
