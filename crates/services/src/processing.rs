//! What follows of a document's events: looking into new files, and collecting those that nobody refers to any more.

use std::collections::BTreeSet;

use domain::{Error, Event, EventKind, FileId, Result, TenantId, failpoint};
use futures_util::{StreamExt, TryStreamExt, stream};
use models::{TenantDatabase, files, handled_events};
use serde_json::{Value, json};

use crate::{EventKey, Services};

/// How much of a file is looked at to find out what it is.
const HEAD: u64 = 8 * 1024;
/// How many files are looked into at once.
const READ_AT_ONCE: usize = 4;

impl Services {
    /// Asks for files of documents that were uploaded to be processed, for each event once.
    ///
    /// # Errors
    /// When an event names no file, or a database is down.
    pub async fn request_processing(&self, key: EventKey, events: &[Event]) -> Result<()> {
        let Some((tenant_id, database)) = self.open_key(key).await? else { return Ok(()) };
        let about = events.iter().map(file_id).collect::<Result<Vec<_>>>()?;
        let mut tx = self.begin_in(&database).await?;
        let new = handled_events::insert_all(&mut tx, events.iter().map(|event| event.id), self.clock().now()).await?;
        let unprocessed = files::list_unprocessed(&mut tx, &about.iter().copied().collect()).await?;
        // Several documents of one content ask once.
        let mut wanted: BTreeSet<_> = unprocessed.into_iter().map(|(id, ..)| id).collect();
        for ((event, id), is_new) in events.iter().zip(about).zip(new) {
            if is_new && wanted.remove(&id) {
                let request = self.event(EventKind::FileProcess, Some(tenant_id), event.user_id, &json!({ "file_id": id.to_string() }));
                self.tell(&mut tx, &Event { traceparent: event.traceparent.clone(), ..request });
            }
        }
        failpoint!("document.processing_requesting");
        Ok(tx.commit().await?)
    }

    /// Finds out what files are by their first bytes, whatever they were said to be.
    ///
    /// # Errors
    /// When an event names no file, or the database or the storage is down. Then none of them is processed.
    pub async fn process_files(&self, key: EventKey, events: &[Event]) -> Result<()> {
        let Some((_, database)) = self.open_key(key).await? else { return Ok(()) };
        let about = events.iter().map(file_id).collect::<Result<BTreeSet<_>>>()?;
        let unprocessed = files::list_unprocessed(&mut database.read().await?, &about).await?;
        let heads = unprocessed.into_iter().map(|(id, key, size)| async move { (id, self.head_of(&key, size).await) });
        let heads: Vec<_> = stream::iter(heads).buffered(READ_AT_ONCE).collect().await;
        #[expect(clippy::disallowed_methods, reason = "tells nothing")]
        let mut tx = database.begin().await?;
        for (id, head) in heads {
            match head {
                Ok(head) => files::set_processed(&mut tx, id, detect(&head), self.clock().now()),
                // Collected meanwhile.
                Err(Error::NotFound(_)) if files::list_unprocessed(&mut tx, &BTreeSet::from([id])).await?.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        failpoint!("file.processing");
        Ok(tx.commit().await?)
    }

    /// The first bytes of an object.
    async fn head_of(&self, key: &str, size: u64) -> Result<Vec<u8>> {
        let object = self.storage().get(key, Some(0..size.min(HEAD))).await?;
        Ok(object.bytes.try_collect::<Vec<_>>().await?.concat())
    }

    /// Collects files of documents that were deleted, where they need not be kept for a time.
    ///
    /// # Errors
    /// When an event names no file, or the database or the storage is down.
    pub async fn collect_files_of(&self, key: EventKey, events: &[Event]) -> Result<()> {
        if !self.settings().garbage_grace.is_zero() || !self.settles_at_once() {
            return Ok(());
        }
        let Some((tenant_id, database)) = self.open_key(key).await? else { return Ok(()) };
        if self.is_on_the_move(tenant_id).await? {
            return Ok(());
        }
        for event in events {
            self.collect_file(&database, file_id(event)?).await?;
        }
        Ok(())
    }

    async fn open_key(&self, key: EventKey) -> Result<Option<(TenantId, TenantDatabase)>> {
        let Some(tenant_id) = key else { return Err(Error::internal("an event of a document names no tenant")) };
        Ok(self.open_tenant(tenant_id).await?.map(|database| (tenant_id, database)))
    }
}

/// The file that an event is about.
fn file_id(event: &Event) -> Result<FileId> {
    let data: Value = serde_json::from_str(&event.data).map_err(Error::internal)?;
    let id = data["file_id"].as_str().ok_or_else(|| Error::internal("an event of a document names no file"))?;
    id.parse().map_err(Error::internal)
}

/// The media type of what begins with these bytes.
fn detect(head: &[u8]) -> &'static str {
    match infer::get(head) {
        Some(kind) => kind.mime_type(),
        None if is_text(head) => "text/plain",
        None => "application/octet-stream",
    }
}

/// Whether this is text in UTF-8, which may break off in a character, without control characters that no text has.
fn is_text(head: &[u8]) -> bool {
    let valid = match str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && head.len() - error.valid_up_to() < 4,
    };
    valid && head.iter().all(|byte| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_it_begins_with() {
        for (head, mime_type) in [
            (&b"%PDF-1.7\n"[..], "application/pdf"),
            (b"\x89PNG\r\n\x1a\n0000", "image/png"),
            (b"a,b\r\n1,2\r\n", "text/plain"),
            ("höflich".as_bytes(), "text/plain"),
            (&"ö".as_bytes()[..1], "text/plain"),
            (b"\xff\xfe\x00", "application/octet-stream"),
            (b"a\0b", "application/octet-stream"),
        ] {
            assert_eq!(detect(head), mime_type, "{head:?}");
        }
    }
}
