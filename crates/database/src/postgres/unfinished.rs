//! Connections that were dropped during a statement or a transaction.

use std::time::Duration;

use tokio::{runtime::Handle, time::timeout};

use super::{ANSWER_TIMEOUT, lease::Lease};

/// How long a statement without a caller may go on before it is cancelled, and the interval between further attempts.
const CANCEL_INTERVAL: Duration = Duration::from_millis(20);

/// A lease in a state in which it can't be reused: dropped, its connection is closed, and the server rolls back.
pub(super) struct Unfinished(Option<Lease>);

impl Unfinished {
    pub(super) fn new(lease: Lease) -> Self {
        Self(Some(lease))
    }

    /// Cancels what the server still does, and closes the connection.
    pub(super) fn abandon(self) {
        spawn(self.end());
    }

    /// Rolls back, and returns the connection.
    pub(super) fn roll_back(mut self) {
        spawn(async move {
            let Some(Ok(session)) = self.0.as_ref().map(Lease::session) else { return };
            match timeout(ANSWER_TIMEOUT, session.execute("ROLLBACK")).await {
                Ok(Ok(())) => drop(self.0.take()),
                _ => self.end().await,
            }
        });
    }

    async fn end(mut self) {
        if let Some(lease) = self.0.take() {
            lease.close(ANSWER_TIMEOUT, CANCEL_INTERVAL).await;
        }
    }
}

/// Without a runtime the work is dropped, which closes its connection.
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(work);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.discard();
        }
    }
}
