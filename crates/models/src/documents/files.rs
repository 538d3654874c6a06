//! Files: content, stored once per tenant.
//!
//! A file is live until it is marked for deletion. A transaction that adds a reference to a file, or checks for references, first
//! locks the file's row, so that the two can't interleave.

use std::collections::BTreeSet;

use database::{Connection, Error, Result, Row, Statement, Tenant, TenantTx, Value, params};
use domain::{ContentHash, File, FileId, FileUsage, Page, PageRequest, Timestamp};

use crate::{page, single};

/// Selects the columns that [`file()`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type FROM files ",
            $rest
        )
    };
}

/// The outcome of adding a file whose object is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// The file was added, and its upload intent removed.
    Added,
    /// A file with the same content exists; the upload intent is unchanged.
    AlreadyThere,
    /// The upload intent has been marked for deletion, so no file may use its object. The transaction must not commit.
    Expired,
}

/// Adds a file, unless one with the same content exists, and removes the upload intent of its object.
pub async fn add(tx: &mut TenantTx, file: &File) -> Result<InsertOutcome> {
    let insert = Statement::new(
        "INSERT INTO files (id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type, processed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (sha256, file_size) WHERE condemned_at IS NULL DO NOTHING",
        values(file),
    );
    let remove_intent = Statement::new(
        "DELETE FROM uploads WHERE s3_path = $1 AND condemned_at IS NULL AND EXISTS (SELECT 1 FROM files WHERE id = $2)",
        params![file.object_key.as_str(), file.id],
    );
    let affected: Vec<u64> = tx.batch(vec![insert, remove_intent]).await?.into_iter().map(|outcome| outcome.affected).collect();
    Ok(match affected[..] {
        [1, 1] => InsertOutcome::Added,
        [1, _] => InsertOutcome::Expired,
        _ => InsertOutcome::AlreadyThere,
    })
}

/// Adds a file with deferred statements. If it can't be added, the commit fails with an error that [`could_not_be_added`]
/// recognises.
pub fn add_or_fail(tx: &mut TenantTx, file: &File) {
    let key = file.object_key.as_str();
    tx.defer("SELECT 1 FROM uploads WHERE s3_path = $1 FOR UPDATE", params![key]);
    // If the upload intent was marked for deletion, the key is NULL, which the schema rejects.
    tx.defer(
        "INSERT INTO files (id, md5_hash, sha256, s3_path, file_size, created_at, updated_at, created_by, detected_mime_type, processed_at)
         VALUES ($1, $2, $3, (SELECT s3_path FROM uploads WHERE s3_path = $4 AND condemned_at IS NULL), $5, $6, $7, $8, $9, $10)",
        values(file),
    );
    tx.defer("DELETE FROM uploads WHERE s3_path = $1", params![key]);
}

/// Whether a commit failed because a file with the same content exists or the upload intent was marked for deletion.
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

