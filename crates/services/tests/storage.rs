//! The contract of all stores: on files always, and on the S3 store of `TEST_S3_ENDPOINT_URL` when that is set.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::{
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use domain::{Clock, Dependency, Error, Noun, Result, SystemClock, random_bytes};
use futures_util::{StreamExt, TryStreamExt};
use reqwest::{Client, StatusCode};
use services::{
    ContentHeaders, DirectUploads, DownloadUrl, LocalStorage, ObjectStorage, S3Credentials, S3Settings, S3Storage, Spool, SpooledContent,
    UnfinishedUpload,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1 << 20;

/// A store under test, with keys of its own.
struct Store {
    storage: Arc<dyn ObjectStorage>,
    tenant: String,
    spool: Spool,
    _directory: TempDir,
}

impl Store {
    fn new(storage: impl FnOnce(&TempDir) -> Arc<dyn ObjectStorage>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(&directory.path().join("spool")).unwrap();
        let tenant = format!("tenants/{}", hex::encode(random_bytes::<8>()));
        Self { storage: storage(&directory), tenant, spool, _directory: directory }
    }

    fn local() -> Self {
        Self::new(|directory| Arc::new(LocalStorage::open(&directory.path().join("objects")).unwrap()))
    }

    fn s3(settings: &S3Settings) -> Self {
        Self::new(|_| Arc::new(S3Storage::new(settings).unwrap()))
    }

    fn all() -> Vec<Self> {
        [Self::local()].into_iter().chain(s3_settings().map(|settings| Self::s3(&settings))).collect()
    }

    fn key(&self, name: &str) -> String {
        format!("{}/files/{name}", self.tenant)
    }

    async fn content(&self, bytes: &[u8]) -> SpooledContent {
        let mut upload = self.spool.begin(u64::MAX);
        for chunk in bytes.chunks(MIB) {
            upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        upload.finish().await.unwrap()
    }

    async fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.storage.put(&self.key(name), &self.content(bytes).await).await
    }

    async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Vec<u8>> {
        let object = self.storage.get(&self.key(name), range).await?;
        let chunks: Vec<Bytes> = object.bytes.try_collect().await?;
        assert!(chunks.iter().all(|chunk| chunk.len() <= 256 * 1024));
        Ok(chunks.concat())
    }

    async fn head(&self, name: &str) -> Result<u64> {
        self.storage.head(&self.key(name)).await
    }

    async fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        let mut entries: Vec<_> = self.storage.list(prefix).map_ok(|entry| (entry.key, entry.size)).try_collect().await.unwrap();
        entries.sort();
        entries
    }

    async fn unfinished(&self) -> Vec<UnfinishedUpload> {
        self.storage.list_unfinished(&self.tenant).try_collect().await.unwrap()
    }

    async fn url(&self, name: &str, life: Duration) -> String {
        let headers =
            ContentHeaders { content_type: "text/x-test".to_owned(), content_disposition: "inline; filename=\"a b.txt\"".to_owned() };
        match self.storage.signed_url(&self.key(name), life, &headers).await.unwrap() {
            DownloadUrl::Store(url) => url,
            DownloadUrl::Api => panic!("the store has URLs"),
        }
    }

    fn direct(&self) -> &dyn DirectUploads {
        self.storage.direct_uploads().unwrap()
    }
}

/// The S3 store of this test run, if there is one.
#[expect(clippy::disallowed_methods, reason = "the environment selects the store of a test run")]
fn s3_settings() -> Option<S3Settings> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(S3Settings {
        endpoint: Some(variable("TEST_S3_ENDPOINT_URL")?),
        public_endpoint: None,
        region: "us-east-1".to_owned(),
        bucket: variable("TEST_S3_BUCKET")?,
        credentials: S3Credentials::AccessKey {
            id: variable("TEST_S3_ACCESS_KEY_ID")?,
            secret: variable("TEST_S3_SECRET_ACCESS_KEY")?.into(),
        },
        path_style: true,
    })
}

