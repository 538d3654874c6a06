//! Dead letters, for the operator: events that could not be handled.

use domain::{DeadLetter, Dependency, Error, Event, EventId, Page, PageRequest, ResourceKind, Result};
use models::{dead_letters, outbox};
use serde_json::{Value, json};

use crate::{
    EventServices, OperatorServices,
    events::events::{audit_event, begin_main},
};

impl EventServices {
    /// Dead-letters an event that could not be handled, so that the events after it can be.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn dead_letter(&self, event: &Event, error: String, attempts: u32) -> Result<()> {
        let letter = DeadLetter { event: event.clone(), error, attempts, dead_lettered_at: self.core.clock().now() };
        let mut tx = self.core.main().begin().await?;
        dead_letters::insert(&mut tx, &letter);
        Ok(tx.commit().await?)
    }
}

impl OperatorServices {
    /// Dead letters, the oldest first.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_dead_letters(&self, request: PageRequest) -> Result<Page<DeadLetter>> {
        Ok(dead_letters::list(&mut self.core.main().read().await?, request).await?)
    }

    /// The dead letter of this event.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn get_dead_letter(&self, id: EventId) -> Result<DeadLetter> {
        dead_letters::find(&mut self.core.main().read().await?, id).await?.ok_or(Error::NotFound(ResourceKind::DeadLetter))
    }

    /// Publishes a dead letter's event again, after all other events of its tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it does not exist (any more).
    pub async fn replay_dead_letter(&self, id: EventId) -> Result<()> {
        let mut tx = begin_main(&self.core).await?;
        let letter = dead_letters::lock(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::DeadLetter))?;
        dead_letters::delete(&mut tx, id);
        // An event of the main outbox is still there. The relay that dead-lettered it will record it as published in a moment; an
        // event re-emitted before that would be recorded as published, too, without being published.
        if outbox::lock_unpublished(&mut tx, id).await? {
            return Err(Error::Unavailable {
                dependency: Dependency::Outbox,
                source: "the event was dead-lettered just now; try again".into(),
            });
        }
        outbox::delete(&mut tx, id);
        tx.emit(&letter.event);
        tx.emit(&audit_event(&self.core, "dead_letter.replayed", None, None, event_payload(&letter.event)));
        Ok(tx.commit().await?)
    }

    /// Discards a dead letter permanently.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it does not exist (any more).
    pub async fn drop_dead_letter(&self, id: EventId) -> Result<()> {
        let mut tx = begin_main(&self.core).await?;
        let letter = dead_letters::lock(&mut tx, id).await?.ok_or(Error::NotFound(ResourceKind::DeadLetter))?;
        dead_letters::delete(&mut tx, id);
        tx.emit(&audit_event(&self.core, "dead_letter.dropped", None, None, event_payload(&letter.event)));
        Ok(tx.commit().await?)
    }
}

/// What the audit log records of an event.
fn event_payload(event: &Event) -> Value {
    json!({
        "event_id": event.id.to_string(),
        "event_type": event.kind.as_str(),
        "tenant_id": event.tenant_id.map(|id| id.to_string()),
        "event_data": serde_json::from_str::<Value>(&event.data).unwrap_or_default(),
    })
}
