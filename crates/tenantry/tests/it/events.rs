//! Events: every acknowledged change has its event, whatever crashes; and the operator's view of events.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use domain::{AuditFilter, Event, EventId, EventKind, PageRequest, TenantId};
use models::{audit, dead_letters, outbox, tenants};
use serde_json::{Value, json};
use testkit::Persona;

use crate::{
    process::{Home, WAIT_TIMEOUT},
    scene::{FAILPOINT, Scene, repeatedly},
};

/// From the outbox to the handlers.
pub(crate) const PUBLISH: &[&str] = &["outbox.noting", "outbox.noted", "document.processing_requesting", "file.processing"];
/// The draining of a deleted tenant's outbox into that of the main database.
pub(crate) const DRAIN: &[&str] = &["tenant.events_taken_over"];

/// The unpublished events, as `events status` shows them.
pub(crate) fn status(home: &Home) -> Value {
    home.run(["events", "status", "--json"]).expect(0).json()
}

/// Waits until all events are published.
pub(crate) async fn drained(home: &Home) {
    let began = Instant::now();
    loop {
        let status = status(home);
        if status["waiting"] == 0 && status["unknown"] == json!([]) {
            assert_eq!(status["dead_letters"], 0, "{}", home.run(["events", "dlq", "list"]).out);
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{status:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The effects of events that are missing, or that happened twice.
pub(crate) async fn find_unhandled(home: &Home) -> Vec<String> {
    let (main, directory) = home.databases().open();
    let mut missing = Vec::new();
    let all = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
    for tenant in all {
        let mut connection = directory.open(&tenant.place).unwrap().read().await.unwrap();
        let unprocessed = connection.query("SELECT id FROM files WHERE processed_at IS NULL", Vec::new()).await.unwrap().len();
        if unprocessed > 0 {
            missing.push(format!("{unprocessed} files of {} were not processed", tenant.name));
        }
        let audited = all_audited(&mut connection).await;
        let mut events = outbox::list(&mut connection, 1_000_000).await.unwrap();
        let of_main = outbox::list(&mut main.read().await.unwrap(), 1_000_000).await.unwrap();
        events.extend(of_main.into_iter().filter(|event| event.tenant_id == Some(tenant.id)));
        events.retain(|event| event.kind == EventKind::AuditLog);
        let unique: HashSet<_> = audited.iter().copied().collect();
        let lost = events.iter().filter(|event| !unique.contains(&event.id)).count();
        if lost > 0 || unique.len() != audited.len() || unique.len() != events.len() {
            let (events, entries) = (events.len(), audited.len());
            missing.push(format!("{}: {events} audit events, {lost} of them missing in the log of {entries} entries", tenant.name));
        }
    }
    missing
}

async fn all_audited(connection: &mut models::Connection<models::Tenant>) -> Vec<EventId> {
    let mut ids = Vec::new();
    for page in 1.. {
        let request = PageRequest::parse(Some(page), Some(100), &mut domain::FieldErrors::default());
        let found = audit::list(connection, &AuditFilter::default(), request).await.unwrap();
        ids.extend(found.items.iter().map(|entry| entry.event_id));
        if page >= i64::try_from(found.pages()).unwrap() {
            break;
        }
    }
    ids
}

/// Uploads and downloads a document, and deletes every fourth one. Returns whether every request got a response.
pub(crate) async fn act(alice: &Persona, tenant: &str, n: usize) -> bool {
    let path = format!("/api/tenants/{tenant}/documents");
    let form = reqwest::multipart::Form::new()
        .part("file", reqwest::multipart::Part::bytes(format!("{tenant} {n}").into_bytes()).file_name(format!("{n}.txt")));
    let Ok(response) = alice.request(reqwest::Method::POST, &path).multipart(form).send().await else { return false };
    let Ok(uploaded) = response.json::<Value>().await else { return false };
    let Some(id) = uploaded["data"]["id"].as_str() else { return false };
    let download = alice.request(reqwest::Method::GET, &format!("{path}/{id}/download?redirect=false")).send().await;
    let deleted =
        if n.is_multiple_of(4) { alice.request(reqwest::Method::DELETE, &format!("{path}/{id}")).send().await.is_ok() } else { true };
    download.is_ok() && deleted
}

/// Seeded fault, detected: `published_at` set before the bus had the events ("1 files of Acme were not processed").
#[test]
fn a_crash_on_the_way_of_an_event_loses_none() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        for (n, failpoint) in PUBLISH.iter().enumerate() {
            drained(&scene.home).await;
            let requests_processing = match *failpoint {
                "document.processing_requesting" => Some(EventKind::DocumentUploaded),
                "file.processing" => Some(EventKind::FileProcess),
                _ => None,
            };
            if let Some(kind) = requests_processing {
                scene.stop().await;
                leave_unprocessed(&scene.home, kind).await;
                scene.home.spawn(&[(FAILPOINT, failpoint)]).assert_aborted(failpoint).await;
            } else {
                scene.restart_at(failpoint).await;
                act(&scene.alice, &scene.tenant, 4 * n + 1).await;
                scene.assert_aborted(failpoint).await;
            }
            scene.home.expire_leases().await;
            scene.start().await;
            act(&scene.alice, &scene.tenant, 4 * n + 2).await;
            drained(&scene.home).await;
            assert_eq!(find_unhandled(&scene.home).await, Vec::<String>::new(), "{failpoint}");
        }
        scene.stop_and_check().await;
    });
}

/// Makes a file unprocessed, and records an event that requests its processing: what a direct upload leaves.
pub(crate) async fn leave_unprocessed(home: &Home, kind: EventKind) {
    let (main, directory) = home.databases().open();
    let tenant = tenants::list(&mut main.read().await.unwrap()).await.unwrap().remove(0);
    let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
    let sql = "UPDATE files SET processed_at = NULL, detected_mime_type = NULL WHERE id = (SELECT id FROM files LIMIT 1) RETURNING id";
    let file: domain::FileId = tx.query_one(sql, Vec::new()).await.unwrap().take().unwrap();
    let event = Event {
        id: EventId::generate(&domain::SystemClock),
        kind,
        tenant_id: Some(tenant.id),
        user_id: None,
        at: domain::Clock::now(&domain::SystemClock),
        data: format!(r#"{{"file_id":"{file}"}}"#),
        traceparent: None,
    };
    outbox::push(&mut tx, &event);
    tx.commit().await.unwrap();
}

#[test]
fn a_crash_while_the_outbox_of_a_deleted_tenant_is_drained_loses_no_event() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        for failpoint in DRAIN {
            let tenant = scene.alice.creates_tenant("Deleted").await;
            drained(&scene.home).await;
            // Wait until the server has released its lease, then keep it from publishing, as an unavailable bus would.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let id: TenantId = tenant.parse().unwrap();
            hold_outbox(&scene.home, id).await;
            for n in 0..3 {
                assert!(act(&scene.alice, &tenant, n).await);
            }
            scene.stop().await;
            let delete = ["tenants", "delete", &tenant, "--hard", "--confirm", "Deleted"];
            scene.home.crash(&delete, failpoint);
            scene.home.run(delete).expect(0);
            scene.home.expire_leases().await;
            scene.start().await;
            drained(&scene.home).await;
            let (main, _) = scene.home.databases().open();
            let filter = AuditFilter { action: Some("document.downloaded".to_owned()), ..AuditFilter::default() };
            let mut connection = main.read().await.unwrap();
            let entries = audit::list_platform(&mut connection, Some(id), &filter, PageRequest::default()).await.unwrap();
            assert_eq!(entries.total, 3, "the platform's audit log has the entries of a deleted tenant");
            assert_eq!(dead_letters::list(&mut connection, PageRequest::default()).await.unwrap().total, 0);
        }
        scene.stop_and_check().await;
    });
}

