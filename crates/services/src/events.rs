//! Events, for the outbox of the transaction in which they happen.

use domain::{Event, EventId, EventKind, TenantId, UserId};
use serde_json::Value;

use crate::Services;

impl Services {
    /// Something that happened just now.
    pub(crate) fn event(&self, kind: EventKind, tenant_id: Option<TenantId>, user_id: Option<UserId>, data: &Value) -> Event {
        Event { id: EventId::generate(self.clock()), kind, tenant_id, user_id, at: self.clock().now(), data: data.to_string() }
    }

    /// Something that an auditor wants to know.
    pub(crate) fn audit(&self, action: &str, tenant_id: Option<TenantId>, user_id: Option<UserId>, mut data: Value) -> Event {
        data["action"] = action.into();
        self.event(EventKind::AuditLog, tenant_id, user_id, &data)
    }
}
