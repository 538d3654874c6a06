//! Documents.

use database::{Connection, Result, Row, Statement, Tenant, TenantTx, Value, params};
use domain::{Document, DocumentFilter, DocumentId, FileId, Filename, MimeType, Page, PageRequest, Timestamp, UserId, search_key};

use crate::{documents::files::file, page, single};

/// Selects the columns that [`document`] reads.
macro_rules! select_documents {
    ($rest:literal) => {
        concat!(
            "SELECT d.id, d.filename, d.mime_type, d.user_id, d.created_at, d.updated_at, \
             d.created_by, d.version, d.content_at, d.content_by, d.deleted_at, d.deleted_by, f.id, f.md5_hash, f.sha256, f.s3_path, f.file_size, \
             f.created_at, f.updated_at, f.created_by, f.detected_mime_type \
             FROM documents d JOIN files f ON f.id = d.file_id ",
            $rest
        )
    };
}

pub(crate) use select_documents;

/// The statement of [`find`]. Public so that benchmarks use the same statement as the product.
pub const FIND: &str = select_documents!("WHERE d.id = $1 AND d.deleted_at IS NULL");

/// Adds a document. The row of its file must be locked or new.
pub fn insert(tx: &mut TenantTx, document: &Document) {
    tx.defer(
        "INSERT INTO documents (id, filename, filename_folded, filename_key, filename_keyed, mime_type, file_id, user_id, created_at,
                                updated_at, created_by)
         VALUES ($1, $2, $3, $4, $2, $5, $6, $7, $8, $9, $10)",
        params![
            document.id,
            document.filename.as_str(),
            document.filename.to_lowercase(),
            search_key(&document.filename),
            document.mime_type.as_str(),
            document.file.id,
            document.user_id,
            document.created_at,
            document.updated_at,
            document.created_by
        ],
    );
}

/// The document with this id, unless it is in the trash.
pub async fn find(connection: &mut Connection<Tenant>, id: DocumentId) -> Result<Option<Document>> {
    connection.query_opt(FIND, params![id]).await?.map(document).transpose()
}

/// Finds the document with this id and locks its row until the transaction ends, so that concurrent changes wait. Lock order:
/// documents before files.
pub async fn lock(tx: &mut TenantTx, id: DocumentId) -> Result<Option<Document>> {
    tx.query_opt("SELECT id FROM documents WHERE id = $1 FOR UPDATE", params![id]).await?;
    find(tx, id).await
}

/// The number of documents outside the trash.
pub async fn count(connection: &mut Connection<Tenant>) -> Result<u64> {
    single(connection.query_one("SELECT COUNT(*) FROM documents WHERE deleted_at IS NULL", params![]).await?)
}

/// The documents that match a filter, newest first.
pub async fn list(connection: &mut Connection<Tenant>, filter: &DocumentFilter, request: PageRequest) -> Result<Page<Document>> {
    let conditions = || {
        vec![
            Value::from(filter.filename.as_deref().map(|text| contains_pattern(&search_key(text)))),
            Value::from(filter.filename.as_deref().map(|text| contains_pattern(&text.to_lowercase()))),
            Value::from(filter.user_id),
            Value::from(filter.mime_type.as_ref().map(MimeType::as_str)),
        ]
    };
    let (count, items) = if *filter == DocumentFilter::default() {
        // By far the most frequent list; this statement follows an index.
        let count = Statement::new("SELECT COUNT(*) FROM documents WHERE deleted_at IS NULL", params![]);
        let items = Statement::new(
            select_documents!("WHERE d.deleted_at IS NULL ORDER BY d.created_at DESC, d.id DESC LIMIT $1 OFFSET $2"),
            params![request.per_page(), request.offset()],
        );
        (count, items)
    } else {
        let count = Statement::new(
            "SELECT COUNT(*) FROM documents d
             WHERE d.deleted_at IS NULL
               AND (CAST($1 AS TEXT) IS NULL OR CASE WHEN d.filename_keyed = d.filename THEN d.filename_key LIKE $1 ESCAPE '!'
                                                     ELSE d.filename_folded LIKE $2 ESCAPE '!' END)
               AND (CAST($3 AS UUID) IS NULL OR d.user_id = $3)
               AND (CAST($4 AS TEXT) IS NULL OR d.mime_type = $4)",
            conditions(),
        );
        let mut params = conditions();
        params.extend(params![request.per_page(), request.offset()]);
        let items = Statement::new(
            select_documents!(
                "WHERE d.deleted_at IS NULL
             AND (CAST($1 AS TEXT) IS NULL OR CASE WHEN d.filename_keyed = d.filename THEN d.filename_key LIKE $1 ESCAPE '!'
                                                   ELSE d.filename_folded LIKE $2 ESCAPE '!' END)
             AND (CAST($3 AS UUID) IS NULL OR d.user_id = $3)
             AND (CAST($4 AS TEXT) IS NULL OR d.mime_type = $4)
             ORDER BY d.created_at DESC, d.id DESC LIMIT $5 OFFSET $6"
            ),
            params,
        );
        (count, items)
    };
    page(connection, count, items, request, document).await
}

