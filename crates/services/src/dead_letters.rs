//! Dead letters: events that could not be handled, for the operator.

use domain::{DeadLetter, Error, Event, EventId, Noun, Page, PageRequest, Result};
use models::{dead_letters, outbox};

use crate::Services;

impl Services {
    /// Parks an event that could not be handled, so that those after it can be.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn park(&self, event: &Event, error: String, attempts: u32) -> Result<()> {
        let letter = DeadLetter { event: event.clone(), error, attempts, parked_at: self.clock().now() };
        let mut tx = self.main().begin().await?;
        dead_letters::insert(&mut tx, &letter);
        Ok(tx.commit().await?)
    }

    /// Dead letters, the oldest first.
    ///
    /// # Errors
    /// When the main database is down.
    pub async fn list_dead_letters(&self, request: PageRequest) -> Result<Page<DeadLetter>> {
        Ok(dead_letters::list(&mut self.main().read().await?, request).await?)
    }

    /// The dead letter of this event.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn get_dead_letter(&self, id: EventId) -> Result<DeadLetter> {
        dead_letters::find(&mut self.main().read().await?, id).await?.ok_or(Error::NotFound(Noun::DeadLetter))
    }

    /// Publishes a dead letter's event once more, as the last of its tenant's.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none (any more).
    pub async fn replay_dead_letter(&self, id: EventId) -> Result<()> {
        let mut tx = self.main().begin().await?;
        let letter = dead_letters::lock(&mut tx, id).await?.ok_or(Error::NotFound(Noun::DeadLetter))?;
        dead_letters::delete(&mut tx, id).await?;
        // Where it came from the main outbox, it is there still.
        outbox::delete(&mut tx, id);
        self.tell(&mut tx, &letter.event);
        Ok(tx.commit().await?)
    }

    /// Gives a dead letter up for good.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none (any more).
    pub async fn drop_dead_letter(&self, id: EventId) -> Result<()> {
        let mut tx = self.main().begin().await?;
        if !dead_letters::delete(&mut tx, id).await? {
            return Err(Error::NotFound(Noun::DeadLetter));
        }
        Ok(tx.commit().await?)
    }
}
