//! `tenantry events dlq`

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use domain::{DeadLetter, Error, EventId, FieldErrors, PageRequest, ResourceKind};
use serde_json::{Value, json};
use services::OperatorServices;

use super::json::event_json;
use crate::commands::{print, print_json, table};

/// Subcommands of `tenantry events dlq`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List dead letters, oldest first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Page (100 entries each)
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=i64::from(u32::MAX)))]
        page: i64,
    },
    /// Show a dead letter with all details, in JSON
    Show {
        /// The event's id
        event: EventId,
    },
    /// Re-publish dead letters
    ///
    /// They are published after the events that were recorded in the meantime.
    Replay(Selection),
    /// Discard dead letters permanently
    Drop(Selection),
}

/// Selects dead letters.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// The events' ids
    #[arg(value_name = "EVENT")]
    events: Vec<EventId>,
    /// All dead letters
    #[arg(long)]
    all: bool,
}

/// Shows dead letters, or decides about them.
pub(super) async fn run(services: &OperatorServices, command: &Command) -> Result<()> {
    match command {
        Command::List { json, page } => list(services, *page, *json).await?,
        Command::Show { event } => {
            let letter = services.get_dead_letter(*event).await.map_err(|error| describe(*event, error))?;
            print_json(&letter_json(&letter));
        }
        Command::Replay(selection) => {
            let count = for_each(services, selection, async |id| services.replay_dead_letter(id).await).await?;
            print(format_args!("Queued {} for publishing.", events_text(count)));
        }
        Command::Drop(selection) => {
            let count = for_each(services, selection, async |id| services.drop_dead_letter(id).await).await?;
            print(format_args!("Discarded {}.", events_text(count)));
        }
    }
    Ok(())
}

async fn list(services: &OperatorServices, page: i64, json: bool) -> Result<()> {
    let letters = services.list_dead_letters(page_request(page)).await?;
    if json {
        print_json(&json!({ "total": letters.total, "items": letters.items.iter().map(letter_json).collect::<Vec<_>>() }));
        return Ok(());
    }
    if letters.items.is_empty() {
        print(if letters.total == 0 { "There are no dead letters." } else { "There is no such page." });
        return Ok(());
    }
    let mut table = table(&["event", "type", "tenant", "dead-lettered at", "attempts", "error"]);
    for DeadLetter { event, error, attempts, dead_lettered_at } in &letters.items {
        let tenant = event.tenant_id.map(|id| id.to_string()).unwrap_or_default();
        let (id, kind) = (event.id.to_string(), event.kind.as_str().to_owned());
        table.add_row([id, kind, tenant, dead_lettered_at.to_string(), attempts.to_string(), error.clone()]);
    }
    print(table);
    if letters.pages() > 1 {
        print(format_args!("Page {page} of {}; select another one with --page.", letters.pages()));
    }
    Ok(())
}

/// Applies a decision to the selected dead letters. Returns their number.
async fn for_each(
    services: &OperatorServices,
    selection: &Selection,
    decide: impl AsyncFn(EventId) -> domain::Result<()>,
) -> Result<usize> {
    if !selection.all {
        let ids: BTreeSet<_> = selection.events.iter().copied().collect();
        for id in &ids {
            decide(*id).await.map_err(|error| describe(*id, error))?;
        }
        return Ok(ids.len());
    }
    let mut count = 0;
    // Listed first, so that a replayed event that fails again is not selected twice.
    for id in all_ids(services).await? {
        match decide(id).await {
            Ok(()) => count += 1,
            // Another command decided about it in the meantime.
            Err(Error::NotFound(ResourceKind::DeadLetter)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

async fn all_ids(services: &OperatorServices) -> Result<Vec<EventId>> {
    let mut ids = Vec::new();
    for page in 1.. {
        let letters = services.list_dead_letters(page_request(page)).await?;
        ids.extend(letters.items.iter().map(|letter| letter.event.id));
        if page >= i64::try_from(letters.pages())? {
            break;
        }
    }
    Ok(ids)
}

fn page_request(page: i64) -> PageRequest {
    PageRequest::parse(Some(page), Some(PageRequest::MAX_PER_PAGE.into()), &mut FieldErrors::default())
}

fn events_text(count: usize) -> String {
    if count == 1 { "1 event".to_owned() } else { format!("{count} events") }
}

fn describe(id: EventId, error: Error) -> anyhow::Error {
    match error {
        Error::NotFound(ResourceKind::DeadLetter) => anyhow!("no dead letter has the event id {id}"),
        error => error.into(),
    }
}

fn letter_json(DeadLetter { event, error, attempts, dead_lettered_at }: &DeadLetter) -> Value {
    json!({ "event": event_json(event), "error": error, "attempts": attempts, "parked_at": dead_lettered_at.to_string() })
}
