//! Objects in a bucket of an S3-compatible store.

use std::{
    cmp, error,
    ops::Range,
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use domain::{Error, Noun, Result, Timestamp, failpoint, random_bytes};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use hmac::{Hmac, KeyInit, Mac};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, Checksum},
    client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector},
    multipart::{MultipartStore, PartId},
    path::Path,
    signer::{Method, SignedUrlOptions, Signer},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use url::{Position, Url};

use super::{
    ContentHeaders, DirectUploads, DownloadUrl, Object, ObjectEntry, ObjectStorage, PIECE, Unfinished, bad_key, check_key, failed,
    is_prefix,
};
use crate::{storage::buffers::Buffers, storage::spool::SpooledContent};

/// The least bytes of a part. What is smaller is stored by one request.
const PART: u64 = 8 << 20;

/// The most parts of an object, as Amazon has it.
const MOST_PARTS: u64 = 10_000;

/// The most bytes of spooled content that the process holds in memory while they are being sent.
const MOST_IN_FLIGHT: usize = 32 << 20;

/// How many parts of one object are sent at once: as many as the memory for them allows.
const PARTS_AT_ONCE: usize = 4;

/// What [`MOST_IN_FLIGHT`] is counted in. Sending holds a thread, so this bounds the threads, too.
const IN_FLIGHT_UNIT: usize = 1 << 20;

static IN_FLIGHT: Semaphore = Semaphore::const_new(MOST_IN_FLIGHT / IN_FLIGHT_UNIT);

/// What content is read into to be sent: as many as are in flight, while any are.
static BUFFERS: LazyLock<Arc<Buffers>> = LazyLock::new(Arc::default);

/// How long is tried what fails in passing.
const TRYING: Duration = Duration::from_secs(10);

/// How long a request may take that moves no content.
const SOON: Duration = Duration::from_secs(15);

/// How long a request may take that moves content, as long as the store is there: until a part has arrived over a slow link, or the
/// store has put an object together.
const AT_MOST: Duration = Duration::from_secs(600);

/// How long such a request goes unanswered before the store is asked whether it is there, and how long it may take to say so.
const DOUBT: Duration = Duration::from_secs(8);
const SIGN_OF_LIFE: Duration = Duration::from_secs(6);

/// How long the store may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(20);

/// How long somebody who is to be told of a failure waits for what has to be tidied up.
const TIDYING: Duration = Duration::from_secs(1);

/// How long a request may take effect after another one in its stead was answered: much longer than any store keeps one.
const SETTLING_TIME: Duration = Duration::from_secs(30 * 60);

/// What asks for the first object.
const FIRST_OBJECT: [(&str, &str); 3] = [("list-type", "2"), ("max-keys", "1"), ("prefix", "tenants/")];

/// The longest that a signed URL may be good for, as Signature Version 4 has it.
const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Where an S3 store is and how it is spoken to.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// The URL of the store; Amazon's of the region unless given. What begins with `http://` is spoken to without TLS.
    pub endpoint: Option<String>,
    /// The URL by which those reach the store who are given signed URLs, where it is another one.
    pub public_endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket, which must exist.
    pub bucket: String,
    /// The id of the access key, and its secret. Otherwise what the environment has: `AWS_*` variables, a web identity, the role
    /// of the container or machine.
    pub credentials: Option<(String, SecretString)>,
    /// Whether the bucket is named in the path rather than in the host's name.
    pub path_style: bool,
}

/// Objects in a bucket. What fails in passing is tried again for ten seconds. Whoever waits for a store that is down is told so
/// within 16 seconds; a slow one is waited for, because it says that it is there when it is asked.
///
/// Content above 8 MiB is sent in parts, several at once. A put that fails or is dropped takes them back; what a crash leaves is
/// [listed as unfinished](ObjectStorage::list_unfinished). The store checks every request by its SHA-256.
#[derive(Clone)]
pub struct S3Storage {
    bucket: String,
    /// Sends checksums with whatever it stores.
    store: AmazonS3,
    /// Sends none: for parts that others send.
    plain: AmazonS3,
    /// Signs URLs for those who know the store by its public name.
    public: AmazonS3,
    http: HttpClient,
}

