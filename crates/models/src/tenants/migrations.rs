//! The migration ledger: the latest attempt for each tenant's database.

use database::{Connection, Main, MainTx, Result, Row, params};
use domain::{MigrationAttempt, MigrationOutcome};

use crate::word;

/// Records an attempt, which replaces the tenant's previous one. Does nothing if the tenant no longer exists.
pub async fn note(tx: &mut MainTx, attempt: &MigrationAttempt) -> Result<()> {
    tx.execute(
        "INSERT INTO tenant_migrations (tenant_id, wanted_version, from_version, outcome, error, began_at, ended_at)
         SELECT id, $2, $3, $4, $5, $6, $7 FROM tenants WHERE id = $1
         ON CONFLICT (tenant_id) DO UPDATE SET wanted_version = excluded.wanted_version, from_version = excluded.from_version,
         outcome = excluded.outcome, error = excluded.error, began_at = excluded.began_at, ended_at = excluded.ended_at",
        params![
            attempt.tenant_id,
            attempt.wanted_version,
            attempt.from_version,
            attempt.outcome.as_str(),
            attempt.error.as_deref(),
            attempt.began_at,
            attempt.ended_at
        ],
    )
    .await?;
    Ok(())
}

/// The unsuccessful attempts that no other instance has since made good, in the order in which the tenants were created.
pub async fn list_unsettled(connection: &mut Connection<Main>) -> Result<Vec<MigrationAttempt>> {
    let rows = connection
        .query(
            "SELECT m.tenant_id, m.wanted_version, m.from_version, m.outcome, m.error, m.began_at, m.ended_at
             FROM tenant_migrations m JOIN tenants t ON t.id = m.tenant_id
             WHERE m.outcome <> 'migrated' AND (t.schema_version < m.wanted_version OR t.quarantined_at IS NOT NULL)
             ORDER BY m.tenant_id",
            params![],
        )
        .await?;
    rows.into_iter().map(attempt).collect()
}

fn attempt(mut row: Row) -> Result<MigrationAttempt> {
    Ok(MigrationAttempt {
        tenant_id: row.take()?,
        wanted_version: row.take()?,
        from_version: row.take()?,
        outcome: word(&mut row, MigrationOutcome::parse)?,
        error: row.take()?,
        began_at: row.take()?,
        ended_at: row.take()?,
    })
}
