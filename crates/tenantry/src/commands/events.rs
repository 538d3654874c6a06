//! `tenantry events`

use std::{
    collections::{BTreeSet, HashSet},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, anyhow};
use comfy_table::CellAlignment;
use domain::{DeadLetter, Error, Event, EventId, FieldErrors, Noun, PageRequest};
use serde_json::{Value, json};
use services::{Backlog, OperatorServices, OrderingKey, OutboxStatus};

use crate::{
    assembly::assemble,
    commands::{
        say, say_json, table,
        tenants::{Which, find},
    },
    config::Config,
};

/// How often is looked for new events.
const GLANCE: Duration = Duration::from_millis(500);
/// The most events that are shown at once.
const MOST_SHOWN: u32 = 10_000;

/// What can be asked of events.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show how many events wait to be published, whose, and since when
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the latest events, one line of JSON each
    ///
    /// Those of the platform, or of a tenant's documents; published or not, as long as EVENT_RETENTION keeps them.
    Tail {
        /// Of this tenant's database: its id, its database's name, or its name when no other tenant has it
        #[arg(long)]
        tenant: Option<String>,
        /// How many
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=i64::from(MOST_SHOWN)))]
        lines: u32,
        /// Go on with those that come
        #[arg(long)]
        follow: bool,
    },
    /// Events that could not be handled
    #[command(subcommand)]
    Dlq(Dlq),
}

/// What can be done with events that could not be handled.
#[derive(clap::Subcommand)]
pub enum Dlq {
    /// List them, the oldest first
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
        /// Which hundred of them
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=i64::from(u32::MAX)))]
        page: i64,
    },
    /// Show one with all that is known of it, in JSON
    Show {
        /// The event's id
        event: EventId,
    },
    /// Have `serve` publish some once more; they come after what happened since
    Replay(Letters),
    /// Give some up for good
    Drop(Letters),
}

/// Some dead letters.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Letters {
    /// The events' ids
    #[arg(value_name = "EVENT")]
    events: Vec<EventId>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// Shows events, or decides what becomes of those that could not be handled.
