//! What follows of a document's events: looking into new files, and collecting those that nobody refers to any more.

use std::collections::BTreeSet;

use domain::{Error, Event, EventKind, FileId, Result, TenantId, failpoint};
use futures_util::{StreamExt, TryStreamExt, stream};
use models::{TenantDatabase, files, handled_events};
use serde_json::{Value, json};

use crate::{
    Core, EventServices, OrderingKey,
    documents::{
        detection::{HEAD, detect},
        disposal::settles_at_once,
        garbage::collect_file,
    },
    events::{
        events::{begin_in, event},
        outbox::open_tenant,
    },
    tenants::moves::has_move,
};

/// How many files are looked into at once.
const READ_AT_ONCE: usize = 4;

impl EventServices {
    /// Asks for files of documents that were uploaded to be processed, for each event once.
    ///
    /// # Errors
    /// When an event names no file, or a database is down.
    pub async fn request_processing(&self, key: OrderingKey, events: &[Event]) -> Result<()> {
        let Some((tenant_id, database)) = open_tenant_of(&self.core, key).await? else { return Ok(()) };
        let about = events.iter().map(file_id).collect::<Result<Vec<_>>>()?;
        let files: BTreeSet<_> = about.iter().copied().collect();
        // As after most uploads, which find out by themselves: nothing follows, so there is nothing to remember either.
        if files::list_unprocessed(&mut database.read().await?, &files).await?.is_empty() {
            return Ok(());
        }
        let mut tx = begin_in(&self.core, &database).await?;
        let new = handled_events::insert_all(&mut tx, events.iter().map(|event| event.id), self.core.clock().now()).await?;
        let unprocessed = files::list_unprocessed(&mut tx, &files).await?;
        // Several documents of one content ask once.
        let mut wanted: BTreeSet<_> = unprocessed.into_iter().map(|(id, ..)| id).collect();
        for ((cause, id), is_new) in events.iter().zip(about).zip(new) {
            if is_new && wanted.remove(&id) {
                let request =
                    event(&self.core, EventKind::FileProcess, Some(tenant_id), cause.user_id, &json!({ "file_id": id.to_string() }));
                tx.emit(&Event { traceparent: cause.traceparent.clone(), ..request });
            }
        }
        failpoint!("document.processing_requesting");
        Ok(tx.commit().await?)
    }

    /// Finds out what files are by their first bytes, whatever they were said to be.
    ///
    /// # Errors
    /// When an event names no file, or the database or the storage is down. Then none of them is processed.
    pub async fn process_files(&self, key: OrderingKey, events: &[Event]) -> Result<()> {
        let Some((_, database)) = open_tenant_of(&self.core, key).await? else { return Ok(()) };
        let about = events.iter().map(file_id).collect::<Result<BTreeSet<_>>>()?;
        let unprocessed = files::list_unprocessed(&mut database.read().await?, &about).await?;
        let heads = unprocessed.into_iter().map(|(id, key, size)| async move {
            match read_head(&self.core, &key, size).await {
                Err(error @ Error::NotFound(_)) => Ok((id, Err(error))),
                head => head.map(|head| (id, Ok(head))),
            }
        });
        // A storage that is down is not asked for each of them.
        let heads: Vec<_> = stream::iter(heads).buffered(READ_AT_ONCE).try_collect().await?;
        let mut tx = database.begin().await?;
        for (id, head) in heads {
            match head {
                Ok(head) => files::set_processed(&mut tx, id, detect(&head), self.core.clock().now()),
                // Collected meanwhile.
                Err(Error::NotFound(_)) if files::list_unprocessed(&mut tx, &BTreeSet::from([id])).await?.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        failpoint!("file.processing");
        Ok(tx.commit().await?)
    }

    /// Collects files of documents that were deleted, where they need not be kept for a time.
    ///
    /// # Errors
    /// When an event names no file, or the database or the storage is down.
    pub async fn collect_files_of(&self, key: OrderingKey, events: &[Event]) -> Result<()> {
        if !self.core.settings().garbage_grace.is_zero() || !settles_at_once(&self.core) {
            return Ok(());
        }
        let Some((tenant_id, database)) = open_tenant_of(&self.core, key).await? else { return Ok(()) };
        if has_move(&self.core, tenant_id).await? {
            return Ok(());
        }
        for event in events {
            collect_file(&self.core, &database, file_id(event)?).await?;
        }
        Ok(())
    }
}

/// The first bytes of an object.
async fn read_head(core: &Core, key: &str, size: u64) -> Result<Vec<u8>> {
    let object = core.parts.storage.get(key, Some(0..size.min(HEAD as u64))).await?;
    Ok(object.bytes.try_collect::<Vec<_>>().await?.concat())
}

async fn open_tenant_of(core: &Core, key: OrderingKey) -> Result<Option<(TenantId, TenantDatabase)>> {
    let Some(tenant_id) = key else { return Err(Error::internal("an event of a document names no tenant")) };
    Ok(open_tenant(core, tenant_id).await?.map(|database| (tenant_id, database)))
}

/// The file that an event is about.
fn file_id(event: &Event) -> Result<FileId> {
    let data: Value = serde_json::from_str(&event.data).map_err(Error::internal)?;
    let id = data["file_id"].as_str().ok_or_else(|| Error::internal("an event of a document names no file"))?;
    id.parse().map_err(Error::internal)
}
