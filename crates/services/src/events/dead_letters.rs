//! Dead letters: events that could not be handled, for the operator.

use domain::{DeadLetter, Dependency, Error, Event, EventId, Noun, Page, PageRequest, Result};
use models::{dead_letters, outbox};
use serde_json::{Value, json};

use crate::{
    EventServices, OperatorServices,
    events::events::{audit_event, begin_main},
};

impl EventServices {
    /// Parks an event that could not be handled, so that those after it can be.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn dead_letter(&self, event: &Event, error: String, attempts: u32) -> Result<()> {
        let letter = DeadLetter { event: event.clone(), error, attempts, parked_at: self.core.clock().now() };
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
        dead_letters::find(&mut self.core.main().read().await?, id).await?.ok_or(Error::NotFound(Noun::DeadLetter))
    }

    /// Publishes a dead letter's event once more, as the last of its tenant's.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none (any more).
    pub async fn replay_dead_letter(&self, id: EventId) -> Result<()> {
        let mut tx = begin_main(&self.core).await?;
        let letter = dead_letters::lock(&mut tx, id).await?.ok_or(Error::NotFound(Noun::DeadLetter))?;
        dead_letters::delete(&mut tx, id);
        // Where it came from the main outbox, it is there still. Whoever parked it notes that in a moment: what is published once
        // more before that would be noted, too, unread.
        if outbox::lock_unpublished(&mut tx, id).await? {
            return Err(Error::Unavailable { dependency: Dependency::Outbox, source: "the event was parked just now; try again".into() });
        }
        outbox::delete(&mut tx, id);
        tx.emit(&letter.event);
        tx.emit(&audit_event(&self.core, "dead_letter.replayed", None, None, event_payload(&letter.event)));
        Ok(tx.commit().await?)
    }

    /// Gives a dead letter up for good.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none (any more).
    pub async fn drop_dead_letter(&self, id: EventId) -> Result<()> {
        let mut tx = begin_main(&self.core).await?;
        let letter = dead_letters::lock(&mut tx, id).await?.ok_or(Error::NotFound(Noun::DeadLetter))?;
        dead_letters::delete(&mut tx, id);
        tx.emit(&audit_event(&self.core, "dead_letter.dropped", None, None, event_payload(&letter.event)));
        Ok(tx.commit().await?)
    }
}

/// What the audit log is told of an event.
fn event_payload(event: &Event) -> Value {
    json!({
        "event_id": event.id.to_string(),
        "event_type": event.kind.as_str(),
        "tenant_id": event.tenant_id.map(|id| id.to_string()),
        "event_data": serde_json::from_str::<Value>(&event.data).unwrap_or_default(),
    })
}
