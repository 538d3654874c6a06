//! Uploads that come in parts, and those of their parts that are objects of their own.

use database::{Connection, Result, Row, Tenant, TenantTx, params};
use domain::{ContentHash, DocumentId, Gathered, MultipartUpload, Timestamp, UploadId, UploadPart, UploadProtocol, UploadState};

use crate::{documents::files::after, word};

/// Selects what [`staged_upload`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, protocol, state, user_id, filename, mime_type, metadata, file_size, sha256, md5_hash, received_bytes, s3_path, \
             storage_upload_id, part_size, document_id, deduplicated, failure, created_at, updated_at, expires_at FROM staged_uploads ",
            $rest
        )
    };
}

/// Adds an upload.
pub async fn insert(tx: &mut TenantTx, upload: &MultipartUpload) -> Result<()> {
    tx.execute(
        "INSERT INTO staged_uploads (id, protocol, state, user_id, filename, mime_type, metadata, file_size, sha256, md5_hash,
             received_bytes, s3_path, storage_upload_id, part_size, deduplicated, created_at, updated_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
        params![
            upload.id,
            upload.protocol.as_str(),
            upload.state.as_str(),
            upload.user_id,
            upload.filename.as_str(),
            upload.mime_type.as_str(),
            upload.metadata.as_str(),
            upload.size,
            upload.sha256.as_ref().map(|hash| &hash[..]),
            upload.md5.map(|md5| ContentHash { md5, sha256: [0; 32] }.md5_hex()),
            upload.received,
            upload.gathered.as_ref().map(|gathered| gathered.key.as_str()),
            upload.gathered.as_ref().map(|gathered| gathered.storage_upload_id.as_str()),
            upload.part_size,
            false,
            upload.created_at,
            upload.updated_at,
            upload.expires_at
        ],
    )
    .await?;
    Ok(())
}

/// The upload with this id.
pub async fn find(connection: &mut Connection<Tenant>, id: UploadId) -> Result<Option<MultipartUpload>> {
    connection.query_opt(select!("WHERE id = $1"), params![id]).await?.map(staged_upload).transpose()
}

/// The upload with this id, locked until the end of the transaction. Whoever locks documents, files or the quota, too, locks the
/// upload first.
pub async fn lock(tx: &mut TenantTx, id: UploadId) -> Result<Option<MultipartUpload>> {
    tx.query_opt(select!("WHERE id = $1 FOR UPDATE"), params![id]).await?.map(staged_upload).transpose()
}

/// Uploads whose time is over.
pub async fn list_expired(connection: &mut Connection<Tenant>, now: Timestamp, limit: u32) -> Result<Vec<MultipartUpload>> {
    let rows = connection
        .query(select!("WHERE expires_at <= $1 AND state <> 'completing' ORDER BY expires_at, id LIMIT $2"), params![now, limit])
        .await?;
    rows.into_iter().map(staged_upload).collect()
}

/// Uploads that were being completed at a time and to which nothing has happened since.
pub async fn list_stuck(connection: &mut Connection<Tenant>, since: Timestamp) -> Result<Vec<MultipartUpload>> {
    let rows = connection.query(select!("WHERE state = 'completing' AND updated_at <= $1 ORDER BY updated_at, id"), params![since]).await?;
    rows.into_iter().map(staged_upload).collect()
}

/// How many uploads have expired.
pub async fn count_expired(connection: &mut Connection<Tenant>, now: Timestamp) -> Result<u64> {
    let expired = "SELECT COUNT(*) FROM staged_uploads WHERE expires_at <= $1 AND state <> 'completing'";
    crate::single(connection.query_one(expired, params![now]).await?)
}

