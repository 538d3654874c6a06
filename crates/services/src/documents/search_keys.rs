//! Search keys of names that were stored without: before there were any, or by a program that does not know them.

use domain::Result;
use models::{TenantDatabase, search_keys};

/// How many documents a transaction changes.
const BATCH: u32 = 500;

/// Computes the missing search keys, in batches. If interrupted, the next call continues.
pub(crate) async fn compute_search_keys(database: &TenantDatabase) -> Result<()> {
    loop {
        let outdated = search_keys::list_outdated(&mut database.read().await?, BATCH).await?;
        if outdated.is_empty() {
            return Ok(());
        }
        let mut tx = database.begin().await?;
        for (id, filename) in &outdated {
            search_keys::set(&mut tx, *id, filename);
        }
        tx.commit().await?;
    }
}
