//! Leases of pooled connections.

use std::{sync::Arc, time::Duration};

use domain::TenantId;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    budget::{Acquired, Grant, Held},
    connector::CancelAddress,
    server::{PostgresServer, Target},
    session::PooledSession,
};
use crate::error::{Error, Result};

/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for a connection of its database before it asks for a further one: about what opening it costs. The
/// time doubles with each further one.
const GROWTH_DELAY: Duration = Duration::from_millis(10);

/// The connections to one database.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) server: Arc<PostgresServer>,
    target: Arc<Target>,
}

impl Pool {
    pub(super) fn new(server: Arc<PostgresServer>, database: String, identity: Option<TenantId>) -> Self {
        Self { server, target: Arc::new(Target { database, identity }) }
    }

    /// The database's name on the server.
    pub(super) fn database(&self) -> &str {
        &self.target.database
    }

    /// Leases a connection: an idle one of this database, one that comes back, or a new one.
    pub(super) async fn lease(&self) -> Result<Lease> {
        let held = match self.server.update_budget(|budget, now, tasks| budget.acquire(&self.target, now, tasks)) {
            Acquired::Now(held) => held,
            Acquired::Later(granted) => {
                // Boxed because it is rare and large: every request's future would reserve memory for it.
                Box::pin(Waiting { pool: self, granted }.wait()).await?
            }
        };
        let lease = Lease { held: Some(held), pool: self.clone() };
        if lease.is_closed() {
            // The server closed it while it was idle. That costs this attempt only, and is no error.
            drop(lease);
            return Box::pin(self.lease()).await;
        }
        Ok(lease)
    }

    /// Returns a connection to the budget.
    fn give_back(&self, held: Held<PooledSession>) {
        self.server.update_budget(|budget, now, tasks| budget.give_back(&self.target, held, now, tasks));
    }
}

/// A request that waits for a connection.
struct Waiting<'a> {
    pool: &'a Pool,
    granted: oneshot::Receiver<Grant<PooledSession>>,
}

impl Waiting<'_> {
    async fn wait(mut self) -> Result<Held<PooledSession>> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let mut delay = GROWTH_DELAY;
        loop {
            let next = deadline.min(Instant::now() + delay);
            match timeout_at(next, &mut self.granted).await {
                Ok(Ok(Ok(held))) => return Ok(held),
                Ok(Ok(Err(problem))) => return Err(problem.duplicate()),
                Ok(Err(_)) => return Err(Error::internal("a queue for connections was lost")),
                Err(_) if next == deadline => return Err(Error::Busy("no connection became free in time")),
                Err(_) => {
                    self.pool.server.update_budget(|budget, now, tasks| budget.open_further(&self.pool.target, now, tasks));
                    delay *= 2;
                }
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.granted.close();
        if let Ok(Ok(held)) = self.granted.try_recv() {
            self.pool.give_back(held);
        }
    }
}

/// A connection that returns to its server when it is dropped.
pub(super) struct Lease {
    /// Absent when the connection was closed instead.
    held: Option<Held<PooledSession>>,
    pool: Pool,
}

impl Lease {
    pub(super) fn is_closed(&self) -> bool {
        self.session().is_ok_and(PooledSession::is_closed)
    }

    /// Whether a request waits for it to come back.
    pub(super) fn is_wanted(&self) -> bool {
        self.pool.server.is_wanted(&self.pool.target)
    }

    pub(super) fn session(&self) -> Result<&PooledSession> {
        self.held.as_ref().map(|held| &held.session).ok_or_else(|| Error::internal("the connection was lost"))
    }

    /// Closes the connection. Until the server has closed it, too, with its transaction and its locks, it counts; after `limit`
    /// it is cut. Meanwhile its statements are cancelled, one every `cancel_interval`.
    pub(super) async fn close(mut self, limit: Duration, cancel_interval: Duration) {
        let Some(held) = self.held.take() else { return };
        // If this future is dropped, the connection still counts as lost.
        let _lost = Lost(&self.pool);
        let session = held.session.session;
        let (cancel, address) = (session.client.cancel_token(), session.cancel_address());
        tokio::select! {
            () = session.close(limit) => {}
            () = self.keep_cancelling(&cancel, &address, cancel_interval) => {}
        }
    }

    async fn keep_cancelling(&self, token: &tokio_postgres::CancelToken, address: &CancelAddress, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            // Statements that were sent together are cancelled one by one.
            let _finished_or_gone = self.pool.server.connector.cancel(token, address).await;
        }
    }

    /// Drops the connection without returning it.
    pub(super) fn discard(mut self) {
        drop(self.held.take());
        drop(Lost(&self.pool));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.held.take() {
            Some(held) if !held.session.is_closed() => self.pool.give_back(held),
            Some(_) => drop(Lost(&self.pool)),
            None => {}
        }
    }
}

/// Reports a leased connection as closed when it is dropped.
struct Lost<'a>(&'a Pool);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.server.update_budget(|budget, now, tasks| budget.lost(&self.0.target, now, tasks));
    }
}
