use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    time::Duration,
};

use futures_util::poll;
use md5::{Digest, Md5};
use proptest::{prelude::*, test_runner::TestRunner};
use sha2::Sha256;
use tempfile::TempDir;

use super::{directory::PREFIX, *};

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

/// Waits for work on other threads to end.
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
    let sizes = prop_oneof![
        0..3_usize,
        MAX_IN_MEMORY - 1..MAX_IN_MEMORY + 2,
        CHUNK_SIZE - 1..CHUNK_SIZE + 2,
        2 * CHUNK_SIZE - 1..2 * CHUNK_SIZE + 2,
        0..3 * CHUNK_SIZE
    ];
    let chunks = prop::collection::vec(prop_oneof![1..100_usize, 1..2 * CHUNK_SIZE], 1..20);
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
            prop_assert_eq!(files(&spool).len(), usize::from(size > MAX_IN_MEMORY));
            prop_assert!(bytes_of(&spooled) == content);
            drop(spooled);
            prop_assert!(files(&spool).is_empty());
            Ok(())
        })
    };
    TestRunner::new(config).run(&(sizes, chunks, 0..251_usize), check).unwrap();
}

#[tokio::test]
async fn the_limit_is_exact_and_applies_at_once() {
    let (_directory, spool) = spool();
    for limit in [0, 10, MAX_IN_MEMORY, CHUNK_SIZE, 2 * CHUNK_SIZE] {
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
async fn a_dropped_upload_leaves_no_file() {
    let (_directory, spool) = spool();
    let mut upload = spool.begin(u64::MAX);
    for _ in 0..WRITE_BACK_AFTER / CHUNK_SIZE + 2 {
        upload.write(Bytes::from(vec![7; CHUNK_SIZE])).await.unwrap();
    }
    assert_eq!(files(&spool).len(), 1);
    drop(upload);
    until_no_file_is_left(&spool).await;
}

#[tokio::test]
async fn a_dropped_write_leaves_no_file_and_no_partial_content() {
    let (_directory, spool) = spool();
    let mut upload = spool.begin(u64::MAX);
    upload.write(Bytes::from(vec![7; 2 * CHUNK_SIZE])).await.unwrap();
    // On a busy machine the threads may have written all chunks before the write waits for them.
    let mut attempts = 0..100;
    while poll!(std::pin::pin!(upload.write(Bytes::from(vec![7; 8 * CHUNK_SIZE])))).is_ready() {
        assert!(attempts.next().is_some(), "no write ever waits");
    }
    until_no_file_is_left(&spool).await;
    assert!(matches!(upload.write(Bytes::from_static(b"x")).await, Err(Error::Internal(_))));
    assert!(matches!(upload.finish().await, Err(Error::Internal(_))));
}

#[tokio::test]
async fn a_full_disk_makes_storage_unavailable() {
    let (_directory, spool) = spool();
    let mut upload = spool.begin(u64::MAX);
    upload.write(Bytes::from(vec![7; CHUNK_SIZE])).await.unwrap();
    let receiving = upload.receiving.as_mut().unwrap();
    let mut writer = receiving.writing.take().unwrap().await.unwrap();
    let path = writer.file.path.clone();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    writer.file = Arc::new(TemporaryFile { path, file: full, _directory: spool.directory.clone() });
    receiving.writing = Some(async { Ok(writer) }.boxed());
    upload.write(Bytes::from(vec![7; CHUNK_SIZE])).await.unwrap();
    let failed = upload.finish().await;
    let Err(Error::Unavailable { dependency: domain::Dependency::ObjectStorage, source }) = failed else { panic!("{failed:?}") };
    assert_eq!(source.downcast::<io::Error>().unwrap().kind(), io::ErrorKind::StorageFull);
    assert!(files(&spool).is_empty());
}

#[tokio::test]
async fn a_start_removes_the_files_of_a_crashed_process_only() {
    let (directory, running) = spool();
    let mut upload = running.begin(u64::MAX);
    upload.write(Bytes::from(vec![7; CHUNK_SIZE])).await.unwrap();
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
    assert_eq!(bytes_of(&content).len(), CHUNK_SIZE + 1);

    drop((content, running, starting));
    assert_eq!(names(directory.path()), [foreign]);
}
