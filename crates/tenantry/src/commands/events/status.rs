//! `tenantry events status`

use anyhow::Result;
use domain::PageRequest;
use serde_json::{Value, json};
use services::{Backlog, OperatorServices, OutboxStatus};

use crate::commands::{align_right, print, print_json, table};

/// Shows the unpublished events of each tenant, and the number of dead letters.
pub(super) async fn run(services: &OperatorServices, json: bool) -> Result<()> {
    let status = services.outbox_status().await?;
    let dead_letters = services.list_dead_letters(PageRequest::first(1)).await?.total;
    if json {
        print_json(&status_json(&status, dead_letters));
    } else {
        print_status(&status, dead_letters);
    }
    Ok(())
}

fn waiting(backlogs: &[Backlog]) -> u64 {
    backlogs.iter().map(|backlog| backlog.events).sum()
}

fn print_status(OutboxStatus { backlogs, unknown }: &OutboxStatus, dead_letters: u64) {
    print(format_args!("waiting to be published  {}", waiting(backlogs)));
    print(format_args!("dead letters             {dead_letters}"));
    if !backlogs.is_empty() {
        print("");
        let mut table = table(&["tenant", "events", "oldest"]);
        for Backlog { key, events, oldest } in backlogs {
            let tenant = key.map_or_else(|| "(none)".to_owned(), |id| id.to_string());
            table.add_row([tenant, events.to_string(), oldest.map(|at| at.to_string()).unwrap_or_default()]);
        }
        align_right(&mut table, &[1]);
        print(table);
    }
    for (tenant_id, error) in unknown {
        print(format_args!("{tenant_id}: unknown: {}", error.with_causes()));
    }
}

fn status_json(OutboxStatus { backlogs, unknown }: &OutboxStatus, dead_letters: u64) -> Value {
    let backlog = |Backlog { key, events, oldest }: &Backlog| json!({ "tenant_id": key.map(|id| id.to_string()), "events": events, "oldest": oldest.map(|at| at.to_string()) });
    let unknown = unknown.iter().map(|(id, error)| json!({ "tenant_id": id.to_string(), "error": error.with_causes() }));
    json!({
        "waiting": waiting(backlogs),
        "dead_letters": dead_letters,
        "backlogs": backlogs.iter().map(backlog).collect::<Vec<_>>(),
        "unknown": unknown.collect::<Vec<_>>(),
    })
}