///
/// # Errors
/// When there is no such event or tenant, or a database is down.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode> {
    let services = assemble(config)?.0.operator;
    match command {
        Command::Status { json } => status(&services, *json).await?,
        Command::Tail { tenant, lines, follow } => {
            let key = match tenant {
                Some(tenant) => Some(find(&services, &Which { tenant: tenant.clone() }).await?.id),
                None => None,
            };
            tail(&services, key, *lines, *follow).await?;
        }
        Command::Dlq(Dlq::List { json, page }) => list(&services, *page, *json).await?,
        Command::Dlq(Dlq::Show { event }) => {
            let letter = services.get_dead_letter(*event).await.map_err(|error| told(*event, error))?;
            say_json(&in_json(&letter));
        }
        Command::Dlq(Dlq::Replay(letters)) => {
            let count = each(&services, letters, async |id| services.replay_dead_letter(id).await).await?;
            say(format_args!("To be published once more: {count}."));
        }
        Command::Dlq(Dlq::Drop(letters)) => {
            let count = each(&services, letters, async |id| services.drop_dead_letter(id).await).await?;
            say(format_args!("Gave {count} up."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(services: &OperatorServices, as_json: bool) -> Result<()> {
    let OutboxStatus { backlogs, unknown } = services.outbox_status().await?;
    let waiting: u64 = backlogs.iter().map(|backlog| backlog.events).sum();
    let dead = services.list_dead_letters(PageRequest::first(1)).await?.total;
    if as_json {
        let backlog = |Backlog { key, events, oldest }: &Backlog| json!({ "tenant_id": key.map(|id| id.to_string()), "events": events, "oldest": oldest.map(|at| at.to_string()) });
        let unknown = unknown.iter().map(|(id, error)| json!({ "tenant_id": id.to_string(), "error": error.with_causes() }));
        say_json(&json!({
            "waiting": waiting,
            "dead_letters": dead,
            "backlogs": backlogs.iter().map(backlog).collect::<Vec<_>>(),
            "unknown": unknown.collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    say(format_args!("waiting to be published  {waiting}"));
    say(format_args!("dead letters             {dead}"));
    if !backlogs.is_empty() {
        say("");
        let mut table = table(&["tenant", "events", "oldest"]);
        for Backlog { key, events, oldest } in backlogs {
            let oldest = oldest.map(|at| at.to_string()).unwrap_or_default();
            table.add_row([key.map_or_else(|| "(none)".to_owned(), |id| id.to_string()), events.to_string(), oldest]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        say(table);
    }
    for (tenant_id, error) in unknown {
        say(format_args!("{tenant_id}: not known: {}", error.with_causes()));
    }
    Ok(())
}

async fn tail(services: &OperatorServices, key: OrderingKey, lines: u32, follow: bool) -> Result<()> {
    let latest = services.list_events(key, if follow { MOST_SHOWN } else { lines }).await?;
    // What is there and not asked for is not new either.
    let mut shown: HashSet<_> = latest.iter().map(|event| event.id).collect();
    let mut events: Vec<_> = latest.into_iter().take(usize::try_from(lines)?).collect();
    loop {
        for event in events.iter().rev() {
            say(event_in_json(event));
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(GLANCE) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let latest = services.list_events(key, MOST_SHOWN).await?;
        let known = latest.iter().map(|event| event.id).collect();
        events = latest.into_iter().filter(|event| !shown.contains(&event.id)).collect();
        shown = known;
    }
}

async fn list(services: &OperatorServices, page: i64, as_json: bool) -> Result<()> {
    let request = PageRequest::parse(Some(page), Some(PageRequest::MAX_PER_PAGE.into()), &mut FieldErrors::default());
    let letters = services.list_dead_letters(request).await?;
    if as_json {
        say_json(&json!({ "total": letters.total, "items": letters.items.iter().map(in_json).collect::<Vec<_>>() }));
        return Ok(());
    }
    if letters.items.is_empty() {
        say(if letters.total == 0 { "There are no dead letters." } else { "There are not so many dead letters." });
        return Ok(());
    }
    let mut table = table(&["event", "type", "tenant", "parked at", "attempts", "error"]);
    for DeadLetter { event, error, attempts, parked_at } in &letters.items {
        let tenant = event.tenant_id.map(|id| id.to_string()).unwrap_or_default();
        let (id, kind) = (event.id.to_string(), event.kind.as_str().to_owned());
        table.add_row([id, kind, tenant, parked_at.to_string(), attempts.to_string(), error.clone()]);
    }
    say(table);
    if letters.pages() > 1 {
        say(format_args!("Page {page} of {}: see --page.", letters.pages()));
    }
    Ok(())
}

/// Does something with dead letters. Answers with how many, in words.
async fn each(
    services: &OperatorServices,
    Letters { events, all }: &Letters,
    decide: impl AsyncFn(EventId) -> domain::Result<()>,
) -> Result<String> {
    let mut count = 0;
    if *all {
        // Those that come back meanwhile are not among them.
        let mut ids = Vec::new();
        for page in 1.. {
            let request = PageRequest::parse(Some(page), Some(PageRequest::MAX_PER_PAGE.into()), &mut FieldErrors::default());
            let letters = services.list_dead_letters(request).await?;
            ids.extend(letters.items.iter().map(|letter| letter.event.id));
            if page >= i64::try_from(letters.pages())? {
                break;
            }
        }
        for id in ids {
            match decide(id).await {
                Ok(()) => count += 1,
                // Somebody else was faster.
                Err(Error::NotFound(Noun::DeadLetter)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for id in events.iter().collect::<BTreeSet<_>>() {
        decide(*id).await.map_err(|error| told(*id, error))?;
        count += 1;
    }
    Ok(if count == 1 { "1 event".to_owned() } else { format!("{count} events") })
}

fn told(id: EventId, error: Error) -> anyhow::Error {
    match error {
        Error::NotFound(Noun::DeadLetter) => anyhow!("no dead letter is of the event {id}"),
        error => error.into(),
    }
}

fn event_in_json(event: &Event) -> Value {
    json!({
        "event_id": event.id.to_string(),
        "event_type": event.kind.as_str(),
        "tenant_id": event.tenant_id.map(|id| id.to_string()),
        "user_id": event.user_id.map(|id| id.to_string()),
        "timestamp": event.at.to_string(),
        "traceparent": event.traceparent,
        "data": serde_json::from_str::<Value>(&event.data).unwrap_or_default(),
    })
}

fn in_json(DeadLetter { event, error, attempts, parked_at }: &DeadLetter) -> Value {
    json!({ "event": event_in_json(event), "error": error, "attempts": attempts, "parked_at": parked_at.to_string() })
}
