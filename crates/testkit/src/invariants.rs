//! Invariants that hold whenever no operation is in progress, whatever happened before.

use std::collections::BTreeSet;

use domain::{DocumentFilter, Event, EventKind, PageRequest, TenantLocation, Timestamp};
use models::{documents, files, moves, multipart_uploads, outbox, tenants, tombstones, uploads, warm_pool};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{TestDatabases, TestObjects};
use futures_util::TryStreamExt;

/// Checks the invariants and describes each violation:
///
/// - every tenant is fully provisioned or does not exist;
/// - no tenant is moving, and no move left one paused;
/// - of a permanently deleted tenant only the tombstone exists;
/// - every document's object exists and its bytes match the hash;
/// - every object belongs to a file or to an upload that the garbage collector knows;
/// - every upload and every deletion of a document has its event.
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
            broken.push(format!("writes to tenant {} are paused since {at}", tenant.name));
        }
        let database = directory.open(&tenant.location).unwrap();
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
                    Ok(object) => broken.push(format!("document {name} ({key}): {}-byte object does not match the hash", object.len())),
                    Err(error) => broken.push(format!("document {name} ({key}): {error}")),
                }
            }
            if number >= i64::try_from(page.pages()).unwrap() {
                break;
            }
        }
        let events = outbox::list(&mut connection, 1_000_000).await.unwrap();
        let of = |kind| events.iter().filter(|event| event.kind == kind).count();
        let first = |event: &&Event| event.kind == EventKind::DocumentUploaded && payload_field(event, "version") == 1;
        let restored = events.iter().filter(|event| payload_field(event, "action") == "document.restored").count();
        let (uploaded, deleted) = (events.iter().filter(first).count(), of(EventKind::DocumentDeleted));
        if uploaded + restored != count + deleted {
            broken.push(format!(
                "tenant {}: {count} documents, but {uploaded} uploads, {deleted} deletions and {restored} restorations in the outbox",
                tenant.name
            ));
        }
    }
    for left in moves::list(&mut main.read().await.unwrap()).await.unwrap() {
        broken.push(format!("unfinished move: {left:?}"));
    }
    for tombstone in tombstones::list_since(&mut main.read().await.unwrap(), Timestamp::from_micros(0)).await.unwrap() {
        ids.push(tombstone.location.tenant_id);
        if directory.exists(&tombstone.location).await.unwrap() {
            broken.push(format!("tenant {} was deleted, but its database exists", tombstone.name));
        }
    }
    broken.extend(objects.list(&ids).await.difference(&known).map(|key| format!("orphaned object: {key}")));
    broken
}

/// A field of an event's payload.
fn payload_field(event: &Event, name: &str) -> Value {
    serde_json::from_str::<Value>(&event.data).unwrap()[name].clone()
}

/// Drops the databases of a test from their servers.
pub async fn drop_databases(databases: &TestDatabases) {
    let (main, directory) = databases.open();
    if databases.engine() == "postgres" {
        for tenant in tenants::list(&mut main.read().await.unwrap()).await.unwrap() {
            for server in directory.servers() {
                // A move that failed in the test may have left the database on any server.
                directory.drop_database(&TenantLocation { server: server.to_owned(), ..tenant.location.clone() }).await.unwrap();
            }
        }
        for warm in warm_pool::list(&mut main.read().await.unwrap()).await.unwrap() {
            directory.drop_warm(&warm.server, warm.tenant_id).await.unwrap();
        }
    }
    drop((main, directory));
    databases.drop_main().await;
}
