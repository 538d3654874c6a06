//! What follows of a document's events: looking into new files, and collecting those that nobody refers to any more.

use domain::{Error, Event, EventKind, FileId, Result, TenantId, failpoint};
use futures_util::TryStreamExt;
use models::{TenantDatabase, files, handled_events};
use serde_json::{Value, json};

use crate::{EventKey, Services};

/// How much of a file is looked at to find out what it is.
const HEAD: u64 = 8 * 1024;

impl Services {
    /// Asks for files of documents that were uploaded to be processed, for each event once.
    ///
    /// # Errors
    /// When an event names no file, or a database is down.
    pub async fn request_processing(&self, key: EventKey, events: &[Event]) -> Result<()> {
        let Some((tenant_id, database)) = self.open_key(key).await? else { return Ok(()) };
        let now = self.clock().now();
        let mut tx = self.begin_in(&database).await?;
        for event in events {
            let file_id = file_id(event)?;
            if handled_events::insert(&mut tx, event.id, now).await? && files::find_unprocessed(&mut tx, file_id).await?.is_some() {
                let data = json!({ "file_id": file_id.to_string() });
                let request = self.event(EventKind::FileProcess, Some(tenant_id), event.user_id, &data);
                self.tell(&mut tx, &Event { traceparent: event.traceparent.clone(), ..request });
            }
        }
        failpoint!("document.processing_requesting");
        Ok(tx.commit().await?)
    }

    /// Finds out what files are by their first bytes, whatever they were said to be.
    ///
    /// # Errors
    /// When an event names no file, or the database or the storage is down.
    pub async fn process_files(&self, key: EventKey, events: &[Event]) -> Result<()> {
        let Some((_, database)) = self.open_key(key).await? else { return Ok(()) };
        for event in events {
            let id = file_id(event)?;
            let Some((object_key, size)) = files::find_unprocessed(&mut database.read().await?, id).await? else { continue };
            let head = match self.storage().get(&object_key, Some(0..size.min(HEAD))).await {
                Ok(object) => object.bytes.try_fold(Vec::new(), async |head, piece| Ok([head, piece.to_vec()].concat())).await?,
                // Collected meanwhile.
                Err(Error::NotFound(_)) if files::find_unprocessed(&mut database.read().await?, id).await?.is_none() => continue,
                Err(error) => return Err(error),
            };
            #[expect(clippy::disallowed_methods, reason = "tells nothing")]
            let mut tx = database.begin().await?;
            files::set_processed(&mut tx, id, detect(&head), self.clock().now());
            failpoint!("file.processing");
            tx.commit().await?;
        }
        Ok(())
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