/// Those of these live files that are not processed yet, each once, with their object keys and sizes.
pub async fn list_unprocessed(connection: &mut Connection<Tenant>, ids: &BTreeSet<FileId>) -> Result<Vec<(FileId, String, u64)>> {
    let sql = "SELECT id, s3_path, file_size FROM files WHERE id = $1 AND condemned_at IS NULL AND processed_at IS NULL";
    let outcomes = connection.batch(ids.iter().map(|id| Statement::new(sql, params![*id])).collect()).await?;
    let rows = outcomes.into_iter().flat_map(|outcome| outcome.rows);
    rows.map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// The object key of a file that is marked for deletion.
pub async fn find_marked(connection: &mut Connection<Tenant>, id: FileId) -> Result<Option<String>> {
    let found = connection.query_opt("SELECT s3_path FROM files WHERE id = $1 AND condemned_at IS NOT NULL", params![id]).await?;
    found.map(single).transpose()
}

/// Records the detected media type of a file.
pub fn set_processed(tx: &mut TenantTx, id: FileId, detected_mime_type: &str, now: Timestamp) {
    tx.defer("UPDATE files SET detected_mime_type = $2, processed_at = $3 WHERE id = $1", params![id, detected_mime_type, now]);
}

/// Whether a live file with this content exists.
pub async fn is_there(connection: &mut Connection<Tenant>, hash: &ContentHash, size: u64) -> Result<bool> {
    let found = connection
        .query_opt("SELECT 1 FROM files WHERE sha256 = $1 AND file_size = $2 AND condemned_at IS NULL", params![&hash.sha256[..], size])
        .await?;
    Ok(found.is_some())
}

/// Finds the live file with this content and locks its row until the transaction ends.
pub async fn lock_by_content(tx: &mut TenantTx, hash: &ContentHash, size: u64) -> Result<Option<File>> {
    let found = tx
        .query_opt(select!("WHERE sha256 = $1 AND file_size = $2 AND condemned_at IS NULL FOR UPDATE"), params![&hash.sha256[..], size])
        .await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// Finds the live file with this content and locks its row until the transaction ends, if a document outside the trash, which
/// every member may read, has it as its content. This is a single statement, so that its duration does not reveal whether an
/// unreadable file exists.
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

/// Finds the live file with this id and locks its row until the transaction ends.
pub async fn lock(tx: &mut TenantTx, id: FileId) -> Result<Option<File>> {
    let found = tx.query_opt(select!("WHERE id = $1 AND condemned_at IS NULL FOR UPDATE"), params![id]).await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// The live file with this id.
pub async fn find(connection: &mut Connection<Tenant>, id: FileId) -> Result<Option<File>> {
    let found = connection.query_opt(select!("WHERE id = $1 AND condemned_at IS NULL"), params![id]).await?;
    found.map(|mut row| file(&mut row)).transpose()
}

/// Live files, newest first, each with its number of references.
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

/// Marks a file for deletion. From then on no document can refer to it, and another upload of the same content creates a new
/// file.
pub async fn mark_for_deletion(tx: &mut TenantTx, id: FileId, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE files SET condemned_at = $2, updated_at = $2 WHERE id = $1", params![id, now]).await?;
    Ok(())
}

/// Live files without references that were last touched at `before` or earlier.
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

/// Records that a reference to a file was removed. If it was the last one, the file's grace period begins.
pub async fn touch(tx: &mut TenantTx, id: FileId, now: Timestamp) -> Result<()> {
    tx.execute("UPDATE files SET updated_at = $2 WHERE id = $1", params![id, now]).await?;
    Ok(())
}

/// Files marked for deletion at `before` or earlier, with their object keys and sizes.
pub async fn list_marked(connection: &mut Connection<Tenant>, before: Timestamp, limit: u32) -> Result<Vec<(FileId, String, u64)>> {
    let rows = connection
        .query(
            "SELECT id, s3_path, file_size FROM files WHERE condemned_at IS NOT NULL AND condemned_at <= $1 ORDER BY condemned_at LIMIT $2",
            params![before, limit],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// The maximum number of objects within the late-write window that one call lists for early deletion.
pub(crate) const MAX_EARLY_DELETIONS: u32 = 10_000;

/// The object keys and sizes of files marked for deletion between two times, with the time of the mark, latest first.
pub async fn list_marked_between(
    connection: &mut Connection<Tenant>,
    since: Timestamp,
    before: Timestamp,
) -> Result<Vec<(String, u64, Timestamp)>> {
    let rows = connection
        .query(
            "SELECT s3_path, file_size, condemned_at FROM files WHERE condemned_at > $1 AND condemned_at <= $2
             ORDER BY condemned_at DESC LIMIT $3",
            params![since, before, MAX_EARLY_DELETIONS],
        )
        .await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?, row.take()?))).collect()
}

/// Removes the row of a file that is marked for deletion, after its object was deleted.
pub async fn delete_marked(tx: &mut TenantTx, id: FileId) -> Result<()> {
    tx.execute("DELETE FROM files WHERE id = $1 AND condemned_at IS NOT NULL", params![id]).await?;
    Ok(())
}

/// The files whose object keys have this prefix, ordered by key, and for each whether it is live. The object of one that is
/// marked for deletion may be gone.
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

/// An upper bound of all keys with this prefix, since keys are ASCII.
pub(crate) fn after(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

/// The number and total size of the files without references whose grace period began, or that were marked for deletion, at
/// `before` or earlier.
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

/// The object keys of all files, those marked for deletion included.
pub async fn list_object_keys(connection: &mut Connection<Tenant>) -> Result<Vec<String>> {
    let rows = connection.query("SELECT s3_path FROM files", params![]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

pub(crate) fn file(row: &mut Row) -> Result<File> {
    let id = row.take()?;
    let md5: String = row.take()?;
    let md5 = ContentHash::parse_md5(&md5).ok_or_else(|| Error::Internal("a file has a malformed MD5".into()))?;
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
