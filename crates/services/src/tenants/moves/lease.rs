//! The lease of a move: it shows whether a process still works on it.

use std::time::{Duration, Instant};

use domain::{Dependency, Error, Move, MoveState, Result, TenantId, dyn_error};
use models::{Main, MainTx, moves};
use tokio::time::sleep;

use super::outcome::MoveError;
use crate::{
    Core,
    events::events::{EventTx, begin_main},
    leases::{hold_lease, hold_lease_in},
};

/// How long a move's lease is held without being renewed, and how often it is renewed.
pub(super) const LEASE_TIME: Duration = Duration::from_secs(15);
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// How often to poll for a lease that another process holds only briefly. A process that dies holds it for [`LEASE_TIME`] at
/// most.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Begins a transaction in which this instance takes a tenant's lease. Waits while another process holds it: a process that
/// resumes interrupted moves holds it only briefly if the move has ended.
pub(super) async fn begin_with_lease(core: &Core, tenant_id: TenantId) -> Result<EventTx<Main>, MoveError> {
    let deadline = Instant::now() + LEASE_TIME + RENEW_INTERVAL;
    loop {
        let mut tx = begin_main(core).await?;
        if hold_move(core, &mut tx, tenant_id).await? {
            return Ok(tx);
        }
        drop(tx);
        if Instant::now() > deadline {
            return Err(MoveError::UnderWay);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Takes or renews a move's lease.
pub(super) async fn hold_move(core: &Core, tx: &mut MainTx, tenant_id: TenantId) -> Result<bool> {
    hold_lease_in(core, tx, &lease(tenant_id), LEASE_TIME).await
}

/// Renews a move's lease, unless another process treated the move as abandoned.
pub(super) async fn renew_if_ours(core: &Core, the_move: &Move) -> Result<()> {
    let mut tx = core.main().begin().await?;
    let found = moves::find(&mut tx, the_move.tenant_id).await?;
    let is_ours = found.is_some_and(|found| found.began_at == the_move.began_at && found.state != MoveState::Abandoned);
    if !is_ours || !hold_move(core, &mut tx, the_move.tenant_id).await? {
        return Err(lost_lease());
    }
    Ok(tx.commit().await?)
}

/// Renews a lease, of a move or of ending one, until that fails.
pub(super) async fn keep_lease(core: &Core, tenant_id: TenantId, the_move: Option<&Move>) -> Error {
    let mut held_until = Instant::now() + LEASE_TIME;
    loop {
        sleep(RENEW_INTERVAL).await;
        let asked_at = Instant::now();
        let renewed = match the_move {
            Some(the_move) => renew_if_ours(core, the_move).await,
            None => match hold_lease(core, &lease(tenant_id), LEASE_TIME).await {
                Ok(false) => Err(lost_lease()),
                held => held.map(drop),
            },
        };
        match renewed {
            Ok(()) => held_until = asked_at + LEASE_TIME,
            Err(error @ Error::Unavailable { dependency: Dependency::Database, .. }) if Instant::now() < held_until => {
                tracing::warn!(error = dyn_error(&error), "could not renew a move's lease; retrying");
            }
            Err(error) => return error,
        }
    }
}

pub(super) fn lost_lease() -> Error {
    let source = "another process treated the move as abandoned and ended it; are the hosts' clocks seconds apart?".into();
    Error::Unavailable { dependency: Dependency::TenantDatabase, source }
}

/// The name of the lease on working on a tenant's move.
pub(super) fn lease(tenant_id: TenantId) -> String {
    format!("move of {tenant_id}")
}
