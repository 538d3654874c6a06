//! What must hold whenever nothing is under way, whatever happened before.

use std::collections::BTreeSet;

use domain::{DocumentFilter, Event, EventKind, PageRequest, TenantPlace, Timestamp};
use models::{documents, files, moves, multipart_uploads, outbox, tenants, tombstones, uploads, warm_pool};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{TestDatabases, TestObjects};
use futures_util::TryStreamExt;

/// Looks for what is broken, in words:
///
/// - every tenant is completely made, or not there;
/// - no tenant is on the move, or was left paused by a move;
/// - of a tenant that was deleted for good only the tombstone is there;
/// - every document's object is there, byte for byte as its hash says;
/// - every object belongs to a file or to an upload that the collector knows of;
/// - every document that was uploaded or deleted has its event.
pub async fn find_broken(databases: &TestDatabases, objects: &TestObjects) -> Vec<String> {
    let (main, directory) = databases.open();
    let mut broken = Vec::new();
    let (storage, mut known, mut ids) = (objects.open(), BTreeSet::new(), Vec::new());
    let tenants = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
    for tenant in tenants {
        ids.push(tenant.id);
        if tenant.provisioning != domain::Provisioning::Active {
            broken.push(format!("tenant {} is {:?}", tenant.name, tenant.provisioning));
            continue;
        }
        if let Some(at) = tenant.writes_paused_at {
            broken.push(format!("nobody may write to tenant {} since {at}", tenant.name));
        }
        let database = directory.open(&tenant.place).unwrap();
        let mut connection = match database.read().await {
            Ok(connection) => connection,
            Err(error) => {
                broken.push(format!("tenant {}: {error}", tenant.name));
                continue;
            }
        };
        known.extend(files::list_object_keys(&mut connection).await.unwrap());
        known.extend(uploads::list_object_keys(&mut connection).await.unwrap());
        known.extend(multipart_uploads::list_keys(&mut connection, &format!("tenants/{}/", tenant.id)).await.unwrap());
        let mut count = 0;
        for number in 1.. {
            let request = PageRequest::parse(Some(number), Some(100), &mut domain::FieldErrors::default());
            let page = documents::list(&mut connection, &DocumentFilter::default(), request).await.unwrap();
            for document in &page.items {
                count += 1;
                let (name, key) = (&document.filename, &document.file.object_key);
                let object = async { storage.get(key, None).await?.bytes.try_collect::<Vec<_>>().await };
                match object.await.map(|pieces| pieces.concat()) {
                    Ok(object) if Sha256::digest(&object)[..] == document.file.hash.sha256 => {}
                    Ok(object) => broken.push(format!("document {name} ({key}): its object of {} bytes is not its content", object.len())),
                    Err(error) => broken.push(format!("document {name} ({key}): {error}")),
                }
            }
            if number >= i64::try_from(page.pages()).unwrap() {
                break;
            }
        }
        let events = outbox::list(&mut connection, 1_000_000).await.unwrap();
        let of = |kind| events.iter().filter(|event| event.kind == kind).count();
        let first = |event: &&Event| event.kind == EventKind::DocumentUploaded && fact(event, "version") == 1;
        let restored = events.iter().filter(|event| fact(event, "action") == "document.restored").count();
        let (uploaded, deleted) = (events.iter().filter(first).count(), of(EventKind::DocumentDeleted));
        if uploaded + restored != count + deleted {
            broken.push(format!(
                "tenant {}: {count} documents, but {uploaded} uploads, {deleted} deletions and {restored} restorations in the outbox",
                tenant.name
            ));
        }
    }
    for left in moves::list(&mut main.read().await.unwrap()).await.unwrap() {
        broken.push(format!("left of a move: {left:?}"));
    }
    for tombstone in tombstones::list_since(&mut main.read().await.unwrap(), Timestamp::from_micros(0)).await.unwrap() {
        ids.push(tombstone.place.tenant_id);
        if directory.exists(&tombstone.place).await.unwrap() {
            broken.push(format!("tenant {} was deleted, but its database is there", tombstone.name));
        }
    }
    broken.extend(objects.list(&ids).await.difference(&known).map(|key| format!("the object {key} is nobody's")));
    broken
}

/// What an event tells.
fn fact(event: &Event, name: &str) -> Value {
    serde_json::from_str::<Value>(&event.data).unwrap()[name].clone()
}

/// Drops what a test left on a server.
pub async fn drop_databases(databases: &TestDatabases) {
    let (main, directory) = databases.open();
    if databases.engine() == "postgres" {
        for tenant in tenants::list(&mut main.read().await.unwrap()).await.unwrap() {
            for server in directory.servers() {
                // A move that failed with its test may have left it on any of them.
                directory.drop_database(&TenantPlace { server: server.to_owned(), ..tenant.place.clone() }).await.unwrap();
            }
        }
        for spare in warm_pool::list(&mut main.read().await.unwrap()).await.unwrap() {
            directory.drop_warm(&spare.server, spare.tenant_id).await.unwrap();
        }
    }
    drop((main, directory));
    databases.drop_main().await;
}
