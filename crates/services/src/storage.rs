//! Object storage: the contract of all stores, and what they have in common.

pub(crate) mod buffers;
pub(crate) mod content_disposition;
mod local;
mod s3;
pub(crate) mod signed_urls;
pub(crate) mod spool;

use std::{
    io::{self, ErrorKind},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
#[cfg(doc)]
use domain::Noun;
use domain::{Dependency, Error, Filename, MimeType, Result, Timestamp};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use tokio::task::spawn_blocking;

pub use self::{
    local::LocalStorage,
    s3::{S3Credentials, S3Settings, S3Storage},
};

use crate::storage::{content_disposition::content_disposition, spool::SpooledContent};

/// A store of immutable objects: bytes under a key, written once.
///
/// A key is `tenants/…`: segments of `[a-z0-9_-]`, at most 500 bytes; any other is an internal error. A store that cannot be
/// reached, or is full, is [`Error::Unavailable`].
pub trait ObjectStorage: Send + Sync + 'static {
    /// Stores content under a key that was never used before. After success, the object survives a power failure. After an error, or
    /// when the future is dropped, the object may exist or not, but never in part.
    fn put<'a>(&'a self, key: &'a str, content: &'a SpooledContent) -> BoxFuture<'a, Result<()>>;

    /// Reads an object, or a range of it, which must lie within the object. [`Noun::Object`] is not found when there is none.
    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Object>>;

    /// The size of an object in bytes. [`Noun::Object`] is not found when there is none.
    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<u64>>;

    /// Deletes an object; succeeds when there is none. After success, the object does not come back with a power failure.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Copies an object of at most 5 GiB to a key that was never used before, with the guarantees of [`put`](Self::put).
    /// [`Noun::Object`] is not found when there is none.
    fn copy<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<()>>;

    /// The objects whose keys begin with these whole segments, in no order. An object that is put or deleted at the same time may be
    /// listed or not.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<ObjectEntry>>;

    /// A URL that permits its holder to download the object with these headers until `life` has passed.
    fn signed_url<'a>(&'a self, key: &'a str, life: Duration, headers: &'a ContentHeaders) -> BoxFuture<'a, Result<DownloadUrl>>;

    /// Fails when objects cannot be stored at present.
    fn check(&self) -> BoxFuture<'_, Result<()>>;

    /// How long after its success or failure a put may still take effect: when a client retries a request, the store may execute the
    /// first one after it has answered the second. Keys marked for deletion are remembered for this time.
    fn late_write_window(&self) -> Duration {
        Duration::ZERO
    }

    /// The uploads below these whole segments that are not objects yet, in stores that have such uploads.
    fn list_unfinished<'a>(&'a self, _prefix: &'a str) -> BoxStream<'a, Result<UnfinishedUpload>> {
        stream::empty().boxed()
    }

    /// Removes the parts of an upload that is not an object yet; succeeds when there are none.
    fn abort_unfinished<'a>(&'a self, _upload: &'a UnfinishedUpload) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    /// Uploads from clients directly to the store, in stores that support them.
    fn direct_uploads(&self) -> Option<&dyn DirectUploads> {
        None
    }
}

/// Multipart uploads whose parts clients send to the store by signed URLs. Until it is complete, an upload is
/// [unfinished](ObjectStorage::list_unfinished).
///
/// Every part but the last has at least 5 MiB, and there are at most 10,000.
pub trait DirectUploads: Send + Sync {
    /// Begins an upload under a key that was never used before; returns its id.
    fn begin<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<String>>;

    /// A URL that accepts a PUT of a part of exactly this size until `life` (at most 7 days) has passed or the upload ends. Parts are
    /// numbered from 1; a part that is sent again replaces the previous one.
    fn part_url<'a>(&'a self, key: &'a str, id: &'a str, number: u32, size: u64, life: Duration) -> BoxFuture<'a, Result<String>>;

    /// Assembles the object from the parts, which must have these sizes; succeeds when it is assembled already. Invalid while a part
    /// is missing, has another size or is unexpected; [`Noun::Object`] is not found when there is no such upload.
    fn complete<'a>(&'a self, key: &'a str, id: &'a str, sizes: &'a [u64]) -> BoxFuture<'a, Result<()>>;

    /// Aborts an upload and removes its parts; succeeds when there is none.
    fn abort<'a>(&'a self, key: &'a str, id: &'a str) -> BoxFuture<'a, Result<()>>;
}

/// A multipart upload that is not an object yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The key of the object to be.
    pub key: String,
    /// Its id in the store.
    pub upload_id: String,
    /// When it began.
    pub began_at: Timestamp,
}

/// An object being read.
pub struct Object {
    /// The size of the whole object in bytes, independent of the requested range.
    pub size: u64,
    /// The requested bytes in chunks of at most 256 KiB, at most two of them read ahead.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The headers that tell a client what a download is and how to treat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHeaders {
    /// The value of `Content-Type`.
    pub content_type: String,
    /// The value of `Content-Disposition`.
    pub content_disposition: String,
}

impl ContentHeaders {
    /// The headers of a document.
    #[must_use]
    pub fn of(filename: &Filename, mime_type: &MimeType) -> Self {
        Self { content_type: mime_type.to_string(), content_disposition: content_disposition(filename, mime_type) }
    }
}

/// The target of a signed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownloadUrl {
    /// The store.
    Store(String),
    /// Our own API, which signs the URL with a [`UrlSigner`](crate::UrlSigner): the store has no URLs.
    Api,
}

/// The maximum size of the chunks in which objects are read.
const CHUNK_SIZE: usize = 256 * 1024;

/// Fails unless this is an object key, which has more than one segment.
fn check_key(key: &str) -> Result<()> {
    if is_prefix(key) && key.contains('/') { Ok(()) } else { Err(bad_key(key)) }
}

/// Whether these are segments of our keys, which cannot lead out of the store.
fn is_prefix(text: &str) -> bool {
    let is_segment =
        |segment: &str| !segment.is_empty() && segment.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    text.len() <= 500 && text.split('/').next() == Some("tenants") && text.split('/').all(is_segment)
}

fn bad_key(key: &str) -> Error {
    Error::internal(format!("not an object key: {key:?}"))
}

/// Runs blocking work on a thread for it. It starts at once, before the future is polled.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send + 'static {
    let work = spawn_blocking(work);
    async { work.await.map_err(Error::internal)?.map_err(failed) }
}

/// The error for callers when the file system fails.
pub(crate) fn failed(error: io::Error) -> Error {
    match error.kind() {
        // We choose all names, and never choose a name twice.
        ErrorKind::AlreadyExists => Error::internal(error),
        _ => unavailable(error),
    }
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Unavailable { dependency: Dependency::ObjectStorage, source: error.into() }
}
