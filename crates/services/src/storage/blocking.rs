//! File work on threads of its own, and the error for callers when storage fails.

use std::io::{self, ErrorKind};

use domain::{Dependency, Error, Result};
use tokio::task::spawn_blocking;

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

pub(crate) fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Unavailable { dependency: Dependency::ObjectStorage, source: error.into() }
}