/// Takes the lease of a tenant's outbox, so that no relay publishes its events.
async fn hold_outbox(home: &Home, tenant_id: TenantId) {
    let mut tx = home.databases().open().0.begin().await.unwrap();
    let name = format!("outbox of {tenant_id}");
    let holder = uuid::Uuid::from_u128(1);
    let until = domain::Timestamp::from_seconds(4_000_000_000);
    let held = models::leases::take(&mut tx, &name, holder, domain::Timestamp::from_seconds(3_900_000_000), until).await.unwrap();
    assert!(held);
    tx.commit().await.unwrap();
}

/// Seeded fault, detected: the dirty flag set after the tenant's transaction.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_events_survive_a_sigkill() {
    #[expect(clippy::disallowed_methods, reason = "the environment of a test run decides how long")]
    let rounds: u64 = std::env::var("KILL_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap());
    let home = Home::new();
    let mut server = home.serve().await;
    let alice = server.user("alice").await;
    let mut tenants = Vec::new();
    for n in 0..10 {
        tenants.push(alice.creates_tenant(&format!("T{n}")).await);
    }
    let mut acts: BTreeMap<u64, usize> = BTreeMap::new();
    for round in 0..rounds {
        let workers: Vec<_> = tenants
            .iter()
            .map(|tenant| {
                let (alice, tenant) = (server.known(&alice), tenant.clone());
                tokio::spawn(async move {
                    let first = usize::try_from(round).unwrap() * 10_000;
                    let mut n = first;
                    while act(&alice, &tenant, n).await {
                        n += 1;
                    }
                    n - first
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(150 + 130 * round)).await;
        server.kill();
        for worker in workers {
            *acts.entry(round).or_default() += worker.await.unwrap();
        }
        home.expire_leases().await;
        server = home.serve().await;
    }
    println!("{acts:?}");
    drained(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    home.stop_and_check(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_inspects_events() {
    let scene = Scene::new().await;
    let Scene { home, alice, tenant, .. } = &scene;
    assert!(act(alice, tenant, 1).await);
    drained(home).await;
    let quiet = home.run(["events", "status"]).expect(0).out;
    assert_eq!(quiet, "waiting to be published  0\ndead letters             0\n");
    let shown = home.run(["events", "tail", "--tenant", "Acme"]).expect(0).out;
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = shown.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "document.uploaded", "{shown:?}");
    assert!(shown.iter().all(|event| event["tenant_id"] == tenant.as_str() && event["data"].is_object()), "{shown:?}");
    assert_eq!(home.run(["events", "tail", "--lines", "1"]).expect(0).out.lines().count(), 1);
    assert!(home.run(["events", "tail", "--tenant", "Unknown"]).error_line(1).contains("Unknown"));

    assert_eq!(home.run(["events", "dlq", "list"]).expect(0).out, "There are no dead letters.\n");
    let poison = Event {
        id: "01930f5a-7c1e-7d4b-9a3e-5f2c8b1d4e6a".parse().unwrap(),
        kind: EventKind::AuditLog,
        tenant_id: Some(tenant.parse().unwrap()),
        user_id: None,
        at: domain::Timestamp::from_seconds(0),
        data: r#"{"no":"action"}"#.to_owned(),
        traceparent: None,
    };
    let mut tx = home.databases().open().0.begin().await.unwrap();
    outbox::push(&mut tx, &poison);
    tx.commit().await.unwrap();
    let began = Instant::now();
    while status(home)["dead_letters"] == 0 {
        assert!(began.elapsed() < WAIT_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let id = poison.id.to_string();
    let listed = home.run(["events", "dlq", "list"]).expect(0).out;
    assert!(listed.contains(&id) && listed.contains("audit.log") && listed.contains("names no action"), "{listed}");
    let listed = home.run(["events", "dlq", "list", "--json"]).expect(0).json();
    assert_eq!((&listed["total"], &listed["items"][0]["event"]["event_id"]), (&json!(1), &json!(id)));
    let shown = home.run(["events", "dlq", "show", &id]).expect(0).json();
    assert_eq!((&shown["attempts"], &shown["event"]["data"]["no"]), (&json!(5), &json!("action")));
    let unknown = "00000000-0000-7000-8000-000000000000";
    for command in ["show", "replay", "drop"] {
        let refused = home.run(["events", "dlq", command, unknown]);
        assert!(refused.error_line(1).ends_with(&format!("no dead letter has the event id {unknown}")), "{refused:?}");
        home.run(["events", "dlq", command, "not-an-id"]).expect(2);
    }
    home.run(["events", "dlq", "drop"]).expect(2);
    home.run(["events", "dlq", "drop", &id, "--all"]).expect(2);
    assert_eq!(home.run(["events", "dlq", "drop", "--all"]).expect(0).out, "Discarded 1 event.\n");
    assert_eq!(home.run(["events", "dlq", "replay", "--all"]).expect(0).out, "Queued 0 events for publishing.\n");
    assert_eq!(home.run(["events", "dlq", "list"]).expect(0).out, "There are no dead letters.\n");
    scene.stop_and_check().await;
}