impl S3Storage {
    /// Prepares to use the store. Connects to nothing yet.
    ///
    /// # Errors
    /// When an endpoint is no URL, or the environment's settings for credentials can't be read.
    pub fn new(settings: &S3Settings) -> Result<Self> {
        let options = ClientOptions::new().with_connect_timeout(Duration::from_secs(3)).with_allow_http(true);
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2. },
            // The time is the limit.
            max_retries: usize::MAX,
            retry_timeout: TRYING,
        };
        let builder = |origin: AmazonS3Builder| origin.with_bucket_name(&settings.bucket).with_region(&settings.region);
        let build = |builder: AmazonS3Builder| builder.build().map_err(Error::internal);
        let base = match &settings.credentials {
            Some((id, secret)) => builder(AmazonS3Builder::new()).with_access_key_id(id).with_secret_access_key(secret.expose_secret()),
            // Only for its credentials: where the bucket is, we have been told.
            None => {
                let environment = build(builder(AmazonS3Builder::from_env()))?;
                builder(AmazonS3Builder::new()).with_credentials(environment.credentials().clone())
            }
        };
        let base = base
            .with_client_options(options.clone().with_timeout_disabled().with_read_timeout(AT_MOST))
            .with_retry(retry)
            // What is sent is signed by its checksum; once is enough.
            .with_unsigned_payload(true)
            .with_disable_bulk_delete(true)
            .with_virtual_hosted_style_request(!settings.path_style);
        let at = |endpoint: Option<&String>| match endpoint {
            Some(endpoint) => Ok(base.clone().with_endpoint(bucket_endpoint(endpoint, settings)?)),
            None => Ok::<_, Error>(base.clone()),
        };
        let plain = at(settings.endpoint.as_ref())?;
        Ok(Self {
            bucket: settings.bucket.clone(),
            store: build(plain.clone().with_checksum_algorithm(Checksum::SHA256))?,
            plain: build(plain)?,
            public: build(at(settings.public_endpoint.as_ref().or(settings.endpoint.as_ref()))?)?,
            http: ReqwestConnector::default().connect(&options.with_timeout(SOON)).map_err(Error::internal)?,
        })
    }

    fn refused(&self, error: &(dyn error::Error + 'static)) -> Error {
        unavailable(format!("bucket {}: {}", self.bucket, reason(error)))
    }

    /// What it means when the store refuses. That nothing is there can also mean that there is no bucket.
    async fn failed(&self, error: object_store::Error) -> Error {
        match error {
            object_store::Error::NotFound { .. } => self.check().await.err().unwrap_or(Error::NotFound(Noun::Object)),
            error => self.refused(&error),
        }
    }

    /// The answer to a request that moves no content.
    async fn soon<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        match timeout(SOON, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failed(error).await),
            Err(_) => Err(unavailable(format!("bucket {}: no answer in time", self.bucket))),
        }
    }

    /// The answer to a request that moves content: it may take long, as long as the store is there.
    async fn patiently<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        tokio::select! {
            answer = request => answer,
            () = self.vanished() => Err(generic("no answer, and none to a simple question either".into())),
        }
    }

    /// Waits until the store doesn't answer even a simple question. That it refuses is an answer.
    async fn vanished(&self) {
        loop {
            sleep(DOUBT).await;
            let answered = async {
                while self.exchange(&Path::default(), &FIRST_OBJECT).await.is_err() {
                    sleep(Duration::from_millis(500)).await;
                }
            };
            if timeout(SIGN_OF_LIFE, answered).await.is_err() {
                return;
            }
        }
    }

    /// Asks what the client library has no question for, and asks again when that fails in passing.
    async fn ask<T: DeserializeOwned>(&self, path: &Path, query: &[(&str, &str)]) -> object_store::Result<T> {
        let asked = async {
            let (started, mut pause) = (Instant::now(), Duration::from_millis(100));
            loop {
                match self.ask_once(path, query).await {
                    Err(object_store::Error::Generic { .. }) if started.elapsed() < TRYING => {
                        let [jitter] = random_bytes();
                        sleep(pause.mul_f64(0.5 + f64::from(jitter) / 255.)).await;
                        pause = Duration::from_secs(2).min(pause * 2);
                    }
                    answer => return answer,
                }
            }
        };
        timeout(SOON, asked).await.unwrap_or_else(|_| Err(generic("no answer in time".into())))
    }

    async fn ask_once<T: DeserializeOwned>(&self, path: &Path, query: &[(&str, &str)]) -> object_store::Result<T> {
        let (status, text) = self.exchange(path, query).await?;
        let (path, source) = (path.to_string(), format!("{status}: {text}").into());
        match status {
            200..300 => quick_xml::de::from_str(&text).map_err(|error| generic(Box::new(error))),
            404 => Err(object_store::Error::NotFound { path, source }),
            429 | 500.. => Err(generic(source)),
            _ => Err(object_store::Error::PermissionDenied { path, source }),
        }
    }

    /// Sends a GET; answers status and text.
    async fn exchange(&self, path: &Path, query: &[(&str, &str)]) -> object_store::Result<(u16, String)> {
        let options = SignedUrlOptions::new().with_query(query.iter().copied());
        let url = self.plain.signed_url_opts(Method::GET, path, SOON, &options).await?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(|error| generic(Box::new(error)))?;
        let answer = self.http.execute(request).await.map_err(|error| generic(error.into()))?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        let mut pieces = answer.into_body().bytes_stream();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece.map_err(|error| generic(error.into()))?);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Makes an object of parts that are there.
    async fn complete(&self, path: &Path, id: &String, parts: Vec<PartId>, size: u64) -> Result<()> {
        let Err(error) = self.patiently(self.store.complete_multipart(path, id, parts)).await else { return Ok(()) };
        // The answer to an attempt before this may have been lost: most likely when the store knows no such upload (any more).
        let patience = if matches!(error, object_store::Error::NotFound { .. }) { SOON } else { TIDYING };
        match timeout(patience, self.is_there(path, size)).await {
            Ok(Ok(true)) => Ok(()),
            // It will not help to ask again. SeaweedFS 4.48 does so when the last part, being small, was sent twice.
            _ if ["EntityTooSmall", "InvalidPart"].iter().any(|code| reason(&error).starts_with(code)) => {
                Err(Error::invalid("parts", format!("the storage can't put them together ({}): begin another upload", reason(&error))))
            }
            _ => Err(self.failed(error).await),
        }
    }

    async fn is_there(&self, path: &Path, size: u64) -> Result<bool> {
        match self.soon(self.plain.head(path)).await {
            Ok(meta) => Ok(meta.size == size),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn abort(&self, path: &Path, id: &String) -> Result<()> {
        match self.soon(self.plain.abort_multipart(path, id)).await {
            Err(Error::NotFound(_)) => Ok(()),
            aborted => aborted,
        }
    }

    /// The parts that have arrived, by their numbers.
    async fn list_parts(&self, path: &Path, id: &str) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut after = String::from("0");
        loop {
            let asked = self.ask(path, &[("uploadId", id), ("part-number-marker", &after)]).await;
            let page: PartsPage = match asked {
                Ok(page) => page,
                Err(error) => return Err(self.failed(error).await),
            };
            parts.extend(page.parts);
            match page.next_part_number_marker {
                Some(next) if page.is_truncated && next != after => after = next,
                _ => return Ok(parts),
            }
        }
    }
}

