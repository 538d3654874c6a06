//! Multipart uploads: their completion, their removal, and those whose parts clients send by signed URLs.

use std::time::Duration;

use domain::{Error, Result};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use object_store::{
    ObjectStoreExt,
    multipart::{MultipartStore, PartId},
    path::Path,
    signer::{Method, SignedUrlOptions, Signer},
};
use tokio::time::timeout;

use super::{
    MAX_URL_LIFETIME, S3Storage, UnfinishedUpload, object_path,
    requests::{REQUEST_TIMEOUT, reason},
    responses::{Part, PartsPage, UploadEntry, UploadsPage},
    signing::bind_length,
    uploads::CLEANUP_TIMEOUT,
};
use crate::storage::DirectUploads;

impl S3Storage {
    /// Assembles an object from its parts.
    pub(super) async fn complete_multipart(&self, path: &Path, id: &String, parts: Vec<PartId>, size: u64) -> Result<()> {
        let Err(error) = self.transfer(self.store.complete_multipart(path, id, parts)).await else { return Ok(()) };
        // The response to a previous attempt may be lost, most likely when the store does not know the upload (any more).
        let limit = if matches!(error, object_store::Error::NotFound { .. }) { REQUEST_TIMEOUT } else { CLEANUP_TIMEOUT };
        match timeout(limit, self.has_object(path, size)).await {
            Ok(Ok(true)) => Ok(()),
            // A retry would not help. SeaweedFS 4.48 responds so when the last part, being small, was sent twice.
            _ if ["EntityTooSmall", "InvalidPart"].iter().any(|code| reason(&error).starts_with(code)) => {
                Err(Error::invalid("parts", format!("the storage cannot assemble them ({}): begin another upload", reason(&error))))
            }
            _ => Err(self.translate(error).await),
        }
    }

    /// Whether there is an object of this size.
    async fn has_object(&self, path: &Path, size: u64) -> Result<bool> {
        match self.request(self.plain.head(path)).await {
            Ok(meta) => Ok(meta.size == size),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an upload and its parts; succeeds when there is none.
    pub(super) async fn abort_multipart(&self, path: &Path, id: &String) -> Result<()> {
        match self.request(self.plain.abort_multipart(path, id)).await {
            Err(Error::NotFound(_)) => Ok(()),
            aborted => aborted,
        }
    }

    /// The uploads below these whole segments that are not objects yet.
    pub(super) fn list_multiparts(&self, prefix: &str) -> BoxStream<'_, Result<UnfinishedUpload>> {
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
                let page: UploadsPage = self.query(&Path::default(), &query).await.map_err(|error| self.refused(&error))?;
                let next = page.next_key_marker.zip(page.next_upload_id_marker);
                let next = next.filter(|next| page.is_truncated && *next != (key, id));
                let uploads: Vec<_> = page.uploads.into_iter().map(UploadEntry::parse).collect();
                Ok(Some((stream::iter(uploads), next)))
            }
        });
        pages.try_flatten().boxed()
    }

    /// The parts that have arrived, ordered by number.
    async fn list_parts(&self, path: &Path, id: &str) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut after = String::from("0");
        loop {
            let page: PartsPage = match self.query(path, &[("uploadId", id), ("part-number-marker", &after)]).await {
                Ok(page) => page,
                Err(error) => return Err(self.translate(error).await),
            };
            parts.extend(page.parts);
            match page.next_part_number_marker {
                Some(next) if page.is_truncated && next != after => after = next,
                _ => return Ok(parts),
            }
        }
    }
}

impl DirectUploads for S3Storage {
    fn begin<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<String>> {
        async move { self.request(self.plain.create_multipart(&object_path(key)?)).await }.boxed()
    }

    fn part_url<'a>(&'a self, key: &'a str, id: &'a str, number: u32, size: u64, life: Duration) -> BoxFuture<'a, Result<String>> {
        async move {
            let options = SignedUrlOptions::new().with_query([("partNumber", number.to_string()), ("uploadId", id.to_owned())]);
            let life = life.min(MAX_URL_LIFETIME);
            let url = self.request(self.public.signed_url_opts(Method::PUT, &object_path(key)?, life, &options)).await?;
            let credential = self.request(self.public.credentials().get_credential()).await?;
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
                // The upload is complete already, or unknown.
                Err(error @ Error::NotFound(_)) => return if self.has_object(&path, size).await? { Ok(()) } else { Err(error) },
                Err(error) => return Err(error),
            };
            if let Some(problem) = difference(&parts, sizes) {
                return if self.has_object(&path, size).await? { Ok(()) } else { Err(Error::invalid("parts", problem)) };
            }
            let parts = parts.into_iter().map(|part| PartId { content_id: part.e_tag }).collect();
            self.complete_multipart(&path, &id.to_owned(), parts, size).await
        }
        .boxed()
    }

    fn abort<'a>(&'a self, key: &'a str, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move { self.abort_multipart(&object_path(key)?, &id.to_owned()).await }.boxed()
    }
}

/// How the parts that have arrived differ from the expected ones.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_lists_every_part_concerned() {
        let part = |part_number, size| Part { part_number, e_tag: String::new(), size };
        assert_eq!(difference(&[part(1, 5), part(2, 3)], &[5, 3]), None);
        let problems = difference(&[part(1, 4), part(3, 1)], &[5, 3]).unwrap();
        assert_eq!(problems, "part 1 has 4 bytes instead of 5, part 2 is missing, part 3 is unexpected");
        assert!(difference(&[], &[1; 10_000]).unwrap().ends_with("part 20 is missing, and 9980 more"));
    }
}
