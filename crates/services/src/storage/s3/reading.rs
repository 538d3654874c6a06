//! The bytes of objects on their way from the store.

use std::{iter, time::Duration};

use bytes::Bytes;
use domain::Result;
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use tokio::time::timeout;

use super::requests::{generic, reason, unavailable};
use crate::storage::CHUNK_SIZE;

/// How long the store may pause in the middle of a response.
const READ_IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The items of a stream, and an error when the next one takes too long.
pub(super) fn with_idle_timeout<T: Send + 'static>(
    stream: BoxStream<'static, object_store::Result<T>>,
) -> BoxStream<'static, object_store::Result<T>> {
    let next = |mut stream: BoxStream<'static, object_store::Result<T>>| async move {
        let next = timeout(READ_IDLE_TIMEOUT, stream.try_next()).await;
        let next = next.unwrap_or_else(|_| Err(generic("the response breaks off".into())))?;
        Ok(next.map(|next| (next, stream)))
    };
    stream::try_unfold(stream, next).boxed()
}

/// The bytes of a stream in chunks of at most [`CHUNK_SIZE`], and an error when there are more or fewer than `length`.
pub(super) fn exact_chunks(length: u64, bytes: BoxStream<'static, object_store::Result<Bytes>>) -> BoxStream<'static, Result<Bytes>> {
    let whole = stream::try_unfold((bytes, length), |(mut bytes, left)| async move {
        match bytes.try_next().await.map_err(|error| unavailable(reason(&error)))? {
            Some(received) => {
                let left = left.checked_sub(received.len() as u64).ok_or_else(|| unavailable("an object is longer than it should be"))?;
                Ok(Some((received, (bytes, left))))
            }
            None if left > 0 => Err(unavailable(format!("an object ends {left} bytes early"))),
            None => Ok(None),
        }
    });
    let split = |mut received: Bytes| {
        stream::iter(iter::from_fn(move || {
            let chunk = received.split_to(received.len().min(CHUNK_SIZE));
            (!chunk.is_empty()).then_some(Ok(chunk))
        }))
    };
    whole.map_ok(split).try_flatten().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_that_ends_early_is_an_error() {
        let received = |sizes: &[usize]| stream::iter(sizes.iter().map(|size| Ok(Bytes::from(vec![7; *size]))).collect::<Vec<_>>()).boxed();
        let whole: Vec<Bytes> = exact_chunks(600_000, received(&[400_000, 200_000])).try_collect().await.unwrap();
        assert!(whole.iter().all(|chunk| chunk.len() <= CHUNK_SIZE) && whole.concat().len() == 600_000);
        for sizes in [&[1][..], &[], &[6]] {
            assert!(exact_chunks(5, received(sizes)).try_collect::<Vec<_>>().await.is_err(), "{sizes:?}");
        }
    }
}
