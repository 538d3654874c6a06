//! Event handlers.

use domain::{Event, EventKind, Result};
use services::{EventServices, OrderingKey};

/// Handles events of one ordering key and one kind, in their order. Idempotent.
///
/// # Errors
/// When a dependency is down, or an event can't be handled at all. Some of the events may have been handled then.
pub async fn handle(services: &EventServices, key: OrderingKey, kind: EventKind, events: &[Event]) -> Result<()> {
    match kind {
        EventKind::AuditLog => services.record_audit(key, events).await,
        EventKind::TenantCreated => services.ensure_tenant_database(key).await,
        // The deletion itself does all the work, and resumes after a crash.
        EventKind::TenantDeleted => Ok(()),
        EventKind::DocumentUploaded => services.request_processing(key, events).await,
        EventKind::DocumentDeleted => services.collect_files_of(key, events).await,
        EventKind::FileProcess => services.process_files(key, events).await,
    }
}
