//! The audit log. A tenant's entries are in its database; those without a tenant, or of a deleted one, are in the main database.
//! Rows are only ever inserted; the databases reject anything else.

use database::{Connection, Main, MainTx, Result, Row, Statement, Tenant, TenantTx, params};
use domain::{AuditEntry, AuditFilter, Page, PageRequest, TenantId, Timestamp};

use crate::page;

/// Adds an entry to a tenant's log, unless it exists.
pub fn insert(tx: &mut TenantTx, entry: &AuditEntry) {
    tx.defer(
        "INSERT INTO audit_log (event_id, action, user_id, occurred_at, data) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (event_id) DO NOTHING",
        params![entry.event_id, entry.action.as_str(), entry.user_id, entry.at, entry.data.as_str()],
    );
}

/// Adds an entry to the platform's log, unless it exists.
pub fn insert_platform(tx: &mut MainTx, entry: &AuditEntry) {
    tx.defer(
        "INSERT INTO audit_log (event_id, tenant_id, action, user_id, occurred_at, data) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (event_id) DO NOTHING",
        params![entry.event_id, entry.tenant_id, entry.action.as_str(), entry.user_id, entry.at, entry.data.as_str()],
    );
}

/// Bounds for a filter without times: all entries lie between them.
const EARLIEST: Timestamp = Timestamp::from_seconds(0);
const LATEST: Timestamp = Timestamp::from_seconds(253_402_300_799);

/// The statements that count and list the entries between two times that meet a condition. The last parameters are those of the
/// page.
macro_rules! statements {
    ($condition:literal, $limit:literal, $offset:literal) => {
        (
            concat!("SELECT COUNT(*) FROM audit_log WHERE occurred_at >= $1 AND occurred_at < $2", $condition),
            concat!(
                "SELECT event_id, action, user_id, occurred_at, data FROM audit_log WHERE occurred_at >= $1 AND occurred_at < $2",
                $condition,
                " ORDER BY occurred_at DESC, event_id DESC LIMIT ",
                $limit,
                " OFFSET ",
                $offset
            ),
        )
    };
}

/// A tenant's log, latest entries first.
pub async fn list(connection: &mut Connection<Tenant>, filter: &AuditFilter, request: PageRequest) -> Result<Page<AuditEntry>> {
    let AuditFilter { action, user_id, from, to } = filter;
    let mut parameters = params![from.unwrap_or(EARLIEST), to.unwrap_or(LATEST)];
    parameters.extend(action.as_deref().map(Into::into));
    parameters.extend(user_id.map(Into::into));
    // One statement per combination: an optional condition, as in `CAST($1 AS TEXT) IS NULL OR …`, could not use an index.
    let (count, items) = match (action, user_id) {
        (None, None) => statements!("", "$3", "$4"),
        (Some(_), None) => statements!(" AND action = $3", "$4", "$5"),
        (None, Some(_)) => statements!(" AND user_id = $3", "$4", "$5"),
        (Some(_), Some(_)) => statements!(" AND action = $3 AND user_id = $4", "$5", "$6"),
    };
    let count = Statement::new(count, parameters.clone());
    parameters.extend(params![request.per_page(), request.offset()]);
    page(connection, count, Statement::new(items, parameters), request, entry).await
}

/// A statement over the platform's log whose filter parameters are optional.
macro_rules! of_platform {
    ($head:literal, $rest:literal) => {
        concat!(
            $head,
            " FROM audit_log WHERE (CAST($1 AS TEXT) IS NULL OR action = $1) AND (CAST($2 AS UUID) IS NULL OR user_id = $2)
              AND (CAST($3 AS UUID) IS NULL OR tenant_id = $3) AND occurred_at >= $4 AND occurred_at < $5 ",
            $rest
        )
    };
}

/// The platform's log, latest entries first; only those of this tenant, if one is given.
pub async fn list_platform(
    connection: &mut Connection<Main>,
    tenant_id: Option<TenantId>,
    filter: &AuditFilter,
    request: PageRequest,
) -> Result<Page<AuditEntry>> {
    let AuditFilter { action, user_id, from, to } = filter;
    let mut parameters = params![action.as_deref(), *user_id, tenant_id, from.unwrap_or(EARLIEST), to.unwrap_or(LATEST)];
    let count = Statement::new(of_platform!("SELECT COUNT(*)", ""), parameters.clone());
    parameters.extend(params![request.per_page(), request.offset()]);
    let items = of_platform!(
        "SELECT tenant_id, event_id, action, user_id, occurred_at, data",
        "ORDER BY occurred_at DESC, event_id DESC LIMIT $6 OFFSET $7"
    );
    let of_tenant = |mut row: Row| {
        let tenant_id = row.take()?;
        Ok(AuditEntry { tenant_id, ..entry(row)? })
    };
    page(connection, count, Statement::new(items, parameters), request, of_tenant).await
}

fn entry(mut row: Row) -> Result<AuditEntry> {
    Ok(AuditEntry { event_id: row.take()?, tenant_id: None, action: row.take()?, user_id: row.take()?, at: row.take()?, data: row.take()? })
}
