//! Files: stored content, once per tenant.
//!
//! A file lives until it is condemned. Whoever makes a document refer to a file, or looks whether one does, locks the file's
//! row first, so that the two can't pass each other.

use std::collections::BTreeSet;

use database::{Connection, Error, Result, Row, Statement, Tenant, TenantTx, Value, params};
use domain::{ContentHash, File, FileId, FileUsage, Page, PageRequest, Timestamp};

use crate::{page, single};

/// Selects what [`file`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type FROM files ",
            $rest
        )
    };
}

/// What came of adding a file whose object is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// The file is there, and its upload is forgotten.
    Added,
    /// The same content is there already; the upload is as it was.
    AlreadyThere,
    /// The upload was condemned meanwhile, so its object can't become a file's. Nothing is to be committed.
    Expired,
}

/// Adds a file, unless the same content is already there, and forgets the upload of its object.
pub async fn add(tx: &mut TenantTx, file: &File) -> Result<InsertOutcome> {
    let insert = Statement::new(
        "INSERT INTO files (id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type, processed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (sha256, file_size) WHERE condemned_at IS NULL DO NOTHING",
        values(file),
    );
    let forget = Statement::new(
        "DELETE FROM uploads WHERE s3_path = $1 AND condemned_at IS NULL AND EXISTS (SELECT 1 FROM files WHERE id = $2)",
        params![file.object_key.as_str(), file.id],
    );
    let affected: Vec<u64> = tx.batch(vec![insert, forget]).await?.into_iter().map(|outcome| outcome.affected).collect();
    Ok(match affected[..] {
        [1, 1] => InsertOutcome::Added,
        [1, _] => InsertOutcome::Expired,
        _ => InsertOutcome::AlreadyThere,
    })
}

/// The same for a transaction that waits for no answer: unless the file can be added, the commit fails, as
/// [`could_not_be_added`] tells.
pub fn add_or_fail(tx: &mut TenantTx, file: &File) {
    let key = file.object_key.as_str();
    tx.defer("SELECT 1 FROM uploads WHERE s3_path = $1 FOR UPDATE", params![key]);
    // Without a key, if the upload was condemned: the schema forbids that.
    tx.defer(
        "INSERT INTO files (id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type, processed_at)
         VALUES ($1, $2, $3, (SELECT s3_path FROM uploads WHERE s3_path = $4 AND condemned_at IS NULL), $5, $6, $7, $8, $9, $10)",
        values(file),
    );
    tx.defer("DELETE FROM uploads WHERE s3_path = $1", params![key]);
}

/// Whether a commit failed because the same content is there already, or the upload was condemned.
#[must_use]
pub fn could_not_be_added(error: &Error) -> bool {
    error.violates("files_sha256_file_size_key") || error.violates_check()
}

fn values(file: &File) -> Vec<Value> {
    params![
        file.id,
        file.hash.md5_hex(),
        &file.hash.sha256[..],
        file.object_key.as_str(),
        file.size,
        file.created_at,
        file.updated_at,
        file.created_by,
        file.detected_mime_type.as_deref(),
        file.detected_mime_type.as_ref().map(|_| file.created_at)
    ]
}

