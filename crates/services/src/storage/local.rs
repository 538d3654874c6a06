//! Objects on the local file system.

mod files;
#[cfg(test)]
mod tests;

use std::{
    io::ErrorKind,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use domain::{Error, Noun, Result, failpoint};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use object_store::{ObjectStore, local::LocalFileSystem};
use rustix::fs::{Access, access, statvfs};

use self::files::{link, open, prepare, read, remove, sync_directories};
use super::{
    ContentHeaders, DownloadUrl, Object, ObjectEntry, ObjectStorage, bad_key, blocking, check_key, failed, is_prefix, unavailable,
};
use crate::storage::spool::SpooledContent;

/// Objects as files below a directory of the local file system. The key is the path.
///
/// Files have mode 0600, directories 0700. Several processes may share the directory: an `flock` on it separates the creation of
/// directories from the removal of empty ones.
pub struct LocalStorage {
    root: PathBuf,
    files: LocalFileSystem,
}

impl LocalStorage {
    /// Opens the store in this directory, and creates the directory when it is missing. Blocks: meant for the start of a process.
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
