//! Object storage: what every store promises, and what the stores have in common.

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
use domain::{Error, Filename, MimeType, Result, Timestamp};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use tokio::task::spawn_blocking;

pub use self::{
    local::LocalStorage,
    s3::{S3Settings, S3Storage},
};

use crate::storage::{content_disposition::content_disposition, spool::SpooledContent};

/// Where objects are kept: bytes under a key, written once and never changed.
///
/// A key is `tenants/…`: segments of `[a-z0-9_-]`, at most 500 bytes; any other is an internal error. A store that can't be
/// reached, or is full, is [`Error::Unavailable`].
pub trait ObjectStorage: Send + Sync + 'static {
    /// Stores content under a key that was never used before. Once it answers, the object survives a power failure. When it
    /// fails, or its future is dropped, the object may be there or not; no part of it ever is.
    fn put<'a>(&'a self, key: &'a str, content: &'a SpooledContent) -> BoxFuture<'a, Result<()>>;

    /// Reads an object, or these bytes of it, which must lie within it. [`Noun::Object`] is not found when there is none.
    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Object>>;

    /// The size of an object in bytes. [`Noun::Object`] is not found when there is none.
    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<u64>>;

    /// Deletes an object; succeeds when there is none. Once it answers, the object stays away after a power failure too.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Stores an object under a second key, one that was never used before, as [`put`](Self::put) would: at most 5 GiB.
    /// [`Noun::Object`] is not found when there is none.
    fn copy<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<()>>;

    /// The objects whose keys begin with these whole segments, in no order. One that is put or deleted meanwhile may be
    /// listed or not.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxStream<'a, Result<ObjectEntry>>;

    /// A URL that lets whoever has it download the object until `life` is over, presented like this.
    fn signed_url<'a>(&'a self, key: &'a str, life: Duration, headers: &'a ContentHeaders) -> BoxFuture<'a, Result<DownloadUrl>>;

    /// Fails when objects can't be stored at present.
    fn check(&self) -> BoxFuture<'_, Result<()>>;

    /// How long after a failure or an answer a put may still come to effect: in a store whose client sends a request again, the first
    /// one may arrive after the second was answered. For so long it is remembered what keys were given up.
    fn settling_time(&self) -> Duration {
        Duration::ZERO
    }

    /// What was begun under these whole segments and never became an object, in stores that keep such parts.
    fn list_unfinished<'a>(&'a self, _prefix: &'a str) -> BoxStream<'a, Result<Unfinished>> {
        stream::empty().boxed()
    }

    /// Removes the parts of an upload that never became an object; succeeds when there are none.
    fn abort_unfinished<'a>(&'a self, _unfinished: &'a Unfinished) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    /// How clients send content to the store themselves, where it lets them.
    fn direct_uploads(&self) -> Option<&dyn DirectUploads> {
        None
    }
}

/// Uploads in parts that clients send to the store by signed URLs. Until it is complete, an upload is
/// [unfinished](ObjectStorage::list_unfinished).
///
/// Every part but the last must have 5 MiB at least, and there are 10,000 at most.
pub trait DirectUploads: Send + Sync {
    /// Begins an upload under a key that was never used before; answers its id.
    fn begin<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<String>>;

    /// A URL to PUT a part of exactly this size to, until `life` (7 days at most) is over or the upload ends. Parts are counted
    /// from 1; one that is sent again replaces the one before.
    fn part_url<'a>(&'a self, key: &'a str, id: &'a str, number: u32, size: u64, life: Duration) -> BoxFuture<'a, Result<String>>;

    /// Makes the object of the parts, which must have these sizes; succeeds when that was done before. Invalid as long as a part is
    /// missing, has another size or should not be there; [`Noun::Object`] is not found when there is no such upload.
    fn complete<'a>(&'a self, key: &'a str, id: &'a str, sizes: &'a [u64]) -> BoxFuture<'a, Result<()>>;

    /// Gives an upload up and removes its parts; succeeds when there is none.
    fn abort<'a>(&'a self, key: &'a str, id: &'a str) -> BoxFuture<'a, Result<()>>;
}

/// An upload in parts that never became an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The key that it was for.
    pub key: String,
    /// The store's name for it.
    pub upload_id: String,
    /// When it began.
    pub began_at: Timestamp,
}

/// An object being read.
pub struct Object {
    /// The bytes of the whole object, however many of them are read.
    pub size: u64,
    /// What was asked for, in pieces of at most 256 KiB, with at most two read ahead.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
}

/// How a download presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHeaders {
    /// The value of `Content-Type`.
    pub content_type: String,
    /// The value of `Content-Disposition`.
    pub content_disposition: String,
}

impl ContentHeaders {
    /// The presentation of a document.
    #[must_use]
    pub fn of(filename: &Filename, mime_type: &MimeType) -> Self {
        Self { content_type: mime_type.to_string(), content_disposition: content_disposition(filename, mime_type) }
    }
}

/// Where a signed URL points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownloadUrl {
    /// At the store.
    Store(String),
    /// At our own API, which signs it with a [`UrlSigner`](crate::UrlSigner): the store has no URLs.
    Api,
}

/// Objects are read in pieces of this many bytes.
const PIECE: usize = 256 * 1024;

/// Whether it is a key of ours: more than the prefix of all.
fn check_key(key: &str) -> Result<()> {
    if is_prefix(key) && key.contains('/') { Ok(()) } else { Err(bad_key(key)) }
}

/// Whether these are segments of our keys: they can't lead out of the store.
fn is_prefix(text: &str) -> bool {
    let is_segment =
        |segment: &str| !segment.is_empty() && segment.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    text.len() <= 500 && text.split('/').next() == Some("tenants") && text.split('/').all(is_segment)
}

fn bad_key(key: &str) -> Error {
    Error::internal(format!("not an object key: {key:?}"))
}

/// Begins at once to do work that blocks, on a thread where it may.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send + 'static {
    let work = spawn_blocking(work);
    async { work.await.map_err(Error::internal)?.map_err(failed) }
}

/// What it means when the file system refuses.
pub(crate) fn failed(error: io::Error) -> Error {
    match error.kind() {
        // We choose every name, and no name is to be chosen twice.
        ErrorKind::AlreadyExists => Error::internal(error),
        _ => unavailable(error),
    }
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Unavailable { dependency: "object storage", source: error.into() }
}
