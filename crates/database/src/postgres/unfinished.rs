//! Connections that came back in the middle of something.

use std::time::Duration;

use tokio::{runtime::Handle, time::timeout};

use super::{ANSWER_TIMEOUT, Lease, Lost};

/// How long a statement that nobody waits for any more may go on before it is cancelled, and cancelled again.
const CANCEL_INTERVAL: Duration = Duration::from_millis(20);

/// A lease in a state in which nobody may have it: dropped, it is closed, and the server rolls back.
pub(super) struct Unfinished(Option<Lease>);

impl Unfinished {
    pub(super) fn new(lease: Lease) -> Self {
        Self(Some(lease))
    }

    /// Ends what the server does for nobody, and closes the connection. Until it is gone, with its transaction and its locks,
    /// it counts.
    pub(super) fn abandon(self) {
        spawn(self.end());
    }

    /// Rolls back, and gives the connection back whole.
    pub(super) fn roll_back(mut self) {
        spawn(async move {
            let Some(Ok(session)) = self.0.as_ref().map(Lease::session) else { return };
            let rolled_back = timeout(ANSWER_TIMEOUT, session.wired.client.batch_execute("ROLLBACK")).await;
            match rolled_back {
                Ok(Ok(())) => drop(self.0.take()),
                _ => self.end().await,
            }
        });
    }

    async fn end(mut self) {
        let Some(mut lease) = self.0.take() else { return };
        let Some(held) = lease.held.take() else { return };
        // Dropped in the middle of this, too, the connection is booked as lost.
        let _lost = Lost { server: &lease.server, target: &lease.target };
        let (cancel, address) = (held.session.wired.client.cancel_token(), held.session.wired.cancel_address());
        let closing = held.session.wired.close(ANSWER_TIMEOUT);
        let cancelling = async {
            loop {
                tokio::time::sleep(CANCEL_INTERVAL).await;
                // Statements that went out together are cancelled one by one.
                let _finished_or_gone = lease.server.connector.cancel(&cancel, &address).await;
            }
        };
        tokio::select! {
            () = closing => {}
            () = cancelling => {}
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
        if let Some(mut lease) = self.0.take() {
            drop(lease.held.take());
            drop(Lost { server: &lease.server, target: &lease.target });
        }
    }
}