impl ObjectStorage for S3Storage {
    fn put<'a>(&'a self, key: &'a str, content: &'a SpooledContent) -> BoxFuture<'a, Result<()>> {
        async move {
            let path = object_path(key)?;
            if let Some(bytes) = content.in_memory() {
                return match self.patiently(self.store.put(&path, bytes.clone().into())).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(self.failed(error).await),
                };
            }
            let stop = CancellationToken::new();
            // When nobody waits any more, the task stops sending, and then takes back what was sent.
            let _stopped = stop.clone().drop_guard();
            let sending = Sending { storage: self.clone(), path, content: content.clone(), stop };
            tokio::spawn(sending.put()).await.map_err(Error::internal)?
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Object>> {
        async move {
            let path = object_path(key)?;
            let beyond = |size| Error::internal(format!("bytes {range:?} of an object of {size} bytes"));
            // No request can ask for nothing.
            if let Some(nothing) = range.as_ref().filter(|range| range.is_empty()) {
                let size = self.head(key).await?;
                let object = Object { size, bytes: stream::empty().boxed() };
                return if nothing.end <= size { Ok(object) } else { Err(beyond(size)) };
            }
            let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
            let found = self.soon(self.store.get_opts(&path, options)).await?;
            let (size, found_range) = (found.meta.size, found.range.clone());
            if range.as_ref().is_some_and(|range| *range != found_range) {
                return Err(beyond(size));
            }
            Ok(Object { size, bytes: exactly(found_range.end - found_range.start, in_time(found.into_stream())) })
        }
        .boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<u64>> {
        async move { Ok(self.soon(self.plain.head(&object_path(key)?)).await?.size) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            match self.soon(self.plain.delete(&object_path(key)?)).await {
                Err(Error::NotFound(_)) => Ok(()),
                deleted => deleted,
            }
        }
        .boxed()
    }

    fn copy<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            match self.patiently(self.plain.copy(&object_path(from)?, &object_path(to)?)).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.failed(error).await),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<ObjectEntry>> {
        if !is_prefix(prefix) {
            return stream::once(async move { Err(bad_key(prefix)) }).boxed();
        }
        let entries = in_time(self.plain.list(Some(&Path::from(prefix))));
        entries.map_ok(|meta| ObjectEntry { key: meta.location.into(), size: meta.size }).map_err(|error| self.refused(&error)).boxed()
    }

    fn settling_time(&self) -> Duration {
        SETTLING_TIME
    }

    fn list_unfinished<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<Unfinished>> {
        if !is_prefix(prefix) {
            return stream::once(async move { Err(bad_key(prefix)) }).boxed();
        }
        let prefix = format!("{prefix}/");
        let first = Some((String::new(), String::new()));
        let pages = stream::try_unfold(first, move |markers| {
            let prefix = prefix.clone();
            async move {
                let Some((key, id)) = markers else { return Ok::<_, Error>(None) };
                let mut query = vec![("uploads", ""), ("prefix", &prefix)];
                if !key.is_empty() {
                    query.extend([("key-marker", key.as_str()), ("upload-id-marker", &id)]);
                }
                let page: UploadsPage = self.ask(&Path::default(), &query).await.map_err(|error| self.refused(&error))?;
                let next = page.next_key_marker.zip(page.next_upload_id_marker);
                let next = next.filter(|next| page.is_truncated && *next != (key, id));
                let uploads: Vec<_> = page.uploads.into_iter().map(UploadEntry::parse).collect();
                Ok(Some((stream::iter(uploads), next)))
            }
        });
        pages.try_flatten().boxed()
    }

    fn abort_unfinished<'a>(&'a self, unfinished: &'a Unfinished) -> BoxFuture<'a, Result<()>> {
        async move { self.abort(&object_path(&unfinished.key)?, &unfinished.upload_id).await }.boxed()
    }

    fn signed_url<'a>(&'a self, key: &'a str, life: Duration, headers: &'a ContentHeaders) -> BoxFuture<'a, Result<DownloadUrl>> {
        async move {
            let ContentHeaders { content_type, content_disposition } = headers;
            let options = SignedUrlOptions::new()
                .with_query([("response-content-type", content_type), ("response-content-disposition", content_disposition)]);
            let life = life.min(LONGEST_LIFE);
            let url = self.soon(self.public.signed_url_opts(Method::GET, &object_path(key)?, life, &options)).await?;
            Ok(DownloadUrl::Store(url.into()))
        }
        .boxed()
    }

    /// Asks for the first object. That needs the bucket, and credentials that may list it.
    fn check(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            let _: Anything = self.ask_once(&Path::default(), &FIRST_OBJECT).await.map_err(|error| self.refused(&error))?;
            Ok(())
        }
        .boxed()
    }

    fn direct_uploads(&self) -> Option<&dyn DirectUploads> {
        Some(self)
    }
}

