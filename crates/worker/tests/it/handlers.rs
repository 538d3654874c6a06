//! Event handlers and dead letters.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use domain::{AuditFilter, Event, EventId, EventKind, PageRequest, SystemClock};
use models::{audit, outbox};
use serde_json::{Value, json};
use testkit::{Persona, TestApp};
use worker::handle;

use crate::recorder::{Running, WAIT_TIMEOUT, database_of, unprocess};

/// The audit log as a tenant's admin sees it.
async fn audit(alice: &Persona, tenant: &str, query: &str) -> Vec<Value> {
    alice.get(&format!("/api/tenants/{tenant}/audit?per_page=100{query}")).await.expect(200).items().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_see_their_tenants_audit_log() {
    let app = TestApp::new().await;
    let relay = Running::handling(&app).await;
    let (alice, bob, carol) = (app.user("alice").await, app.user("bob").await, app.user("carol").await);
    let (tenant, other) = (alice.creates_tenant("Acme").await, alice.creates_tenant("Other").await);
    alice.invites(&bob, &tenant, "viewer").await;
    let document = alice.uploads(&tenant, "a.txt", "a").await.expect(201).id();
    let path = format!("/api/tenants/{tenant}/documents/{document}");
    bob.get(&format!("{path}/download?redirect=false")).await.expect(200);
    bob.delete(&path).await.expect_error(403, "insufficient_role");
    bob.delete(&path).await.expect_error(403, "insufficient_role");
    // Before the events are handled, which may take longer than the interval in which a denial is recorded once.
    carol.get(&path).await.expect_error(404, "tenant_not_found");
    carol.get(&format!("/api/tenants/{tenant}/audit")).await.expect_error(404, "tenant_not_found");
    alice.delete(&path).await.expect(200);
    relay.drained(&app).await;

    let entries = audit(&alice, &tenant, "").await;
    let mut actions: Vec<_> = entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["access.denied", "document.deleted", "document.downloaded", "member.added", "tenant.created"]);
    let of = |action: &str| entries.iter().find(|entry| entry["action"] == action).unwrap();
    assert_eq!(of("access.denied")["data"]["wanted"], "DELETE /api/tenants/{tenant_id}/documents/{document_id}");
    assert_eq!(of("document.downloaded")["data"]["document_id"], json!(document));
    let bobs = of("document.downloaded")["user_id"].as_str().unwrap();
    assert_eq!(audit(&alice, &tenant, &format!("&user_id={bobs}")).await.len(), 2);
    assert_eq!(audit(&alice, &tenant, "&action=member.added").await, [of("member.added").clone()]);
    assert_eq!(audit(&alice, &tenant, "&action=no.such").await, Vec::<Value>::new());
    assert_eq!(audit(&alice, &tenant, "&to=2000-01-01T00:00:00Z").await.len(), 0);
    assert_eq!(audit(&alice, &tenant, "&from=2000-01-01T00:00:00Z&to=2100-01-01T00:00:00%2B02:00").await.len(), 5);
    assert_eq!(audit(&alice, &other, "").await.len(), 1, "contains entries of another tenant");
    bob.get(&format!("/api/tenants/{tenant}/audit")).await.expect_error(403, "insufficient_role");
    for query in ["from=yesterday", "action=Member", "action=.", "user_id=me", "page=0", "sort=up"] {
        alice.get(&format!("/api/tenants/{tenant}/audit?{query}")).await.expect(400);
    }

    let (main, _) = app.databases().open();
    let platform =
        audit::list_platform(&mut main.read().await.unwrap(), None, &AuditFilter::default(), PageRequest::first(100)).await.unwrap().items;
    let denied: Vec<_> = platform.iter().filter(|entry| entry.action == "access.denied").collect();
    assert_eq!(denied.len(), 1, "expected one denied access of a non-member: {platform:?}");
    assert!(denied[0].data.contains(&tenant) && denied[0].tenant_id.is_none(), "{denied:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_logins_are_audited_without_the_submitted_text() {
    let app = TestApp::new().await;
    let relay = Running::handling(&app).await;
    let alice = app.user("alice").await;
    let stranger = app.stranger();
    for email in [alice.email.as_str(), "nobody@example.com", "hunter2 in the wrong field"] {
        let body = json!({ "email": email, "password": "wrong password 1" });
        stranger.post("/api/auth/login", &body).await.expect_error(401, "invalid_credentials");
    }
    relay.drained(&app).await;
    let (main, _) = app.databases().open();
    let filter = AuditFilter { action: Some("login.failed".to_owned()), ..AuditFilter::default() };
    let found = audit::list_platform(&mut main.read().await.unwrap(), None, &filter, PageRequest::first(100)).await.unwrap().items;
    let mut entries: Vec<_> = found.iter().map(|entry| (entry.user_id, entry.data.as_str())).collect();
    entries.sort_unstable();
    let target = format!(r#"{{"target_user_id":"{}"}}"#, alice.id);
    let unknown = r#"{"target_user_id":null}"#;
    assert_eq!(entries, [(None, target.as_str()), (None, unknown), (None, unknown)]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_append_only() {
    let app = TestApp::new().await;
    let relay = Running::handling(&app).await;
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    relay.drained(&app).await;
    let database = database_of(&app, &tenant).await;
    let (main, _) = app.databases().open();
    for sql in ["UPDATE audit_log SET action = 'a.b'", "DELETE FROM audit_log"] {
        let mut tx = database.begin().await.unwrap();
        assert!(tx.execute(sql, Vec::new()).await.is_err(), "{sql}");
        drop(tx);
        let mut tx = main.begin().await.unwrap();
        assert!(tx.execute(sql, Vec::new()).await.is_err(), "{sql}");
    }
    assert_eq!(audit(&alice, &tenant, "").await.len(), 1);
    relay.stop().await;
}

/// The state that the handled events produce.
async fn state(app: &TestApp, alice: &Persona, tenant: &str) -> (Vec<Value>, BTreeMap<String, String>, usize) {
    let database = database_of(app, tenant).await;
    let mut connection = database.read().await.unwrap();
    let rows = connection.query("SELECT s3_path, detected_mime_type FROM files ORDER BY s3_path", Vec::new()).await.unwrap();
    let files = rows.into_iter().map(|mut row| (row.take().unwrap(), row.take::<Option<String>>().unwrap().unwrap_or_default()));
    let requests = outbox::list(&mut database.read().await.unwrap(), 10_000).await.unwrap();
    let requests = requests.iter().filter(|event| event.kind == EventKind::FileProcess).count();
    (audit(alice, tenant, "").await, files.collect(), requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn redelivery_three_times_in_any_order_has_no_further_effect() {
    let app = TestApp::builder().trash_retention(Duration::from_secs(3600)).start().await;
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    for (n, content) in ["%PDF-1.7", "plain", "GIF89a", "\u{1}\u{2}"].iter().enumerate() {
        let id = alice.uploads(&tenant, &format!("{n}"), *content).await.expect(201).id();
        let path = format!("/api/tenants/{tenant}/documents/{id}");
        alice.get(&format!("{path}/download?redirect=false")).await.expect(200);
        if n % 2 == 0 {
            alice.delete(&path).await.expect(200);
        }
    }
    let known: Vec<_> = state(&app, &alice, &tenant).await.1.into_values().collect();
    unprocess(&app, &tenant).await;
    let relay = Running::handling(&app).await;
    relay.drained(&app).await;
    relay.stop().await;
    let once = state(&app, &alice, &tenant).await;
    assert_eq!(once.1.values().map(String::as_str).collect::<Vec<_>>().len(), 4);
    assert!(
        once.1.values().any(|detected| detected == "application/pdf") && once.1.values().any(|detected| detected == "image/gif"),
        "{once:?}"
    );
    assert_eq!(
        once.1.values().collect::<Vec<_>>(),
        known.iter().collect::<Vec<_>>(),
        "the worker detects a different type than the upload"
    );
    assert_eq!(once.2, 4, "expected one processing request per file");

    let database = database_of(&app, &tenant).await;
    let (main, _) = app.databases().open();
    let mut events = outbox::list(&mut database.read().await.unwrap(), 10_000).await.unwrap();
    events.extend(outbox::list(&mut main.read().await.unwrap(), 10_000).await.unwrap());
    let mut thrice: Vec<Event> = [events.clone(), events.clone(), events].concat();
    // A deterministic shuffle.
    thrice.sort_by_key(|event| uuid::Uuid::from(event.id).as_u128().wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834));
    let middle = thrice.len() / 2;
    thrice.rotate_left(middle);
    for event in &thrice {
        handle(&app.services().events, event.tenant_id, event.kind, std::slice::from_ref(event)).await.unwrap();
    }
    assert_eq!(state(&app, &alice, &tenant).await, once);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_carry_the_traceparent_of_their_request() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let id = alice.uploads(&tenant, "a.txt", "a").await.expect(201).id();
    let path = format!("/api/tenants/{tenant}/documents/{id}");
    alice.request(reqwest::Method::DELETE, &path).header("traceparent", traceparent).send().await.unwrap();
    let events = outbox::list(&mut database_of(&app, &tenant).await.read().await.unwrap(), 10).await.unwrap();
    let of = |kind| events.iter().find(|event| event.kind == kind).unwrap().traceparent.as_deref();
    assert_eq!((of(EventKind::DocumentUploaded), of(EventKind::DocumentDeleted)), (None, Some(traceparent)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_is_dead_lettered_and_delays_only_its_tenant() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let (tenant, other) = (alice.creates_tenant("Acme").await, alice.creates_tenant("Other").await);
    let poison = Event {
        id: EventId::generate(&SystemClock),
        kind: EventKind::AuditLog,
        tenant_id: Some(tenant.parse().unwrap()),
        user_id: None,
        at: domain::Timestamp::from_seconds(0),
        data: "{}".to_owned(),
        traceparent: None,
    };
    let (main, _) = app.databases().open();
    let mut tx = main.begin().await.unwrap();
    outbox::push(&mut tx, &poison);
    tx.commit().await.unwrap();
    let downloads = async |tenant: &str| {
        let id = alice.uploads(tenant, "a.txt", "a").await.expect(201).id();
        alice.get(&format!("/api/tenants/{tenant}/documents/{id}/download?redirect=false")).await.expect(200);
    };
    downloads(&tenant).await;
    let relay = Running::handling(&app).await;
    let began = Instant::now();
    downloads(&other).await;
    while audit(&alice, &other, "&action=document.downloaded").await.is_empty() {
        assert!(began.elapsed() < WAIT_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(audit(&alice, &tenant, "&action=document.downloaded").await.len(), 0, "the tenant of the poison event did not wait");
    relay.drained(&app).await;
    assert_eq!(audit(&alice, &tenant, "&action=document.downloaded").await.len(), 1);
    if let Some(kafka) = relay.kafka().cloned() {
        let letters = tokio::task::spawn_blocking(move || kafka.read("audit.log.dlq")).await.unwrap();
        assert_eq!((letters.len(), &letters[0].key), (1, &tenant));
        assert!(
            letters[0].headers["error"].contains("names no action") && letters[0].value.contains(&poison.id.to_string()),
            "{letters:?}"
        );
    }
    let letters = app.services().operator.list_dead_letters(PageRequest::default()).await.unwrap();
    assert_eq!(letters.total, 1);
    let letter = &letters.items[0];
    assert_eq!((&letter.event, letter.attempts), (&poison, 5));
    assert!(letter.error.contains("names no action"), "{letter:?}");

    // A replay fails again while the cause persists. Then the dead letter is dropped.
    app.services().operator.replay_dead_letter(poison.id).await.unwrap();
    relay.drained(&app).await;
    assert_eq!(app.services().operator.get_dead_letter(poison.id).await.unwrap().event.id, poison.id);
    app.services().operator.drop_dead_letter(poison.id).await.unwrap();
    assert!(app.services().operator.drop_dead_letter(poison.id).await.is_err());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_dead_letter_is_handled_once_its_cause_is_fixed() {
    let app = TestApp::builder().objects_as_files().start().await;
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let file = alice.uploads(&tenant, "a.pdf", "%PDF-1.7").await.expect(201).data()["file"]["s3_path"].as_str().unwrap().to_owned();
    let storage = app.objects().open();
    storage.delete(&file).await.unwrap();
    unprocess(&app, &tenant).await;
    let relay = Running::handling(&app).await;
    relay.drained(&app).await;
    let letters = app.services().operator.list_dead_letters(PageRequest::default()).await.unwrap().items;
    assert_eq!(letters.iter().map(|letter| letter.event.kind).collect::<Vec<_>>(), [EventKind::FileProcess], "{letters:?}");
    app.objects().leave(&file, b"%PDF-1.7").await;
    app.services().operator.replay_dead_letter(letters[0].event.id).await.unwrap();
    relay.drained(&app).await;
    assert_eq!(app.services().operator.list_dead_letters(PageRequest::default()).await.unwrap().total, 0);
    let (_, files, _) = state(&app, &alice, &tenant).await;
    assert_eq!(files.into_values().collect::<Vec<_>>(), ["application/pdf"]);
    relay.stop().await;
}
