//! The audit log: what the worker writes into it, and who may read it.

use std::time::Duration;

use domain::{AuditEntry, AuditFilter, Error, Event, Page, PageRequest, Result, Role, TenantId, UserId};
use models::audit;
use moka::sync::Cache;
use serde_json::{Map, Value, json};

use crate::{
    Caller, EventServices, OperatorServices, OrderingKey, UserServices,
    access::{authorize, membership},
    events::{
        events::{audit_event, begin_main},
        outbox::open_tenant,
    },
};

/// For how long a denial is not noted again, and how many are remembered for that.
const DENIALS_EVERY: Duration = Duration::from_secs(10);
const DENIALS: u64 = 10_000;

/// Who was denied what just now.
pub(crate) type Denials = Cache<(UserId, OrderingKey, String), ()>;

pub(crate) fn denials() -> Denials {
    Cache::builder().max_capacity(DENIALS).time_to_live(DENIALS_EVERY).build()
}

impl UserServices {
    /// A tenant's audit log, the latest entries first.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the caller is an admin.
    pub async fn list_audit(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        filter: &AuditFilter,
        request: PageRequest,
    ) -> Result<Page<AuditEntry>> {
        let tenant = authorize(&self.core, caller, tenant_id, Role::Admin).await?;
        Ok(audit::list(&mut tenant.read().await?, filter, request).await?)
    }

    /// Notes that somebody was denied what they wanted, once in a while. A member's tenant learns of it; a stranger's does not, nor
    /// whether there is such a tenant.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn record_denial(&self, access_token: Option<&str>, tenant_id: Option<TenantId>, wanted: &str, code: &str) -> Result<()> {
        let caller = match self.authenticate(access_token).await {
            Err(Error::Unauthenticated(_)) => return Ok(()),
            caller => caller?,
        };
        let member_of = match tenant_id {
            Some(tenant_id) => match membership(&self.core, &caller, tenant_id).await {
                Err(Error::NotFound(_)) => None,
                member => member.map(|_| Some(tenant_id))?,
            },
            None => None,
        };
        // Whoever tries one tenant after the other does not fill the log with them.
        let what = if member_of.is_some() { wanted } else { "" };
        let denial = (caller.user_id(), member_of, what.to_owned());
        if self.core.denials.contains_key(&denial) {
            return Ok(());
        }
        let mut data = json!({ "wanted": wanted, "code": code });
        if member_of.is_none() {
            data["tenant_id"] = tenant_id.map(|id| id.to_string()).into();
        }
        begin_main(&self.core)
            .await?
            .emit_and_commit(&audit_event(&self.core, "access.denied", member_of, Some(caller.user_id()), data))
            .await?;
        self.core.denials.insert(denial, ());
        Ok(())
    }
}

impl OperatorServices {
    /// The platform's audit log, the latest entries first; only what concerns this tenant, if one is given. For the operator.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_platform_audit(
        &self,
        tenant_id: Option<TenantId>,
        filter: &AuditFilter,
        request: PageRequest,
    ) -> Result<Page<AuditEntry>> {
        Ok(audit::list_platform(&mut self.core.main().read().await?, tenant_id, filter, request).await?)
    }
}

impl EventServices {
    /// Writes events of one key to its audit log: the tenant's, or the platform's, which also has those of tenants that are no
    /// more. What is there already is left as it is.
    ///
    /// # Errors
    /// When one of them says nothing of what was done, or a database is down.
    pub async fn record_audit(&self, key: OrderingKey, events: &[Event]) -> Result<()> {
        let entries = events.iter().map(entry).collect::<Result<Vec<_>>>()?;
        let database = match key {
            Some(tenant_id) => open_tenant(&self.core, tenant_id).await?,
            None => None,
        };
        match database {
            Some(database) => {
                let mut tx = database.begin().await?;
                entries.iter().for_each(|entry| audit::insert(&mut tx, entry));
                Ok(tx.commit().await?)
            }
            None => {
                let mut tx = self.core.main().begin().await?;
                entries.iter().for_each(|entry| audit::insert_platform(&mut tx, entry));
                Ok(tx.commit().await?)
            }
        }
    }
}

/// What an event tells an auditor.
fn entry(event: &Event) -> Result<AuditEntry> {
    let mut data: Map<String, Value> = serde_json::from_str(&event.data).map_err(Error::internal)?;
    let action = match data.remove("action") {
        Some(Value::String(action)) => action,
        _ => return Err(Error::internal("an audit event names no action")),
    };
    let Event { id, tenant_id, user_id, at, .. } = *event;
    Ok(AuditEntry { event_id: id, tenant_id, action, user_id, at, data: Value::Object(data).to_string() })
}