impl DirectUploads for S3Storage {
    fn begin<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<String>> {
        async move { self.soon(self.plain.create_multipart(&object_path(key)?)).await }.boxed()
    }

    fn part_url<'a>(&'a self, key: &'a str, id: &'a str, number: u32, size: u64, life: Duration) -> BoxFuture<'a, Result<String>> {
        async move {
            let options = SignedUrlOptions::new().with_query([("partNumber", number.to_string()), ("uploadId", id.to_owned())]);
            let life = life.min(LONGEST_LIFE);
            let url = self.soon(self.public.signed_url_opts(Method::PUT, &object_path(key)?, life, &options)).await?;
            let credential = self.soon(self.public.credentials().get_credential()).await?;
            bind_length(&url, size, &credential.secret_key)
        }
        .boxed()
    }

    fn complete<'a>(&'a self, key: &'a str, id: &'a str, sizes: &'a [u64]) -> BoxFuture<'a, Result<()>> {
        async move {
            let path = object_path(key)?;
            let size = sizes.iter().sum();
            let parts = match self.list_parts(&path, id).await {
                Ok(parts) => parts,
                // It is complete already, or there is no such upload.
                Err(error @ Error::NotFound(_)) => return if self.is_there(&path, size).await? { Ok(()) } else { Err(error) },
                Err(error) => return Err(error),
            };
            if let Some(problem) = difference(&parts, sizes) {
                return if self.is_there(&path, size).await? { Ok(()) } else { Err(Error::invalid("parts", problem)) };
            }
            let parts = parts.into_iter().map(|part| PartId { content_id: part.e_tag }).collect();
            self.complete(&path, &id.to_owned(), parts, size).await
        }
        .boxed()
    }

    fn abort<'a>(&'a self, key: &'a str, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move { self.abort(&object_path(key)?, &id.to_owned()).await }.boxed()
    }
}

