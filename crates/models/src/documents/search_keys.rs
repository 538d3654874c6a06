//! The search keys of documents' names, which are computed by the program.

use database::{Connection, Result, Tenant, TenantTx, params};
use domain::{DocumentId, search_key};

/// Up to `limit` documents whose search key is missing or outdated, with their names.
pub async fn list_outdated(connection: &mut Connection<Tenant>, limit: u32) -> Result<Vec<(DocumentId, String)>> {
    let rows = connection
        .query("SELECT id, filename FROM documents WHERE filename_keyed IS NULL OR filename_keyed <> filename LIMIT $1", params![limit])
        .await?;
    rows.into_iter().map(|mut row| Ok((row.take()?, row.take()?))).collect()
}

/// Sets the search key of a document, unless it was renamed since.
pub fn set(tx: &mut TenantTx, id: DocumentId, filename: &str) {
    tx.defer(
        "UPDATE documents SET filename_key = $3, filename_keyed = $2 WHERE id = $1 AND filename = $2",
        params![id, filename, search_key(filename)],
    );
}