/// Those of these living files that were not processed, each once, with their objects and sizes.
pub async fn list_unprocessed(connection: &mut Connection<Tenant>, ids: &BTreeSet<FileId>) -> Result<Vec<(FileId, String, u64)>> {
    let sql = "SELECT id, s3_path, file_size FROM files WHERE id = $1 AND condemned_at IS NULL AND processed_at IS NULL";
    let outcomes = connection.batch(ids.iter().map(|id| Statement::new(sql, params![*id])).collect()).await?;
    let rows = outcomes.into_iter().flat_map(|outcome| outcome.rows);
    rows.map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// The object of a condemned file.
pub async fn find_condemned(connection: &mut Connection<Tenant>, id: FileId) -> Result<Option<String>> {
    let found = connection.query_opt("SELECT s3_path FROM files WHERE id = $1 AND condemned_at IS NOT NULL", params![id]).await?;
    found.map(single).transpose()
}

/// Notes what a file was found to be.
pub fn set_processed(tx: &mut TenantTx, id: FileId, detected_mime_type: &str, now: Timestamp) {
    tx.defer("UPDATE files SET detected_mime_type = $2, processed_at = $3 WHERE id = $1", params![id, detected_mime_type, now]);
}

/// Whether there is a living file with this content.
pub async fn is_there(connection: &mut Connection<Tenant>, hash: &ContentHash, size: u64) -> Result<bool> {
    let found = connection
        .query_opt("SELECT 1 FROM files WHERE sha256 = $1 AND file_size = $2 AND condemned_at IS NULL", params![&hash.sha256[..], size])
        .await?;
    Ok(found.is_some())
}

/// The living file with this content, locked until the end of the transaction.
pub async fn lock_by_content(tx: &mut TenantTx, hash: &ContentHash, size: u64) -> Result<Option<File>> {
    let found = tx
        .query_opt(select!("WHERE sha256 = $1 AND file_size = $2 AND condemned_at IS NULL FOR UPDATE"), params![&hash.sha256[..], size])
        .await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// The living file with this content, locked until the end of the transaction, if a document that is not in the trash has it: one that
/// every member may read. A single statement, so that its time does not tell whether there is one that nobody may read.
pub async fn lock_readable_by_content(tx: &mut TenantTx, hash: &ContentHash, size: u64) -> Result<Option<File>> {
    let found = tx
        .query_opt(
            select!(
                "WHERE sha256 = $1 AND file_size = $2 AND condemned_at IS NULL
                 AND EXISTS (SELECT 1 FROM documents d WHERE d.file_id = files.id AND d.deleted_at IS NULL) FOR UPDATE"
            ),
            params![&hash.sha256[..], size],
        )
        .await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// The living file with this id, locked until the end of the transaction.
pub async fn lock(tx: &mut TenantTx, id: FileId) -> Result<Option<File>> {
    let found = tx.query_opt(select!("WHERE id = $1 AND condemned_at IS NULL FOR UPDATE"), params![id]).await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// The living file with this id.
pub async fn find(connection: &mut Connection<Tenant>, id: FileId) -> Result<Option<File>> {
    let found = connection.query_opt(select!("WHERE id = $1 AND condemned_at IS NULL"), params![id]).await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// Living files, newest first, each with the number of documents that refer to it.
pub async fn list(connection: &mut Connection<Tenant>, request: PageRequest) -> Result<Page<FileUsage>> {
    let count = Statement::new("SELECT COUNT(*) FROM files WHERE condemned_at IS NULL", params![]);
    let items = Statement::new(
        "SELECT f.id, f.md5_hash, f.sha256, f.s3_path, f.file_size, f.created_at, f.updated_at, f.created_by, f.detected_mime_type,
                (SELECT COUNT(*) FROM documents d WHERE d.file_id = f.id)
                + (SELECT COUNT(*) FROM document_versions v WHERE v.file_id = f.id)
         FROM files f WHERE f.condemned_at IS NULL ORDER BY f.created_at DESC, f.id DESC LIMIT $1 OFFSET $2",
        params![request.per_page(), request.offset()],
    );
    page(connection, count, items, request, |mut row| Ok(FileUsage { file: file(&mut row)?, document_count: row.take()? })).await
}

/// Condemns a file: from now on nothing can refer to it, and the same content, uploaded again, makes a new file.
pub async fn condemn(tx: &mut TenantTx, id: FileId, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE files SET condemned_at = $2, updated_at = $2 WHERE id = $1", params![id, now]).await?;
    Ok(())
}

/// Living files that no document refers to and that have not been touched since `before`.
pub async fn list_orphaned(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<FileId>> {
    let rows = connection
        .query(
            "SELECT f.id FROM files f WHERE f.condemned_at IS NULL AND f.updated_at <= $1
             AND NOT EXISTS (SELECT 1 FROM documents d WHERE d.file_id = f.id)
             AND NOT EXISTS (SELECT 1 FROM document_versions v WHERE v.file_id = f.id) ORDER BY f.id LIMIT $2",
            params![before, limit],
        )
        .await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

/// Notes that a document that referred to a file is gone: when it was the last one, the file's grace begins.
pub async fn touch(tx: &mut TenantTx, id: FileId, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE files SET updated_at = $2 WHERE id = $1", params![id, now]).await?;
    Ok(())
}

/// Files that were condemned before a time, with their objects' keys and bytes.
pub async fn list_condemned(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<(FileId, String, u64)>> {
    let rows = connection
        .query(
            "SELECT id, s3_path, file_size FROM files WHERE condemned_at IS NOT NULL AND condemned_at <= $1 ORDER BY condemned_at LIMIT $2",
            params![before, limit],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// So many condemned objects are deleted before their time at most.
pub(crate) const UNSETTLED: u32 = 10_000;

/// The objects' keys and bytes of files that were condemned between two times, and when; the latest ones first.
pub async fn list_condemned_between(
    connection: &mut Connection<Tenant>,
    since: Timestamp,
    before: Timestamp,
) -> Result<Vec<(String, u64, Timestamp)>> {
    let rows = connection
        .query(
            "SELECT s3_path, file_size, condemned_at FROM files WHERE condemned_at > $1 AND condemned_at <= $2
             ORDER BY condemned_at DESC LIMIT $3",
            params![since, before, UNSETTLED],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// Removes the row of a condemned file, after its object is gone.
pub async fn delete_condemned(tx: &mut TenantTx, id: FileId) -> Result<()> {
    tx.execute("DELETE FROM files WHERE id = $1 AND condemned_at IS NOT NULL", params![id]).await?;
    Ok(())
}

/// The files, living or condemned, whose objects' keys begin so, in the order of the keys. A condemned one's object may be gone.
pub async fn list_by_prefix(connection: &mut Connection<Tenant>, prefix: &str) -> Result<Vec<(File, bool)>> {
    let rows = connection
        .query(
            "SELECT id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type, condemned_at
             FROM files WHERE s3_path >= $1 AND s3_path < $2 ORDER BY s3_path",
            params![prefix, after(prefix)],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok((file(&mut row)?, row.take::<Option<Timestamp>>()?.is_none()))).collect()
}

/// The first text behind all that begin so: keys are ASCII.
pub(crate) fn after(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

/// How many files nothing refers to since a time, or are condemned since a time, with their bytes.
pub async fn count_collectable(connection: &mut Connection<Tenant>, before: Timestamp) -> Result<(u64, u64)> {
    let mut row = connection
        .query_one(
            "SELECT COUNT(*), CAST(COALESCE(SUM(f.file_size), 0) AS BIGINT) FROM files f
             WHERE COALESCE(f.condemned_at, f.updated_at) <= $1
               AND NOT EXISTS (SELECT 1 FROM documents d WHERE d.file_id = f.id)
               AND NOT EXISTS (SELECT 1 FROM document_versions v WHERE v.file_id = f.id)",
            params![before],
        )
        .await?;
    Ok((row.take()?, row.take()?))
}

/// Every object key that a row knows: of living and condemned files.
pub async fn list_object_keys(connection: &mut Connection<Tenant>) -> Result<Vec<String>> {
    let rows = connection.query("SELECT s3_path FROM files", params![]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

pub(crate) fn file(row: &mut Row) -> Result<File> {
    let id = row.take()?;
    let md5: String = row.take()?;
    let md5 = ContentHash::parse_md5(&md5).ok_or_else(|| Error::Internal("a file's MD5 is damaged".into()))?;
    Ok(File {
        id,
        hash: ContentHash { md5, sha256: row.take()? },
        object_key: row.take()?,
        size: row.take()?,
        created_at: row.take()?,
        updated_at: row.take()?,
        created_by: row.take()?,
        detected_mime_type: row.take()?,
    })
}
