//! Copies of tenants' databases on other servers, between all available engines.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use database::{DatabaseUrl, Error, PostgresLimits, TenantDatabase, TenantDatabases, params};
use domain::{DatabaseName, FileId, SystemClock, TenantId, TenantName, TenantPlace, Timestamp};
use futures_util::FutureExt;

use crate::engine::{service, threads};

/// Two servers with a tenant's database on the first and an empty one on the second.
struct Servers {
    databases: TenantDatabases,
    from: TenantPlace,
    to: TenantPlace,
    /// For handles as another process has them.
    urls: BTreeMap<String, DatabaseUrl>,
}

const LIMITS: PostgresLimits = PostgresLimits { per_server: 8, per_database: 4 };

/// From and to which of two folders and two PostgreSQL servers.
const PAIRS: [(usize, usize); 4] = [(0, 1), (0, 2), (2, 0), (2, 3)];

/// Runs a test between all available kinds of servers.
async fn between_all(test: impl AsyncFn(&Servers)) {
    let folder = tempfile::tempdir().unwrap();
    let mut urls: Vec<DatabaseUrl> = ["a", "b"].map(|name| DatabaseUrl::Sqlite(folder.path().join(name))).into();
    urls.extend(["TEST_DATABASE_URL", "TEST_SECOND_DATABASE_URL"].iter().filter_map(|variable| service(variable)?.parse().ok()));
    for (from, to) in PAIRS {
        if let (Some(from), Some(to)) = (urls.get(from), urls.get(to)) {
            println!("from {from} to {to}");
            run_between(from, to, &test).await;
        }
    }
}

async fn run_between(from: &DatabaseUrl, to: &DatabaseUrl, test: &impl AsyncFn(&Servers)) {
    let urls = BTreeMap::from([("from".to_owned(), from.clone()), ("to".to_owned(), to.clone())]);
    let databases = TenantDatabases::new(&urls, &threads(), LIMITS);
    let tenant_id = TenantId::generate(&SystemClock);
    let database = DatabaseName::derive(&TenantName::parse("Moving").unwrap(), tenant_id);
    let [from, to] = ["from", "to"].map(|server| TenantPlace { tenant_id, server: server.to_owned(), database: database.clone() });
    let servers = Servers { databases, from, to, urls };
    let locations = [&servers.from, &servers.to];
    let outcome = AssertUnwindSafe(async {
        for location in locations {
            servers.databases.create(location).await.unwrap();
            servers.databases.finish(location).await.unwrap();
        }
        test(&servers).await;
    })
    .catch_unwind()
    .await;
    for location in locations {
        servers.databases.drop_database(location).await.unwrap();
    }
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}

impl Servers {
    /// A handle as another process has it.
    fn elsewhere(&self, location: &TenantPlace) -> TenantDatabase {
        TenantDatabases::new(&self.urls, &threads(), LIMITS).open(location).unwrap()
    }
}

/// Adds a file with a document and an upload intent. Optional columns are null for every other `n`.
async fn add(tenant: &TenantDatabase, n: i64, sha256: [u8; 32]) -> FileId {
    add_as(FileId::generate(&SystemClock), tenant, n, sha256).await
}

async fn add_as(id: FileId, tenant: &TenantDatabase, n: i64, sha256: [u8; 32]) -> FileId {
    let at = Timestamp::from_micros(1_700_000_000_000_000 + n);
    let some = (n % 2 == 0).then_some(id.uuid());
    let mut tx = tenant.begin().await.unwrap();
    tx.execute(
        "INSERT INTO files (id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7)",
        params![id, hex::encode([0; 16]), sha256.to_vec(), format!("files/{id}"), n + 1, at, some],
    )
    .await
    .unwrap();
    tx.execute(
        "INSERT INTO documents (id, filename, filename_folded, mime_type, file_id, user_id, created_at, updated_at)
         VALUES ($1, $2, $2, 'text/plain', $1, $1, $3, $3)",
        params![id, format!("Übersicht '{n}'\u{1F600}.txt"), at],
    )
    .await
    .unwrap();
    // Keys whose order by collation differs from their order by bytes.
    let key = format!("{}{}{n}", ["a", "B", "ä", "Z", "_", "ß"][usize::try_from(n % 6).unwrap()], n % 7);
    tx.execute("INSERT INTO uploads (s3_path, expires_at) VALUES ($1, $2)", params![key, at]).await.unwrap();
    tx.commit().await.unwrap();
    id
}

