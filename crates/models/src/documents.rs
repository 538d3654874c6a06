//! Documents.

use database::{Connection, Result, Row, Statement, Tenant, TenantTx, Value, params};
use domain::{Document, DocumentFilter, DocumentId, FileId, Filename, MimeType, Page, PageRequest, Timestamp};

use crate::{files::file, page, single};

/// Selects what [`document`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT d.id, d.filename, d.mime_type, d.user_id, d.created_at, d.updated_at, \
             d.created_by, f.id, f.md5_hash, f.sha256, f.s3_path, f.file_size, \
             f.created_at, f.updated_at, f.created_by \
             FROM documents d JOIN files f ON f.id = d.file_id ",
            $rest
        )
    };
}

/// What [`find`] asks; public so that benchmarks compare the product with this very statement.
pub const FIND: &str = select!("WHERE d.id = $1");

/// Adds a document. Its file's row must be locked or new.
pub async fn insert(tx: &mut TenantTx, document: &Document) -> Result<()> {
    tx.execute(
        "INSERT INTO documents (id, filename, filename_folded, mime_type, file_id, user_id, created_at, updated_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        params![
            document.id,
            document.filename.as_str(),
            document.filename.to_lowercase(),
            document.mime_type.as_str(),
            document.file.id,
            document.user_id,
            document.created_at,
            document.updated_at,
            document.created_by
        ],
    )
    .await?;
    Ok(())
}

/// The document with this id.
pub async fn find(connection: &mut Connection<Tenant>, id: DocumentId) -> Result<Option<Document>> {
    connection.query_opt(FIND, params![id]).await?.map(document).transpose()
}

/// How many documents there are.
pub async fn count(connection: &mut Connection<Tenant>) -> Result<u64> {
    single(connection.query_one("SELECT COUNT(*) FROM documents", params![]).await?)
}

/// The documents that meet a filter, newest first.
pub async fn list(connection: &mut Connection<Tenant>, filter: &DocumentFilter, request: PageRequest) -> Result<Page<Document>> {
    let conditions = || {
        vec![
            Value::from(filter.filename.as_deref().map(contains_pattern)),
            Value::from(filter.user_id),
            Value::from(filter.mime_type.as_ref().map(MimeType::as_str)),
        ]
    };
    let (count, items) = if *filter == DocumentFilter::default() {
        // By far the commonest list, in the order of its index.
        let count = Statement::new("SELECT COUNT(*) FROM documents", params![]);
        let items = Statement::new(
            select!("ORDER BY d.created_at DESC, d.id DESC LIMIT $1 OFFSET $2"),
            params![request.per_page(), request.offset()],
        );
        (count, items)
    } else {
        let count = Statement::new(
            "SELECT COUNT(*) FROM documents d
             WHERE (CAST($1 AS TEXT) IS NULL OR d.filename_folded LIKE $1 ESCAPE '!')
               AND (CAST($2 AS UUID) IS NULL OR d.user_id = $2)
               AND (CAST($3 AS TEXT) IS NULL OR d.mime_type = $3)",
            conditions(),
        );
        let mut params = conditions();
        params.extend(params![request.per_page(), request.offset()]);
        let items = Statement::new(
            select!(
                "WHERE (CAST($1 AS TEXT) IS NULL OR d.filename_folded LIKE $1 ESCAPE '!')
             AND (CAST($2 AS UUID) IS NULL OR d.user_id = $2)
             AND (CAST($3 AS TEXT) IS NULL OR d.mime_type = $3)
             ORDER BY d.created_at DESC, d.id DESC LIMIT $4 OFFSET $5"
            ),
            params,
        );
        (count, items)
    };
    page(connection, count, items, request, document).await
}

/// The documents that refer to a file, newest first.
pub async fn list_by_file(connection: &mut Connection<Tenant>, file_id: FileId) -> Result<Vec<Document>> {
    let rows = connection.query(select!("WHERE d.file_id = $1 ORDER BY d.created_at DESC, d.id DESC"), params![file_id]).await?;
    rows.into_iter().map(document).collect()
}

/// How many documents refer to a file.
pub async fn count_by_file(connection: &mut Connection<Tenant>, file_id: FileId) -> Result<u64> {
    single(connection.query_one("SELECT COUNT(*) FROM documents WHERE file_id = $1", params![file_id]).await?)
}

/// Changes what is given. Answers whether there is such a document.
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
                    mime_type = COALESCE($4, mime_type), updated_at = $5 WHERE id = $1",
            params![
                id,
                filename.map(Filename::as_str),
                filename.map(|name| name.as_str().to_lowercase()),
                mime_type.map(MimeType::as_str),
                now
            ],
        )
        .await?;
    Ok(changed == 1)
}

/// Removes a document. Answers whether there was one. Its file's row must be locked.
pub async fn delete(tx: &mut TenantTx, id: DocumentId) -> Result<bool> {
    Ok(tx.execute("DELETE FROM documents WHERE id = $1", params![id]).await? == 1)
}

/// The pattern for "contains this text, in any case", in which nothing of the text is special.
fn contains_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

fn document(mut row: Row) -> Result<Document> {
    Ok(Document {
        id: row.take()?,
        filename: row.take()?,
        mime_type: row.take()?,
        user_id: row.take()?,
        created_at: row.take()?,
        updated_at: row.take()?,
        created_by: row.take()?,
        file: file(&mut row)?,
    })
}