/// Content on its way from the spool to the store, in a task of its own.
struct Sending {
    storage: S3Storage,
    path: Path,
    content: SpooledContent,
    /// Nobody wants it any more, or a part of it failed.
    stop: CancellationToken,
}

impl Sending {
    async fn put(self) -> Result<()> {
        let (Self { storage, path, content, .. }, size) = (&self, self.content.size);
        let part = part_size(size)?;
        if size <= part {
            let (store, path) = (storage.store.clone(), path.clone());
            return self.send(0..size, |payload| async move { store.put(&path, payload).await }).await?.map(drop).ok_or_else(given_up);
        }
        let id = storage.soon(storage.store.create_multipart(path)).await?;
        // All are waited for, failed or not: after an abort none may arrive.
        let starts = (0..size).step_by(usize::try_from(part).map_err(Error::internal)?);
        let parts: Vec<Result<Option<PartId>>> = stream::iter(starts.enumerate())
            .map(|(index, start)| {
                let (store, path, id) = (storage.store.clone(), path.clone(), id.clone());
                self.send(start..cmp::min(start + part, content.size), move |payload| async move {
                    store.put_part(&path, &id, index, payload).await
                })
            })
            .buffered(PARTS_AT_ONCE)
            .collect()
            .await;
        // What failed says more than what was stopped because of it.
        let stored = match parts.into_iter().collect::<Result<Vec<_>>>().map(|parts| parts.into_iter().collect()) {
            Ok(Some(parts)) => storage.complete(path, &id, parts, size).await,
            Ok(None) => Err(given_up()),
            Err(error) => Err(error),
        };
        if stored.is_err() {
            let (storage, path) = (storage.clone(), path.clone());
            let aborting = tokio::spawn(async move {
                if let Err(error) = storage.abort(&path, &id).await {
                    tracing::warn!(error = &error as &dyn error::Error, "the parts of a failed upload are left to the collector");
                }
            });
            // It goes on when nobody waits for it any more.
            let _ = timeout(TIDYING, aborting).await;
        }
        // What became of the parts is nothing to whoever sent the content.
        stored.map_err(|error| match error {
            Error::NotFound(_) | Error::Invalid(_) => unavailable("the parts of an upload are gone"),
            error => error,
        })
    }