fn bytes(size: usize) -> Vec<u8> {
    (0..251).cycle().take(size).collect()
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

async fn put(url: &str, bytes: Vec<u8>) -> StatusCode {
    client().put(url).body(bytes).send().await.unwrap().status()
}

#[track_caller]
fn assert_unavailable<T>(result: Result<T>, cause: &str) {
    let Err(error) = result else { panic!("the store should be unavailable") };
    assert!(matches!(error, Error::Unavailable { dependency: Dependency::ObjectStorage, .. }), "{error:?}");
    let text = error.with_causes();
    assert!(text.contains(cause) && text.lines().count() == 1 && !text.contains("Signature="), "{text}");
}

#[tokio::test]
async fn a_stored_object_is_readable_until_it_is_deleted() {
    for store in Store::all() {
        for size in [1, 1000, 64 * 1024 + 1, 256 * 1024, MIB] {
            let (name, content) = (size.to_string(), bytes(size));
            store.put(&name, &content).await.unwrap();
            assert_eq!(store.head(&name).await.unwrap(), size as u64);
            assert!(store.read(&name, None).await.unwrap() == content);
            for range in [0..1, size / 2..size, size - 1..size, size..size, 0..0, size / 3..size / 2] {
                let part = store.read(&name, Some(range.start as u64..range.end as u64)).await.unwrap();
                assert!(part == content[range.clone()], "{range:?} of {size}");
            }
            for beyond in [0..size as u64 + 1, size as u64 + 1..size as u64 + 1] {
                assert!(matches!(store.read(&name, Some(beyond)).await, Err(Error::Internal(_))));
            }
            assert_eq!(store.storage.get(&store.key(&name), Some(0..1)).await.map(|object| object.size).ok(), Some(size as u64));
            store.storage.delete(&store.key(&name)).await.unwrap();
            assert!(matches!(store.head(&name).await, Err(Error::NotFound(Noun::Object))));
            assert!(matches!(store.read(&name, None).await, Err(Error::NotFound(Noun::Object))));
            assert!(matches!(store.read(&name, Some(0..1)).await, Err(Error::NotFound(Noun::Object))));
            store.storage.delete(&store.key(&name)).await.unwrap();
        }
        store.storage.check().await.unwrap();
    }
}

#[tokio::test]
async fn lists_match_whole_segments() {
    for store in Store::all() {
        let keys = ["/files/1", "/files/22", "0/files/3"].map(|end| format!("{}{end}", store.tenant));
        for key in &keys {
            store.storage.put(key, &store.content(b"content").await).await.unwrap();
        }
        assert_eq!(store.list(&store.tenant).await, keys[..2].iter().map(|key| (key.clone(), 7)).collect::<Vec<_>>());
        assert_eq!(store.list(&format!("{}0", store.tenant)).await.len(), 1);
        assert_eq!(store.list(&format!("{}1", store.tenant)).await, []);
        store.storage.delete(&keys[2]).await.unwrap();
    }
}

#[tokio::test]
async fn a_list_can_exceed_a_page() {
    for store in Store::all() {
        let content = store.content(b"x").await;
        let keys: Vec<String> = (0..1001).map(|number| store.key(&number.to_string())).collect();
        let puts = keys.iter().map(|key| store.storage.put(key, &content));
        futures_util::stream::iter(puts).buffer_unordered(16).try_collect::<Vec<()>>().await.unwrap();
        assert_eq!(store.list(&store.tenant).await.len(), keys.len());
        let deletes = keys.iter().map(|key| store.storage.delete(key));
        futures_util::stream::iter(deletes).buffer_unordered(16).try_collect::<Vec<()>>().await.unwrap();
    }
}

#[tokio::test]
async fn malformed_keys_are_refused() {
    for store in Store::all() {
        let long = format!("tenants/{}", "a".repeat(500));
        let content = store.content(b"x").await;
        for key in ["", "tenants/", "/tenants/a", "tenants//a", "tenants/../a", "other/a", "tenants/A", "tenants/a\0", "tenants/é", &long]
        {
            let storage = &store.storage;
            assert!(matches!(storage.get(key, None).await.map(|_| ()), Err(Error::Internal(_))), "{key}");
            assert!(matches!(storage.put(key, &content).await, Err(Error::Internal(_))), "{key}");
            assert!(matches!(storage.delete(key).await, Err(Error::Internal(_))), "{key}");
            assert!(matches!(storage.copy(key, "tenants/a").await, Err(Error::Internal(_))), "{key}");
            assert!(matches!(storage.list(key).next().await, Some(Err(Error::Internal(_)))), "{key}");
        }
    }
}

#[tokio::test]
async fn a_large_object_arrives_whole() {
    for store in Store::all() {
        let content = bytes(20 * MIB + 1);
        store.put("large", &content).await.unwrap();
        assert!(store.read("large", None).await.unwrap() == content);
        let middle = 8 * MIB - 1..16 * MIB + 1;
        assert!(store.read("large", Some(middle.start as u64..middle.end as u64)).await.unwrap() == content[middle]);
        assert_eq!(store.unfinished().await, []);
        store.storage.delete(&store.key("large")).await.unwrap();
    }
}

#[tokio::test]
async fn a_copy_outlives_its_original() {
    for store in Store::all() {
        store.put("original", b"content").await.unwrap();
        store.storage.copy(&store.key("original"), &store.key("copy")).await.unwrap();
        store.storage.delete(&store.key("original")).await.unwrap();
        assert_eq!(store.read("copy", None).await.unwrap(), b"content");
        let nothing = store.storage.copy(&store.key("original"), &store.key("copy2")).await;
        assert!(matches!(nothing, Err(Error::NotFound(Noun::Object))), "{nothing:?}");
        store.storage.delete(&store.key("copy")).await.unwrap();
    }
}

#[tokio::test]
async fn a_put_that_is_dropped_leaves_no_parts_and_no_object() {
    let Some(settings) = s3_settings() else { return };
    // Slow enough to be dropped in the middle.
    let proxy = Proxy::start(&settings, Duration::from_millis(20), usize::MAX).await;
    let slow = Store::s3(&proxy.settings(&settings));
    let content = slow.content(&bytes(20 * MIB)).await;
    let key = slow.key("dropped");
    assert!(tokio::time::timeout(Duration::from_millis(500), slow.storage.put(&key, &content)).await.is_err());
    let started = Instant::now();
    while !slow.unfinished().await.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "parts are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(slow.head("dropped").await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_put_that_fails_leaves_no_parts_and_no_object() {
    let Some(settings) = s3_settings() else { return };
    // Every connection breaks before a part is complete.
    let proxy = Proxy::start(&settings, Duration::ZERO, 4 * MIB).await;
    let broken = Store::s3(&proxy.settings(&settings));
    let started = Instant::now();
    assert_unavailable(broken.put("failed", &bytes(20 * MIB)).await, "bucket");
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    assert_eq!(broken.unfinished().await, []);
    assert!(matches!(broken.head("failed").await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn uploads_left_by_a_crash_are_listed_and_aborted() {
    let Some(settings) = s3_settings() else { return };
    let store = Store::s3(&settings);
    let (key, direct) = (store.key("crashed"), store.direct());
    let id = direct.begin(&key).await.unwrap();
    assert_eq!(put(&direct.part_url(&key, &id, 1, 100, HOUR).await.unwrap(), bytes(100)).await, 200);
    let [found] = &store.unfinished().await[..] else { panic!("not one") };
    assert_eq!((&found.key, &found.upload_id), (&key, &id));
    let age = SystemClock.now().seconds() - found.began_at.seconds();
    assert!((-5..60).contains(&age), "{age} s old");
    for _ in 0..2 {
        store.storage.abort_unfinished(found).await.unwrap();
        assert_eq!(store.unfinished().await, []);
    }
}

#[tokio::test]
async fn a_signed_url_serves_the_object_until_it_expires() {
    let Some(settings) = s3_settings() else { return };
    let store = Store::s3(&settings);
    store.put("shown", b"content").await.unwrap();
    let url = store.url("shown", Duration::from_secs(2)).await;
    let answer = client().get(&url).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!(answer.status(), 206);
    let answer = client().get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/x-test");
    assert_eq!(answer.headers()["content-disposition"], "inline; filename=\"a b.txt\"");
    assert_eq!(answer.bytes().await.unwrap(), "content");
    for tampered in [url.replace("text%2Fx-test", "text%2Fhtml"), url.replace("/shown", "/other"), url.replace("Expires=2", "Expires=3600")]
    {
        assert_ne!(tampered, url);
        assert_eq!(client().get(&tampered).send().await.unwrap().status(), 403, "{tampered}");
    }
    tokio::time::sleep(Duration::from_millis(3100)).await;
    assert_eq!(client().get(&url).send().await.unwrap().status(), 403);
    // Longer lifetimes are cut to the maximum.
    assert_eq!(client().get(store.url("shown", HOUR * 24 * 30).await).send().await.unwrap().status(), 200);
    store.storage.delete(&store.key("shown")).await.unwrap();
}

#[tokio::test]
async fn clients_send_parts_by_signed_urls() {
    let Some(settings) = s3_settings() else { return };
    let store = Store::s3(&settings);
    let (key, direct) = (store.key("direct"), store.direct());
    let content = bytes(12 * MIB);
    let parts: Vec<&[u8]> = content.chunks(5 * MIB).collect();
    let sizes: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
    let id = direct.begin(&key).await.unwrap();
    let mut urls = Vec::new();
    for (number, size) in (1..).zip(&sizes) {
        urls.push(direct.part_url(&key, &id, number, *size, HOUR).await.unwrap());
    }
    let refused = async |problem: &str| match direct.complete(&key, &id, &sizes).await {
        Err(Error::Invalid(errors)) => assert!(format!("{errors:?}").contains(problem), "{errors:?}"),
        other => panic!("{other:?}"),
    };
    refused("part 1 is missing, part 2 is missing, part 3 is missing").await;
    assert_eq!(put(&urls[0], bytes(5 * MIB - 1)).await, 403, "another length than was signed");
    for (url, part) in urls.iter().zip(&parts).skip(1) {
        assert_eq!(put(url, part.to_vec()).await, 200);
    }
    refused("part 1 is missing").await;
    assert!(matches!(store.head("direct").await, Err(Error::NotFound(_))));
    assert_eq!(put(&urls[0], parts[0].to_vec()).await, 200);
    let other_size = direct.complete(&key, &id, &[sizes[0], sizes[1], 7]).await;
    assert!(matches!(other_size, Err(Error::Invalid(_))), "{other_size:?}");
    for _ in 0..2 {
        direct.complete(&key, &id, &sizes).await.unwrap();
        assert!(store.read("direct", None).await.unwrap() == content);
    }
    assert_ne!(put(&urls[0], parts[0].to_vec()).await, 200, "after the end");
    assert!(store.read("direct", None).await.unwrap() == content);
    assert_eq!(store.unfinished().await, []);
    direct.abort(&key, &id).await.unwrap();
    assert!(store.read("direct", None).await.unwrap() == content, "an abort after the end changes nothing");
    store.storage.delete(&key).await.unwrap();
    assert!(direct.complete(&key, &id, &sizes).await.is_err());

    let aborted = direct.begin(&key).await.unwrap();
    let url = direct.part_url(&key, &aborted, 1, 10, HOUR).await.unwrap();
    direct.abort(&key, &aborted).await.unwrap();
    direct.abort(&key, &aborted).await.unwrap();
    assert_ne!(put(&url, bytes(10)).await, 200);
    assert_eq!(store.unfinished().await, []);
}

#[tokio::test]
async fn a_refusal_names_its_cause() {
    let Some(settings) = s3_settings() else { return };
    let S3Credentials::AccessKey { id, .. } = &settings.credentials else { panic!("the tests have an access key") };
    let with_key = |id: &str| {
        let credentials = S3Credentials::AccessKey { id: id.to_owned(), secret: "hush".into() };
        S3Settings { credentials, ..settings.clone() }
    };
    let (unknown_key, wrong_secret) = (with_key("unknown"), with_key(id));
    let no_bucket = S3Settings { bucket: format!("nowhere-{}", hex::encode(random_bytes::<8>())), ..settings.clone() };
    let cases = [(unknown_key, "InvalidAccessKeyId"), (wrong_secret, "SignatureDoesNotMatch"), (no_bucket, "NoSuchBucket")];
    for (settings, cause) in cases {
        let store = Store::s3(&settings);
        let started = Instant::now();
        assert_unavailable(store.storage.check().await, cause);
        assert_unavailable(store.head("x").await, "bucket");
        assert_unavailable(store.read("x", None).await, cause);
        assert_unavailable(store.storage.list(&store.tenant).try_collect::<Vec<_>>().await, cause);
        assert_unavailable(store.storage.list_unfinished(&store.tenant).try_collect::<Vec<_>>().await, cause);
        assert_unavailable(store.storage.delete(&store.key("x")).await, cause);
        // SeaweedFS creates the bucket then.
        if cause != "NoSuchBucket" {
            assert_unavailable(store.put("x", b"x").await, cause);
            assert_unavailable(store.put("x", &bytes(MIB)).await, cause);
            assert_unavailable(store.put("x", &bytes(9 * MIB)).await, cause);
            assert_unavailable(store.direct().begin(&store.key("x")).await, cause);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert!(!format!("{settings:?}").contains("hush"));
    }
}

#[tokio::test]
async fn a_store_is_used_again_after_an_outage() {
    let Some(settings) = s3_settings() else { return };
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let store = Store::s3(&S3Settings { endpoint: Some(format!("http://{address}")), ..settings.clone() });
    let started = Instant::now();
    assert_unavailable(store.storage.check().await, "refused");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_unavailable(store.put("x", b"x").await, "refused");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let _proxy = Proxy::start_at(address, &settings, Duration::ZERO, usize::MAX).await;
    store.storage.check().await.unwrap();
    store.put("x", b"x").await.unwrap();
    store.storage.delete(&store.key("x")).await.unwrap();
}

#[tokio::test]
async fn an_interrupted_body_is_resumed_or_an_error() {
    let Some(settings) = s3_settings() else { return };
    let store = Store::s3(&settings);
    let content = bytes(3 * MIB);
    store.put("long", &content).await.unwrap();
    // A connection carries 1.5 MiB: the client requests the rest.
    let proxy = Proxy::start(&settings, Duration::ZERO, MIB + MIB / 2).await;
    let through = Store { tenant: store.tenant.clone(), ..Store::s3(&proxy.settings(&settings)) };
    assert!(through.read("long", None).await.unwrap() == content);
    // The store becomes unreachable in the middle of the body.
    let object = through.storage.get(&through.key("long"), None).await.unwrap();
    drop(proxy);
    assert_unavailable(object.bytes.try_collect::<Vec<Bytes>>().await, "");
    store.storage.delete(&store.key("long")).await.unwrap();
}

/// A proxy before the store, slow and with connections that break after a number of bytes.
struct Proxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(settings: &S3Settings, delay: Duration, max_bytes: usize) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), settings, delay, max_bytes).await
    }

    /// Delays every 64 KiB, in both directions.
    async fn start_at(address: SocketAddr, settings: &S3Settings, delay: Duration, max_bytes: usize) -> Self {
        let store: SocketAddr = settings.endpoint.as_ref().unwrap().trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, store, delay, max_bytes));
            }
        });
        Self { address, task }
    }

    fn settings(&self, settings: &S3Settings) -> S3Settings {
        S3Settings { endpoint: Some(format!("http://{}", self.address)), ..settings.clone() }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, store: SocketAddr, delay: Duration, mut left: usize) -> std::io::Result<()> {
    let mut server = TcpStream::connect(store).await?;
    if delay.is_zero() && left == usize::MAX {
        return copy_bidirectional(&mut client, &mut server).await.map(drop);
    }
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    while left > 0 {
        let read = tokio::select! {
            read = client.read(&mut up) => {
                let read = read?;
                server.write_all(&up[..read]).await?;
                read
            }
            read = server.read(&mut down) => {
                let read = read?;
                client.write_all(&down[..read]).await?;
                read
            }
        };
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read);
        tokio::time::sleep(delay).await;
    }
    Ok(())
}
