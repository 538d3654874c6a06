//! What follows of an event.

use domain::{Event, EventKind, Result};
use services::{EventServices, OrderingKey};

/// Does what follows of events of one key and one kind, in their order. To do it again changes nothing.
///
/// # Errors
/// When what an event needs is down, or it can't be handled at all. Then it may be that some of the events were handled.
pub async fn handle(services: &EventServices, key: OrderingKey, kind: EventKind, events: &[Event]) -> Result<()> {
    match kind {
        EventKind::AuditLog => services.record_audit(key, events).await,
        EventKind::TenantCreated => services.ensure_tenant_database(key).await,
        // Whoever deletes it does what follows, or takes up what a crash left of that.
        EventKind::TenantDeleted => Ok(()),
        EventKind::DocumentUploaded => services.request_processing(key, events).await,
        EventKind::DocumentDeleted => services.collect_files_of(key, events).await,
        EventKind::FileProcess => services.process_files(key, events).await,
    }
}