    /// Reads, hashes and sends these bytes, on a thread that may block. Nothing when it was stopped.
    async fn send<T: Send + 'static, F: Future<Output = object_store::Result<T>>>(
        &self,
        range: Range<u64>,
        request: impl FnOnce(PutPayload) -> F + Send + 'static,
    ) -> Result<Option<T>> {
        let length = usize::try_from(range.end - range.start).map_err(Error::internal)?;
        let units = u32::try_from(length.div_ceil(IN_FLIGHT_UNIT)).map_err(Error::internal)?;
        let memory = IN_FLIGHT.acquire_many(units).await.map_err(Error::internal)?;
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        let (storage, content, stop, runtime) = (self.storage.clone(), self.content.clone(), self.stop.clone(), Handle::current());
        let sending = spawn_blocking(move || {
            let mut buffer = BUFFERS.lend(length);
            content.read(range.start, &mut buffer.bytes).map_err(failed)?;
            let payload = Bytes::from_owner(buffer).into();
            let sent = runtime.block_on(stop.run_until_cancelled(pin!(storage.patiently(request(payload)))));
            drop(memory);
            if IN_FLIGHT.available_permits() == MOST_IN_FLIGHT / IN_FLIGHT_UNIT {
                BUFFERS.clear();
            }
            Ok(sent)
        });
        let sent = match sending.await.map_err(Error::internal)? {
            Ok(None) => Ok(None),
            Ok(Some(Ok(sent))) => Ok(Some(sent)),
            Ok(Some(Err(error))) => Err(self.storage.failed(error).await),
            Err(error) => Err(error),
        };
        failpoint!("object.sent");
        if sent.is_err() {
            self.stop.cancel();
        }
        sent
    }
}

/// Signs a URL for PUT anew, so that it takes a body of exactly this size: the client library refuses to sign `content-length`.
/// Signature Version 4 as Amazon S3's "Authenticating Requests: Using Query Parameters" has it.
fn bind_length(url: &Url, size: u64, secret: &str) -> Result<String> {
    const SIGNED: &str = "content-length;host";
    let mut query: Vec<String> = url.query().unwrap_or_default().split('&').map(str::to_owned).collect();
    query.retain(|pair| !pair.starts_with("X-Amz-Signature=") && !pair.starts_with("X-Amz-SignedHeaders="));
    query.push(format!("X-Amz-SignedHeaders={}", SIGNED.replace(';', "%3B")));
    query.sort_unstable();
    let query = query.join("&");
    let parameter = |name| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default();
    let (date, credential) = (parameter("X-Amz-Date"), parameter("X-Amz-Credential"));
    let (_, scope) = credential.split_once('/').ok_or_else(|| Error::internal("a signed URL names its credential"))?;
    let (path, host) = (url.path(), &url[Position::BeforeHost..Position::AfterPort]);
    let canonical = format!("PUT\n{path}\n{query}\ncontent-length:{size}\nhost:{host}\n\n{SIGNED}\nUNSIGNED-PAYLOAD");
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let mac = |key: &[u8], text: &str| Ok::<_, Error>(hmac(key)?.chain_update(text).finalize().into_bytes());
    let key = scope.split('/').try_fold(format!("AWS4{secret}").into_bytes(), |key, part| Ok::<_, Error>(mac(&key, part)?.to_vec()))?;
    let signature = hex::encode(mac(&key, &to_sign)?);
    Ok(format!("{}?{query}&X-Amz-Signature={signature}", &url[..Position::AfterPath]))
}

