//! Events: what was acknowledged is told, whatever dies; and what the operator sees of them.

use std::{
    collections::{BTreeMap, HashSet},
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use domain::{AuditFilter, EventId, EventKind, PageRequest, TenantId};
use models::{audit, dead_letters, outbox, tenants};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Persona;

use crate::{
    failpoints::doomed,
    process::{Home, PATIENCE, Server, repeatedly},
};

/// From the outbox to what follows of an event.
pub(crate) const EVENTS: &[&str] = &["outbox.noting", "outbox.noted", "document.processing_requesting", "file.processing"];
/// What a tenant that is deleted had to tell goes to the main database.
pub(crate) const TAKE_OVER: &[&str] = &["tenant.events_taken_over"];

/// What waits to be published, as the operator sees it.
pub(crate) fn status(home: &Home) -> Value {
    home.run(["events", "status", "--json"]).expect(0).json()
}

/// Waits until all is published.
pub(crate) async fn drained(home: &Home) {
    let began = Instant::now();
    loop {
        let status = status(home);
        if status["waiting"] == 0 && status["unknown"] == json!([]) {
            assert_eq!(status["dead_letters"], 0, "{}", home.run(["events", "dlq", "list"]).out);
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{status:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is missing of what follows of all events.
pub(crate) async fn find_unhandled(home: &Home) -> Vec<String> {
    let (main, directory) = home.databases().open();
    let mut missing = Vec::new();
    let everything = tenants::list(&mut main.read().await.unwrap()).await.unwrap();
    for tenant in everything {
        let mut connection = directory.open(&tenant.place).unwrap().read().await.unwrap();
        let unprocessed = connection.query("SELECT id FROM files WHERE processed_at IS NULL", Vec::new()).await.unwrap().len();
        if unprocessed > 0 {
            missing.push(format!("{unprocessed} files of {} were not processed", tenant.name));
        }
        let audited = all_audited(&mut connection).await;
        let told = outbox::list(&mut connection, 1_000_000).await.unwrap();
        let (told, of_main) = (told, outbox::list(&mut main.read().await.unwrap(), 1_000_000).await.unwrap());
        let told = told.iter().chain(of_main.iter().filter(|event| event.tenant_id == Some(tenant.id)));
        let told: Vec<_> = told.filter(|event| event.kind == EventKind::AuditLog).map(|event| event.id).collect();
        let known: HashSet<_> = audited.iter().copied().collect();
        let lost = told.iter().filter(|id| !known.contains(id)).count();
        if lost > 0 || known.len() != audited.len() || known.len() != told.len() {
            missing.push(format!("{}: {} audit events, {lost} of them not in the log of {}", tenant.name, told.len(), audited.len()));
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

/// Uploads, downloads, and deletes every fourth. Answers whether all of it was answered.
pub(crate) async fn act(alice: &Persona, tenant: &str, n: usize) -> bool {
    let path = format!("/api/tenants/{tenant}/documents");
    let form = reqwest::multipart::Form::new()
        .part("file", reqwest::multipart::Part::bytes(format!("{tenant} {n}").into_bytes()).file_name(format!("{n}.txt")));
    let Ok(answer) = alice.request(reqwest::Method::POST, &path).multipart(form).send().await else { return false };
    let Ok(uploaded) = answer.json::<Value>().await else { return false };
    let Some(id) = uploaded["data"]["id"].as_str() else { return false };
    let download = alice.request(reqwest::Method::GET, &format!("{path}/{id}/download?redirect=false")).send().await;
    let deleted =
        if n.is_multiple_of(4) { alice.request(reqwest::Method::DELETE, &format!("{path}/{id}")).send().await.is_ok() } else { true };
    download.is_ok() && deleted
}

pub(crate) async fn assert_crashed(server: &mut Server, failpoint: &str) {
    let status = server.ended().await;
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint}: {}", server.log());
    println!("{failpoint}: hit once");
}

/// Planted once, and caught: `published_at` noted before the bus had the events ("1 files of Acme were not processed").
#[test]
fn a_crash_on_the_way_of_an_event_loses_none() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        for (n, failpoint) in EVENTS.iter().enumerate() {
            drained(&home).await;
            server.stop().await;
            let asks = match *failpoint {
                "document.processing_requesting" => Some(EventKind::DocumentUploaded),
                "file.processing" => Some(EventKind::FileProcess),
                _ => None,
            };
            if let Some(kind) = asks {
                // As a direct upload leaves it, into which nobody has looked.
                leave_unprocessed(&home, kind).await;
                server = home.serve_doomed(&[("FAILPOINT", failpoint)]);
            } else {
                server = doomed(&home, failpoint).await;
                act(&server.known(&alice), &tenant, 4 * n + 1).await;
            }
            assert_crashed(&mut server, failpoint).await;
            home.forget_leases().await;
            server = home.serve().await;
            act(&server.known(&alice), &tenant, 4 * n + 2).await;
            drained(&home).await;
            assert_eq!(find_unhandled(&home).await, Vec::<String>::new(), "{failpoint}");
        }
        home.settle(server).await;
    });
}

/// One file that was not looked into, and an event that asks for that.
pub(crate) async fn leave_unprocessed(home: &Home, kind: EventKind) {
    let (main, directory) = home.databases().open();
    let tenant = tenants::list(&mut main.read().await.unwrap()).await.unwrap().remove(0);
    let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
    let sql = "UPDATE files SET processed_at = NULL, detected_mime_type = NULL WHERE id = (SELECT id FROM files LIMIT 1) RETURNING id";
    let file: domain::FileId = tx.query_one(sql, Vec::new()).await.unwrap().take().unwrap();
    let event = domain::Event {
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
fn a_crash_while_a_deleted_tenants_events_are_taken_over_loses_none() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        for failpoint in TAKE_OVER {
            let tenant = alice.creates_tenant("Acme").await;
            drained(&home).await;
            // Nobody publishes, once the server has given up its lease: as with a bus that is down.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let id: TenantId = tenant.parse().unwrap();
            hold_outbox(&home, id).await;
            let alice = server.known(&alice);
            for n in 0..3 {
                assert!(act(&alice, &tenant, n).await);
            }
            server.stop().await;
            let mut command = home.command(["tenants", "delete", &tenant, "--hard", "--confirm", "Acme"]);
            let status = command.env("FAILPOINT", failpoint).output().unwrap().status;
            assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint} was not hit");
            println!("{failpoint}: hit once");
            home.run(["tenants", "delete", &tenant, "--hard", "--confirm", "Acme"]).expect(0);
            home.forget_leases().await;
            server = home.serve().await;
            drained(&home).await;
            let (main, _) = home.databases().open();
            let filter = AuditFilter { action: Some("document.downloaded".to_owned()), ..AuditFilter::default() };
            let mut connection = main.read().await.unwrap();
            let told = audit::list_platform(&mut connection, Some(id), &filter, PageRequest::default()).await.unwrap();
            assert_eq!(told.total, 3, "of a tenant that is no more, the platform knows");
            assert_eq!(dead_letters::list(&mut connection, PageRequest::default()).await.unwrap().total, 0);
        }
        home.settle(server).await;
    });
}

/// Keeps everybody from publishing a tenant's events.
async fn hold_outbox(home: &Home, tenant_id: TenantId) {
    let mut tx = home.databases().open().0.begin().await.unwrap();
    let name = format!("outbox of {tenant_id}");
    let holder = uuid::Uuid::from_u128(1);
    let until = domain::Timestamp::from_seconds(4_000_000_000);
    let held = models::leases::take(&mut tx, &name, holder, domain::Timestamp::from_seconds(3_900_000_000), until).await.unwrap();
    assert!(held);
    tx.commit().await.unwrap();
}

/// Planted once, and caught: the mark made after the tenant's transaction.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_survives_a_sigkill() {
    #[expect(clippy::disallowed_methods, reason = "how long to look is the environment's to say")]
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
        // What the dead one held.
        home.forget_leases().await;
        server = home.serve().await;
    }
    println!("{acts:?}");
    drained(&home).await;
    assert_eq!(find_unhandled(&home).await, Vec::<String>::new());
    home.settle(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_looks_at_events() {
    let home = Home::new();
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    assert!(act(&alice, &tenant, 1).await);
    drained(&home).await;
    let quiet = home.run(["events", "status"]).expect(0).out;
    assert_eq!(quiet, "waiting to be published  0\ndead letters             0\n");
    let told = home.run(["events", "tail", "--tenant", "Acme"]).expect(0).out;
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = told.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "document.uploaded", "{told:?}");
    assert!(told.iter().all(|event| event["tenant_id"] == tenant.as_str() && event["data"].is_object()), "{told:?}");
    assert_eq!(home.run(["events", "tail", "--lines", "1"]).expect(0).out.lines().count(), 1);
    assert!(home.run(["events", "tail", "--tenant", "Nobody"]).complaint(1).contains("Nobody"));

    assert_eq!(home.run(["events", "dlq", "list"]).expect(0).out, "There are no dead letters.\n");
    let poison = domain::Event {
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
    while status(&home)["dead_letters"] == 0 {
        assert!(began.elapsed() < PATIENCE);
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
        let complaint = home.run(["events", "dlq", command, unknown]);
        assert!(complaint.complaint(1).ends_with(&format!("no dead letter is of the event {unknown}")), "{complaint:?}");
        home.run(["events", "dlq", command, "not-an-id"]).expect(2);
    }
    home.run(["events", "dlq", "drop"]).expect(2);
    home.run(["events", "dlq", "drop", &id, "--all"]).expect(2);
    assert_eq!(home.run(["events", "dlq", "drop", "--all"]).expect(0).out, "Gave 1 event up.\n");
    assert_eq!(home.run(["events", "dlq", "replay", "--all"]).expect(0).out, "To be published once more: 0 events.\n");
    assert_eq!(home.run(["events", "dlq", "list"]).expect(0).out, "There are no dead letters.\n");
    home.settle(server).await;
}