/// The documents with a current or former version that refers to this file, newest first, those in the trash included.
pub async fn list_by_file(connection: &mut Connection<Tenant>, file_id: FileId) -> Result<Vec<Document>> {
    let rows = connection
        .query(
            select_documents!(
                "WHERE d.id IN (SELECT id FROM documents WHERE file_id = $1
                                UNION SELECT document_id FROM document_versions WHERE file_id = $1)
                 ORDER BY d.created_at DESC, d.id DESC"
            ),
            params![file_id],
        )
        .await?;
    rows.into_iter().map(document).collect()
}

/// The number of versions, current and former, in the trash or not, that refer to this file. This is a single statement, so that
/// it counts a version that a concurrent update archives.
pub async fn count_by_file(connection: &mut Connection<Tenant>, file_id: FileId) -> Result<u64> {
    let counted = connection
        .query_one(
            "SELECT (SELECT COUNT(*) FROM documents WHERE file_id = $1)
                  + (SELECT COUNT(*) FROM document_versions WHERE file_id = $1)",
            params![file_id],
        )
        .await?;
    single(counted)
}

/// Sets a new current version. The document must be locked.
pub async fn set_content(
    tx: &mut TenantTx,
    id: DocumentId,
    version: u64,
    file_id: FileId,
    mime_type: &str,
    user_id: UserId,
    now: Timestamp,
) -> Result<()> {
    tx.execute(
        "UPDATE documents SET version = $2, file_id = $3, mime_type = $4, content_by = $5, content_at = $6, updated_at = $6 WHERE id = $1",
        params![id, version, file_id, mime_type, user_id, now],
    )
    .await?;
    Ok(())
}

/// Changes the fields that are given. Returns whether the document exists.
pub async fn update(
    tx: &mut TenantTx,
    id: DocumentId,
    filename: Option<&Filename>,
    mime_type: Option<&MimeType>,
    now: Timestamp,
) -> Result<bool> {
    let changed = tx
        .execute(
            "UPDATE documents SET filename = COALESCE($2, filename), filename_folded = COALESCE($3, filename_folded),
                    filename_key = COALESCE($4, filename_key), filename_keyed = COALESCE($2, filename_keyed),
                    mime_type = COALESCE($5, mime_type), updated_at = $6 WHERE id = $1 AND deleted_at IS NULL",
            params![
                id,
                filename.map(Filename::as_str),
                filename.map(|name| name.as_str().to_lowercase()),
                filename.map(|name| search_key(name.as_str())),
                mime_type.map(MimeType::as_str),
                now
            ],
        )
        .await?;
    Ok(changed == 1)
}

/// Removes a document with its former versions. Returns whether it existed. The rows of their files must be locked.
pub async fn delete(tx: &mut TenantTx, id: DocumentId) -> Result<bool> {
    Ok(tx.execute("DELETE FROM documents WHERE id = $1", params![id]).await? == 1)
}

/// The LIKE pattern for a substring match; the text's wildcards are escaped.
fn contains_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

pub(crate) fn document(mut row: Row) -> Result<Document> {
    let (id, filename, mime_type, user_id) = (row.take()?, row.take()?, row.take()?, row.take()?);
    let (created_at, updated_at, created_by) = (row.take()?, row.take()?, row.take()?);
    let (version, content_at, content_by): (_, Option<Timestamp>, Option<UserId>) = (row.take()?, row.take()?, row.take()?);
    Ok(Document {
        id,
        filename,
        mime_type,
        user_id,
        created_at,
        updated_at,
        created_by,
        version,
        content_at: content_at.unwrap_or(created_at),
        // The first version was created with the document.
        content_by: if content_at.is_some() { content_by } else { created_by },
        deleted_at: row.take()?,
        deleted_by: row.take()?,
        file: file(&mut row)?,
    })
}