fn hmac(key: &[u8]) -> Result<Hmac<Sha256>> {
    Hmac::new_from_slice(key).map_err(Error::internal)
}

/// The size of the parts of an object.
fn part_size(size: u64) -> Result<u64> {
    let part = size.div_ceil(MOST_PARTS).div_ceil(PART) * PART;
    if part <= MOST_IN_FLIGHT as u64 { Ok(part.max(PART)) } else { Err(Error::TooLarge { limit: MOST_IN_FLIGHT as u64 * MOST_PARTS }) }
}

fn given_up() -> Error {
    Error::internal("the upload was given up")
}

/// What a stream has, and an error when the next of it is too long in coming.
fn in_time<T: Send + 'static>(stream: BoxStream<'static, object_store::Result<T>>) -> BoxStream<'static, object_store::Result<T>> {
    let next = |mut stream: BoxStream<'static, object_store::Result<T>>| async move {
        let next = timeout(SILENCE, stream.try_next()).await.unwrap_or_else(|_| Err(generic("the answer breaks off".into())))?;
        Ok(next.map(|next| (next, stream)))
    };
    stream::try_unfold(stream, next).boxed()
}

/// The bytes that a stream has, in pieces; an error when it has fewer.
fn exactly(length: u64, bytes: BoxStream<'static, object_store::Result<Bytes>>) -> BoxStream<'static, Result<Bytes>> {
    let whole = stream::try_unfold((bytes, length), |(mut bytes, left)| async move {
        match bytes.try_next().await.map_err(|error| unavailable(reason(&error)))? {
            Some(piece) => {
                let left = left.checked_sub(piece.len() as u64).ok_or_else(|| unavailable("an object is longer than it should be"))?;
                Ok(Some((piece, (bytes, left))))
            }
            None if left > 0 => Err(unavailable(format!("an object ends {left} bytes early"))),
            None => Ok(None),
        }
    });
    let split = |mut piece: Bytes| {
        stream::iter(std::iter::from_fn(move || {
            let next = piece.split_to(piece.len().min(PIECE));
            (!next.is_empty()).then_some(Ok(next))
        }))
    };
    whole.map_ok(split).try_flatten().boxed()
}

/// How the parts that are there differ from those that should be.
fn difference(parts: &[Part], sizes: &[u64]) -> Option<String> {
    const SHOWN: usize = 20;
    let mut problems = Vec::new();
    for (number, size) in (1..).zip(sizes) {
        match parts.iter().find(|part| part.part_number == number) {
            None => problems.push(format!("part {number} is missing")),
            Some(part) if part.size != *size => problems.push(format!("part {number} has {} bytes instead of {size}", part.size)),
            Some(_) => {}
        }
    }
    let unexpected = parts.iter().filter(|part| part.part_number == 0 || part.part_number as usize > sizes.len());
    problems.extend(unexpected.map(|part| format!("part {} is unexpected", part.part_number)));
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    (!problems.is_empty()).then(|| problems.join(", "))
}

fn object_path(key: &str) -> object_store::Result<Path, Error> {
    check_key(key)?;
    Ok(Path::from(key))
}

/// The URL of a bucket's store, with the bucket in its name where that is how it is named.
fn bucket_endpoint(endpoint: &str, settings: &S3Settings) -> Result<String> {
    let mut url = Url::parse(endpoint).map_err(Error::internal)?;
    if !settings.path_style {
        let host = format!("{}.{}", settings.bucket, url.host_str().unwrap_or_default());
        url.set_host(Some(&host)).map_err(Error::internal)?;
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn generic(source: Box<dyn error::Error + Send + Sync>) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source }
}

fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { dependency: "object storage", source: reason.into().into() }
}

/// What went wrong, on one line: what the store said, or the innermost cause. Neither holds a URL or a secret.
fn reason(error: &(dyn error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let text = causes.last().map(ToString::to_string).unwrap_or_default();
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0.to_owned())
    };
    let said = match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text,
    };
    said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// An answer of which it is enough that it came.
