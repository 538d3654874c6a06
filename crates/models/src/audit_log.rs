//! The audit log: what somebody did that an auditor wants to know, in the tenant's database; in the main one what concerns no
//! tenant, or one that is no more. Rows are added only; the databases refuse anything else.

use database::{Connection, Main, MainTx, Result, Row, Statement, Tenant, TenantTx, params};
use domain::{AuditEntry, AuditFilter, Page, PageRequest, TenantId};

use crate::page;

/// Adds an entry to a tenant's log, unless it is there.
pub fn insert(tx: &mut TenantTx, entry: &AuditEntry) {
    tx.defer(
        "INSERT INTO audit_log (event_id, action, user_id, occurred_at, data) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (event_id) DO NOTHING",
        params![entry.event_id, entry.action.as_str(), entry.user_id, entry.at, entry.data.as_str()],
    );
}

/// Adds an entry to the platform's log, unless it is there.
pub fn insert_platform(tx: &mut MainTx, entry: &AuditEntry) {
    tx.defer(
        "INSERT INTO audit_log (event_id, tenant_id, action, user_id, occurred_at, data) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (event_id) DO NOTHING",
        params![entry.event_id, entry.tenant_id, entry.action.as_str(), entry.user_id, entry.at, entry.data.as_str()],
    );
}

/// Restricts a list to what [`AuditFilter`] says, which is given as `$1` to `$4`.
macro_rules! filtered {
    ($head:literal, $($rest:literal),*) => {
        concat!(
            $head,
            " FROM audit_log WHERE (CAST($1 AS TEXT) IS NULL OR action = $1) AND (CAST($2 AS UUID) IS NULL OR user_id = $2)
              AND (CAST($3 AS TIMESTAMPTZ) IS NULL OR occurred_at >= $3) AND (CAST($4 AS TIMESTAMPTZ) IS NULL OR occurred_at < $4) ",
            $($rest),*
        )
    };
}

/// Restricts a list of the platform's log to one tenant's entries too, which is given as `$5`.
macro_rules! platform_filtered {
    ($head:literal, $rest:literal) => {
        filtered!($head, "AND (CAST($5 AS UUID) IS NULL OR tenant_id = $5) ", $rest)
    };
}

/// The platform's log, the latest entries first; only what concerns this tenant, if one is given.
pub async fn list_platform(
    connection: &mut Connection<Main>,
    tenant_id: Option<TenantId>,
    filter: &AuditFilter,
    request: PageRequest,
) -> Result<Page<AuditEntry>> {
    let AuditFilter { action, user_id, from, to } = filter;
    let count = Statement::new(platform_filtered!("SELECT COUNT(*)", ""), params![action.as_deref(), *user_id, *from, *to, tenant_id]);
    let items = Statement::new(
        platform_filtered!(
            "SELECT tenant_id, event_id, action, user_id, occurred_at, data",
            "ORDER BY occurred_at DESC, event_id DESC LIMIT $6 OFFSET $7"
        ),
        params![action.as_deref(), *user_id, *from, *to, tenant_id, request.per_page(), request.offset()],
    );
    page(connection, count, items, request, |mut row| {
        let tenant_id = row.take()?;
        Ok(AuditEntry { tenant_id, ..entry(row)? })
    })
    .await
}

/// A tenant's log, the latest entries first.
pub async fn list(connection: &mut Connection<Tenant>, filter: &AuditFilter, request: PageRequest) -> Result<Page<AuditEntry>> {
    let AuditFilter { action, user_id, from, to } = filter;
    let count = Statement::new(filtered!("SELECT COUNT(*)", ""), params![action.as_deref(), *user_id, *from, *to]);
    let items = Statement::new(
        filtered!("SELECT event_id, action, user_id, occurred_at, data", "ORDER BY occurred_at DESC, event_id DESC LIMIT $5 OFFSET $6"),
        params![action.as_deref(), *user_id, *from, *to, request.per_page(), request.offset()],
    );
    page(connection, count, items, request, entry).await
}

fn entry(mut row: Row) -> Result<AuditEntry> {
    Ok(AuditEntry { event_id: row.take()?, tenant_id: None, action: row.take()?, user_id: row.take()?, at: row.take()?, data: row.take()? })
}