/// Notes how far an upload, which must be locked, is.
pub async fn set_state(
    tx: &mut TenantTx,
    id: UploadId,
    state: UploadState,
    document: Option<(DocumentId, bool)>,
    failure: Option<&str>,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<()> {
    tx.execute(
        "UPDATE staged_uploads SET state = $2, document_id = $3, deduplicated = $4, failure = $5, updated_at = $6, expires_at = $7
         WHERE id = $1",
        params![
            id,
            state.as_str(),
            document.map(|(document, _)| document),
            document.is_some_and(|(_, deduplicated)| deduplicated),
            failure,
            now,
            expires_at
        ],
    )
    .await?;
    Ok(())
}

/// Notes how much of an upload, which must be locked, is here, and until when it is waited for the rest.
pub async fn set_received(tx: &mut TenantTx, id: UploadId, received: u64, now: Timestamp, expires_at: Timestamp) -> Result<()> {
    tx.execute(
        "UPDATE staged_uploads SET received_bytes = $2, updated_at = $3, expires_at = $4 WHERE id = $1",
        params![id, received, now, expires_at],
    )
    .await?;
    Ok(())
}

/// Adds a part of an upload, which must be locked, in the place of one that was there before. Answers the key of that.
pub async fn replace_part(tx: &mut TenantTx, id: UploadId, part: &UploadPart) -> Result<Option<String>> {
    let replaced = tx
        .query_opt("DELETE FROM staged_parts WHERE upload_id = $1 AND part_offset = $2 RETURNING s3_path", params![id, part.offset])
        .await?;
    tx.execute(
        "INSERT INTO staged_parts (upload_id, part_offset, part_size, s3_path) VALUES ($1, $2, $3, $4)",
        params![id, part.offset, part.size, part.key.as_str()],
    )
    .await?;
    replaced.map(crate::single).transpose()
}

/// The parts of an upload, in order.
pub async fn list_parts(connection: &mut Connection<Tenant>, id: UploadId) -> Result<Vec<UploadPart>> {
    let rows = connection
        .query("SELECT part_offset, part_size, s3_path FROM staged_parts WHERE upload_id = $1 ORDER BY part_offset", params![id])
        .await?;
    rows.into_iter().map(|mut row| Ok(UploadPart { offset: row.take()?, size: row.take()?, key: row.take()? })).collect()
}

/// How many parts an upload has.
pub async fn count_parts(connection: &mut Connection<Tenant>, id: UploadId) -> Result<u64> {
    crate::single(connection.query_one("SELECT COUNT(*) FROM staged_parts WHERE upload_id = $1", params![id]).await?)
}

/// Gives up the objects of an upload, which must be locked: they are condemned as those of abandoned uploads are.
pub async fn condemn_objects(tx: &mut TenantTx, id: UploadId, now: Timestamp) -> Result<()> {
    tx.execute(
        "INSERT INTO uploads (s3_path, expires_at, condemned_at, reserved_bytes, reserved_documents)
         SELECT s3_path, CAST($2 AS TIMESTAMPTZ), CAST($2 AS TIMESTAMPTZ), 0, 0 FROM staged_parts WHERE upload_id = $1
         UNION ALL SELECT s3_path, CAST($2 AS TIMESTAMPTZ), CAST($2 AS TIMESTAMPTZ), 0, 0 FROM staged_uploads WHERE id = $1 AND s3_path IS NOT NULL",
        params![id, now],
    )
    .await?;
    tx.execute("DELETE FROM staged_parts WHERE upload_id = $1", params![id]).await?;
    tx.execute("UPDATE staged_uploads SET s3_path = NULL, storage_upload_id = NULL WHERE id = $1", params![id]).await?;
    Ok(())
}

/// Forgets an upload, whose objects must have been condemned.
pub async fn delete(tx: &mut TenantTx, id: UploadId) -> Result<()> {
    tx.execute("DELETE FROM staged_uploads WHERE id = $1", params![id]).await?;
    Ok(())
}

/// The keys of objects that belong to uploads and begin so.
pub async fn list_keys(connection: &mut Connection<Tenant>, prefix: &str) -> Result<Vec<String>> {
    let rows = connection
        .query(
            "SELECT s3_path FROM staged_parts WHERE s3_path >= $1 AND s3_path < $2
             UNION ALL SELECT s3_path FROM staged_uploads WHERE s3_path >= $1 AND s3_path < $2",
            params![prefix, after(prefix)],
        )
        .await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}

fn staged_upload(mut row: Row) -> Result<MultipartUpload> {
    let (id, protocol, state) = (row.take()?, word(&mut row, UploadProtocol::parse)?, word(&mut row, UploadState::parse)?);
    let (user_id, filename, mime_type, metadata) = (row.take()?, row.take()?, row.take()?, row.take()?);
    let (size, sha256) = (row.take()?, row.take()?);
    let (md5, received): (Option<String>, _) = (row.take()?, row.take()?);
    let (key, storage_upload_id): (Option<String>, Option<String>) = (row.take()?, row.take()?);
    let gathered = key.zip(storage_upload_id).map(|(key, storage_upload_id)| Gathered { key, storage_upload_id });
    let part_size = row.take()?;
    let (document, deduplicated): (Option<DocumentId>, bool) = (row.take()?, row.take()?);
    Ok(MultipartUpload {
        id,
        protocol,
        state,
        user_id,
        filename,
        mime_type,
        metadata,
        size,
        sha256,
        md5: md5.as_deref().and_then(ContentHash::parse_md5),
        received,
        gathered,
        part_size,
        document: document.map(|document| (document, deduplicated)),
        failure: row.take()?,
        created_at: row.take()?,
        updated_at: row.take()?,
        expires_at: row.take()?,
    })
}
