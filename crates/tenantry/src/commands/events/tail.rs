//! `tenantry events tail`

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use services::OperatorServices;

use super::json::event_json;
use crate::commands::{print, tenants::find};

/// How often to look for new events.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The maximum number of events to show at once.
const MAX_LINES: u32 = 10_000;

/// Options of `tenantry events tail`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Show the events of this tenant's documents (id, database name, or name if unique)
    #[arg(long)]
    tenant: Option<String>,
    /// Number of events
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_LINES)))]
    lines: u32,
    /// Wait for further events and show them
    #[arg(long)]
    follow: bool,
}

/// Shows the latest events, oldest first.
pub(super) async fn run(services: &OperatorServices, Arguments { tenant, lines, follow }: &Arguments) -> Result<()> {
    let key = match tenant {
        Some(name) => Some(find(services, name).await?.id),
        None => None,
    };
    let latest = services.list_events(key, if *follow { MAX_LINES } else { *lines }).await?;
    // Existing events beyond `lines` are not new ones.
    let mut known: HashSet<_> = latest.iter().map(|event| event.id).collect();
    let mut events: Vec<_> = latest.into_iter().take(usize::try_from(*lines)?).collect();
    loop {
        for event in events.iter().rev() {
            print(event_json(event));
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let latest = services.list_events(key, MAX_LINES).await?;
        let ids = latest.iter().map(|event| event.id).collect();
        events = latest.into_iter().filter(|event| !known.contains(&event.id)).collect();
        known = ids;
    }
}
