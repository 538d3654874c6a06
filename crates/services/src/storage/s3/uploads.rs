//! Content on its way from the spool to the store: one request for small content, several parts at once for large content.

use std::{
    cmp,
    ops::Range,
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use domain::{Error, Result, dyn_error, failpoint};
use futures_util::{StreamExt, stream};
use object_store::{
    ObjectStoreExt, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{S3Storage, requests::unavailable};
use crate::storage::{blocking::failed, buffers::BufferPool, spool::SpooledContent};

/// The minimum size of a part. Smaller content is stored with one request.
const MIN_PART_SIZE: u64 = 8 << 20;

/// The maximum number of parts of an object on Amazon S3.
const MAX_PARTS: u64 = 10_000;

/// The maximum of spooled bytes that the process holds in memory to send them.
const MAX_IN_FLIGHT: usize = 32 << 20;

/// How many parts of one object are sent at once: as many as [`MAX_IN_FLIGHT`] permits.
const PART_CONCURRENCY: usize = 4;

/// The unit of [`MAX_IN_FLIGHT`]. Each send holds a thread, so the limit also bounds the threads.
const IN_FLIGHT_UNIT: usize = 1 << 20;

/// How long the caller of a failed put waits for the removal of its parts.
pub(super) const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);

static IN_FLIGHT: Semaphore = Semaphore::const_new(MAX_IN_FLIGHT / IN_FLIGHT_UNIT);

/// The buffers that content is sent from. They are freed once nothing is in flight.
static BUFFERS: LazyLock<Arc<BufferPool>> = LazyLock::new(Arc::default);

impl S3Storage {
    /// Stores content that is in memory.
    pub(super) async fn put_bytes(&self, path: &Path, bytes: Bytes) -> Result<()> {
        match self.transfer(self.store.put(path, bytes.into())).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.translate(error).await),
        }
    }

    /// Stores content that is in a file.
    pub(super) async fn put_spooled(&self, path: Path, content: SpooledContent) -> Result<()> {
        let stop = CancellationToken::new();
        // When the caller drops the future, the task stops sending and then removes the parts.
        let _stop_on_drop = stop.clone().drop_guard();
        let upload = Upload { storage: self.clone(), path, content, stop };
        tokio::spawn(upload.run()).await.map_err(Error::internal)?
    }
}

/// The upload of one object, in a task of its own.
struct Upload {
    storage: S3Storage,
    path: Path,
    content: SpooledContent,
    /// Cancelled when the caller has gone away, or when a part has failed.
    stop: CancellationToken,
}

impl Upload {
    async fn run(self) -> Result<()> {
        let (storage, size) = (&self.storage, self.content.size);
        let part_size = part_size(size)?;
        if size <= part_size {
            return self.put().await;
        }
        let id = storage.request(storage.store.create_multipart(&self.path)).await?;
        let stored = match self.put_parts(&id, part_size).await {
            Ok(Some(parts)) => storage.complete_multipart(&self.path, &id, parts, size).await,
            Ok(None) => Err(cancelled()),
            Err(error) => Err(error),
        };
        if stored.is_err() {
            self.remove_parts(id).await;
        }
        // Callers do not know about parts.
        stored.map_err(|error| match error {
            Error::NotFound(_) | Error::Invalid(_) => unavailable("the parts of an upload are gone"),
            error => error,
        })
    }

    async fn put(&self) -> Result<()> {
        let (store, path) = (self.storage.store.clone(), self.path.clone());
        let sent = self.send(0..self.content.size, |payload| async move { store.put(&path, payload).await }).await?;
        sent.map(drop).ok_or_else(cancelled)
    }

    /// Sends all parts. Nothing when stopped; the error of a part takes precedence.
    async fn put_parts(&self, id: &str, part_size: u64) -> Result<Option<Vec<PartId>>> {
        let size = self.content.size;
        let starts = (0..size).step_by(usize::try_from(part_size).map_err(Error::internal)?);
        // Waits for all parts, failed or not: none may arrive after an abort.
        let parts: Vec<Result<Option<PartId>>> = stream::iter(starts.enumerate())
            .map(|(index, start)| self.put_part(id, index, start..cmp::min(start + part_size, size)))
            .buffered(PART_CONCURRENCY)
            .collect()
            .await;
        Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().collect())
    }

    async fn put_part(&self, id: &str, index: usize, range: Range<u64>) -> Result<Option<PartId>> {
        let (store, path, id) = (self.storage.store.clone(), self.path.clone(), id.to_owned());
        self.send(range, move |payload| async move { store.put_part(&path, &id, index, payload).await }).await
    }

    /// Removes the parts of a failed upload. It goes on when the caller does not wait for it any longer.
    async fn remove_parts(self, id: String) {
        let Self { storage, path, .. } = self;
        let removal = tokio::spawn(async move {
            if let Err(error) = storage.abort_multipart(&path, &id).await {
                tracing::warn!(error = dyn_error(&error), "cannot remove the parts of a failed upload; left to garbage collection");
            }
        });
        let _ = timeout(CLEANUP_TIMEOUT, removal).await;
    }

    /// Reads, hashes and sends a range of the content, on a thread that may block. Nothing when stopped.
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
            let mut buffer = BUFFERS.take(length);
            content.read(range.start, &mut buffer.bytes).map_err(failed)?;
            let payload = Bytes::from_owner(buffer).into();
            let sent = runtime.block_on(stop.run_until_cancelled(pin!(storage.transfer(request(payload)))));
            drop(memory);
            if IN_FLIGHT.available_permits() == MAX_IN_FLIGHT / IN_FLIGHT_UNIT {
                BUFFERS.clear();
            }
            Ok(sent)
        });
        let sent = match sending.await.map_err(Error::internal)? {
            Ok(None) => Ok(None),
            Ok(Some(Ok(sent))) => Ok(Some(sent)),
            Ok(Some(Err(error))) => Err(self.storage.translate(error).await),
            Err(error) => Err(error),
        };
        failpoint!("object.sent");
        if sent.is_err() {
            self.stop.cancel();
        }
        sent
    }
}

/// The size of the parts of an object.
fn part_size(size: u64) -> Result<u64> {
    let part = size.div_ceil(MAX_PARTS).div_ceil(MIN_PART_SIZE) * MIN_PART_SIZE;
    if part <= MAX_IN_FLIGHT as u64 {
        Ok(part.max(MIN_PART_SIZE))
    } else {
        Err(Error::TooLarge { limit: MAX_IN_FLIGHT as u64 * MAX_PARTS })
    }
}

fn cancelled() -> Error {
    Error::internal("the upload was cancelled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_with_the_object_to_limit_their_number() {
        let cases = [
            (1, MIN_PART_SIZE),
            (MIN_PART_SIZE, MIN_PART_SIZE),
            (MIN_PART_SIZE * MAX_PARTS, MIN_PART_SIZE),
            (MIN_PART_SIZE * MAX_PARTS + 1, 2 * MIN_PART_SIZE),
        ];
        for (size, part) in cases {
            assert_eq!(part_size(size).unwrap(), part, "{size}");
        }
        let largest = MAX_IN_FLIGHT as u64 * MAX_PARTS;
        assert_eq!(part_size(largest).unwrap(), MAX_IN_FLIGHT as u64);
        assert!(matches!(part_size(largest + 1), Err(Error::TooLarge { limit }) if limit == largest));
    }
}