#[derive(Deserialize)]
struct Anything {}

/// The answer to ListParts.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PartsPage {
    #[serde(default)]
    is_truncated: bool,
    next_part_number_marker: Option<String>,
    #[serde(default, rename = "Part")]
    parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    part_number: u32,
    #[serde(rename = "ETag")]
    e_tag: String,
    size: u64,
}

/// The answer to ListMultipartUploads.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadsPage {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
    #[serde(default, rename = "Upload")]
    uploads: Vec<UploadEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadEntry {
    key: String,
    upload_id: String,
    initiated: String,
}

impl UploadEntry {
    fn parse(self) -> Result<Unfinished> {
        let began_at: jiff::Timestamp = self.initiated.parse().map_err(|error| unavailable(format!("an upload's beginning: {error}")))?;
        Ok(Unfinished { key: self.key, upload_id: self.upload_id, began_at: Timestamp::from_micros(began_at.as_microsecond()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_they_are_never_too_many() {
        for (size, part) in [(1, PART), (PART, PART), (PART * MOST_PARTS, PART), (PART * MOST_PARTS + 1, 2 * PART)] {
            assert_eq!(part_size(size).unwrap(), part, "{size}");
        }
        let most = MOST_IN_FLIGHT as u64 * MOST_PARTS;
        assert_eq!(part_size(most).unwrap(), MOST_IN_FLIGHT as u64);
        assert!(matches!(part_size(most + 1), Err(Error::TooLarge { limit }) if limit == most));
    }

    #[test]
    fn a_difference_in_parts_is_told_part_by_part() {
        let part = |part_number, size| Part { part_number, e_tag: String::new(), size };
        assert_eq!(difference(&[part(1, 5), part(2, 3)], &[5, 3]), None);
        let told = difference(&[part(1, 4), part(3, 1)], &[5, 3]).unwrap();
        assert_eq!(told, "part 1 has 4 bytes instead of 5, part 2 is missing, part 3 is unexpected");
        assert!(difference(&[], &[1; 10_000]).unwrap().ends_with("part 20 is missing, and 9980 more"));
    }

    #[tokio::test]
    async fn an_object_that_ends_early_is_an_error() {
        let pieces = |sizes: &[usize]| stream::iter(sizes.iter().map(|size| Ok(Bytes::from(vec![7; *size]))).collect::<Vec<_>>()).boxed();
        let whole: Vec<Bytes> = exactly(600_000, pieces(&[400_000, 200_000])).try_collect().await.unwrap();
        assert!(whole.iter().all(|piece| piece.len() <= PIECE) && whole.concat().len() == 600_000);
        for sizes in [&[1][..], &[], &[6]] {
            assert!(exactly(5, pieces(sizes)).try_collect::<Vec<_>>().await.is_err(), "{sizes:?}");
        }
    }

    #[test]
    fn what_a_store_says_becomes_one_line() {
        let said = "403 Forbidden: <?xml?>\n<Error><Code>InvalidAccessKeyId</Code><Message>No\n such key</Message></Error>";
        assert_eq!(reason(&*Box::<dyn error::Error>::from(said)), "InvalidAccessKeyId: No such key");
        assert_eq!(reason(&std::io::Error::other("connection\nrefused")), "connection refused");
    }

    #[test]
    fn a_bucket_is_named_in_the_path_or_in_the_host() {
        let settings = |path_style| S3Settings {
            endpoint: None,
            public_endpoint: None,
            region: "us-east-1".to_owned(),
            bucket: "b".to_owned(),
            credentials: None,
            path_style,
        };
        assert_eq!(bucket_endpoint("https://s3.example.com:9000/", &settings(true)).unwrap(), "https://s3.example.com:9000");
        assert_eq!(bucket_endpoint("https://s3.example.com:9000/", &settings(false)).unwrap(), "https://b.s3.example.com:9000");
    }
}