/// Three earlier versions of each of these documents, and a multipart upload with two parts: tables whose keys have two columns.
async fn add_parts(tenant: &TenantDatabase, documents: &[FileId]) {
    let mut tx = tenant.begin().await.unwrap();
    for id in documents {
        for version in 1..=3_i64 {
            let sql = "INSERT INTO document_versions (document_id, version, mime_type, file_id, created_at) VALUES ($1, $2, 'a/b', $1, $3)";
            tx.execute(sql, params![*id, version, Timestamp::from_micros(version)]).await.unwrap();
        }
    }
    let (id, at) = (documents[0], Timestamp::from_micros(1));
    tx.execute(
        "INSERT INTO staged_uploads (id, protocol, state, user_id, filename, mime_type, metadata, file_size, received_bytes, part_size,
                                     deduplicated, created_at, updated_at, expires_at)
         VALUES ($1, 'tus', 'open', $1, 'a', 'a/b', '', 9, 2, 0, $2, $3, $3, $3)",
        params![id, false, at],
    )
    .await
    .unwrap();
    for offset in 0..2_i64 {
        let sql = "INSERT INTO staged_parts (upload_id, part_offset, part_size, s3_path) VALUES ($1, $2, 1, $3)";
        tx.execute(sql, params![id, offset, format!("parts/{offset}")]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn change(tenant: &TenantDatabase, sql: &'static str, id: FileId) {
    let mut tx = tenant.begin().await.unwrap();
    assert_eq!(tx.execute(sql, params![id]).await.unwrap(), 1);
    tx.commit().await.unwrap();
}

fn digest(n: i64) -> [u8; 32] {
    let mut digest = [7; 32];
    digest[..8].copy_from_slice(&n.to_be_bytes());
    digest
}

async fn count(tenant: &TenantDatabase, sql: &'static str) -> i64 {
    tenant.read().await.unwrap().query_one(sql, params![]).await.unwrap().take().unwrap()
}

#[tokio::test]
async fn a_copy_follows_its_source_and_equals_it() {
    between_all(async |servers| {
        let source = servers.databases.open(&servers.from).unwrap();
        let mut files = Vec::new();
        // More than one batch.
        for n in 0..1_100 {
            files.push(add(&source, n, digest(n)).await);
        }
        add_parts(&source, &files[10..20]).await;
        let audit =
            "INSERT INTO audit_log (event_id, action, occurred_at, data) SELECT id, 'a.b', created_at, '{}' FROM files WHERE id = $1";
        change(&source, audit, files[1]).await;
        let mut transfer = servers.databases.transfer(&servers.from, &servers.to).await.unwrap();
        assert_eq!(transfer.copy(&|_| {}).await.unwrap(), 3_334);
        assert_eq!(transfer.copy(&|_| {}).await.unwrap(), 0, "nothing has changed");

        // Deleted, and the same content added again: a unique value moves from a deleted row to a new one.
        let source = servers.elsewhere(&servers.from);
        change(&source, audit, files[2]).await;
        change(&source, "DELETE FROM documents WHERE id = $1", files[500]).await;
        change(&source, "DELETE FROM files WHERE id = $1", files[500]).await;
        add(&source, 1_100, digest(500)).await;
        // Marked for deletion, and the same content added again: it moves from a changed row to a new one.
        change(&source, "DELETE FROM documents WHERE id = $1", files[0]).await;
        change(&source, "UPDATE files SET condemned_at = created_at WHERE id = $1", files[0]).await;
        add(&source, 1_101, digest(0)).await;
        // The same against the order of the keys: the new row comes first.
        change(&source, "DELETE FROM documents WHERE id = $1", files[1_098]).await;
        change(&source, "UPDATE files SET condemned_at = created_at WHERE id = $1", files[1_098]).await;
        add_as(uuid::Uuid::from_u128(1).into(), &source, 1_103, digest(1_098)).await;
        change(&source, "UPDATE documents SET filename = 'renamed' WHERE id = $1", files[1_099]).await;

        transfer.lock_source(Duration::from_secs(10)).await.unwrap();
        let (changed, sums) = transfer.complete().await.unwrap();
        // Four rows deleted, two files and one document changed, three rows added three times, and one to the audit log.
        assert_eq!(changed, 4 + 3 + 9 + 1);
        let rows: BTreeMap<_, _> = sums.iter().map(|sum| (sum.table.as_str(), sum.rows)).collect();
        let of_uploads = [("uploads", 1_103), ("staged_uploads", 1), ("staged_parts", 2)];
        let of_documents = [("documents", 1_100), ("document_versions", 30), ("files", 1_102)];
        let others = [("idempotency_keys", 0), ("outbox", 0), ("handled_events", 0), ("audit_log", 2)];
        assert_eq!(rows, of_uploads.into_iter().chain(of_documents).chain(others).collect());
        transfer.write_block().await.unwrap();
        let copy = servers.elsewhere(&servers.to);
        assert_eq!(count(&copy, "SELECT COUNT(*) FROM documents WHERE filename LIKE 'Übersicht ''%''😀.txt'").await, 1_099);
        add(&copy, 1_102, digest(1_102)).await;
    })
    .await;
}

#[tokio::test]
async fn writes_to_a_write_blocked_database_fail_until_the_block_is_lifted() {
    between_all(async |servers| {
        let (here, elsewhere) = (servers.databases.open(&servers.from).unwrap(), servers.elsewhere(&servers.from));
        let file = add(&here, 0, digest(0)).await;
        let mut transfer = servers.databases.transfer(&servers.from, &servers.to).await.unwrap();
        transfer.copy(&|_| {}).await.unwrap();
        // A transaction that begins before the source is locked, and writes after the write-block. SQLite has one writer at a time.
        let mut early = elsewhere.begin().await.unwrap();
        let is_postgres = matches!(servers.urls["from"], DatabaseUrl::Postgres(_));
        if is_postgres {
            early.query("SELECT 1 FROM files", params![]).await.unwrap();
        }
        transfer.lock_source(Duration::from_secs(10)).await.unwrap();
        transfer.complete().await.unwrap();
        assert_eq!(count(&here, "SELECT COUNT(*) FROM documents").await, 1, "reads go on while it is locked");
        transfer.write_block().await.unwrap();
        let rename = "UPDATE documents SET filename = 'late' WHERE id = $1";
        let late = early.execute(rename, params![file]).await;
        assert!(matches!(late, Err(Error::Unavailable(_))), "{late:?}");
        drop(early);
        for tenant in [&here, &elsewhere] {
            let mut tx = tenant.begin().await.unwrap();
            let refused = tx.execute("DELETE FROM documents WHERE id = $1", params![file]).await;
            assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
            drop(tx);
            assert_eq!(count(tenant, "SELECT COUNT(*) FROM documents WHERE filename = 'late'").await, 0);
        }
        for _ in 0..2 {
            servers.databases.lift_write_block(&servers.from).await.unwrap();
            change(&elsewhere, rename, file).await;
            change(&here, rename, file).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dropped_transfer_leaves_the_source_as_it_was() {
    between_all(async |servers| {
        let source = servers.databases.open(&servers.from).unwrap();
        let file = add(&source, 0, digest(0)).await;
        for steps in 0..3 {
            let mut transfer = servers.databases.transfer(&servers.from, &servers.to).await.unwrap();
            if steps > 0 {
                transfer.lock_source(Duration::from_secs(10)).await.unwrap();
            }
            if steps > 1 {
                transfer.complete().await.unwrap();
            }
            drop(transfer);
            change(&source, "UPDATE documents SET filename = 'changed' WHERE id = $1", file).await;
        }
    })
    .await;
}

/// The comparison finds a target that stores something else than it was given.
#[tokio::test]
async fn a_differing_copy_is_found() {
    between_all(async |servers| {
        if matches!(servers.urls["to"], DatabaseUrl::Postgres(_)) {
            return;
        }
        let source = servers.databases.open(&servers.from).unwrap();
        for n in 0..3 {
            add(&source, n, digest(n)).await;
        }
        let mut tx = servers.databases.open(&servers.to).unwrap().begin().await.unwrap();
        let forge = "CREATE TRIGGER forge AFTER INSERT ON documents BEGIN UPDATE documents SET filename = 'forged' WHERE id = new.id; END";
        tx.execute(forge, params![]).await.unwrap();
        tx.commit().await.unwrap();
        let mut transfer = servers.databases.transfer(&servers.from, &servers.to).await.unwrap();
        transfer.lock_source(Duration::from_secs(10)).await.unwrap();
        let problem = domain::Error::from(transfer.complete().await.unwrap_err()).with_causes();
        assert!(problem.contains("the copy of documents differs from the original"), "{problem}");
    })
    .await;
}
