//! The relay loses no event, invents none, and keeps the order of each tenant's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Clock, Event, EventId, EventKind, SystemClock, TenantId};
use models::{Scope, Tx, dirty_tenants, outbox, tenants};
use serde_json::Value;
use services::OrderingKey;
use testkit::{Persona, TestApp};

use crate::recorder::{PATIENCE, Recorder, Running, database_of, drained};

fn id_of(tenant: &str) -> OrderingKey {
    Some(tenant.parse::<TenantId>().unwrap())
}

fn event(id: EventId, tenant: &str, data: &str) -> Event {
    Event {
        id,
        kind: EventKind::AuditLog,
        tenant_id: id_of(tenant),
        user_id: None,
        at: SystemClock.now(),
        data: format!(r#"{{"action":"test.{data}"}}"#),
        traceparent: None,
    }
}

/// As `EventServices::tell`, for transactions of the test's own.
fn tell<S: Scope>(tx: &mut Tx<S>, event: &Event) {
    outbox::push(tx, event);
}

/// What happened to documents, in order: `+name` and `-name`.
fn of_documents(events: &[Event]) -> Vec<String> {
    let told = |event: &Event| {
        let data: Value = serde_json::from_str(&event.data).unwrap();
        match event.kind {
            EventKind::DocumentUploaded => Some(format!("+{}", data["filename"].as_str().unwrap())),
            EventKind::DocumentDeleted => Some(format!("-{}", data["filename"].as_str().unwrap())),
            _ => None,
        }
    };
    events.iter().filter_map(told).collect()
}

/// Uploads and deletes, one after the other. Answers what happened.
async fn work(alice: Persona, tenant: String, prefix: &'static str, count: usize) -> Vec<String> {
    let mut done = Vec::new();
    for n in 0..count {
        let name = format!("{prefix}{n}");
        let id = alice.uploads(&tenant, &name, name.clone()).await.expect(201).id();
        done.push(format!("+{name}"));
        if n % 3 == 0 {
            alice.delete(&format!("/api/tenants/{tenant}/documents/{id}")).await.expect(200);
            done.push(format!("-{name}"));
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_published_once_and_in_order_when_all_is_well() {
    let app = TestApp::new().await;
    let bus = Arc::new(Recorder::default());
    let relay = Running::start(&app.services().events, bus.clone());
    let alice = app.user("alice").await;
    let mut workers = Vec::new();
    for n in 0..5 {
        let tenant = alice.creates_tenant(&format!("T{n}")).await;
        workers.push((tenant.clone(), tokio::spawn(work(alice.clone(), tenant, "a", 20))));
    }
    for (tenant, worker) in workers {
        let done = worker.await.unwrap();
        drained(&app).await;
        let (first, counts) = bus.first_deliveries(id_of(&tenant));
        assert_eq!(of_documents(&first), done);
        assert_eq!(first[0].kind, EventKind::TenantCreated, "{:?}", first[0]);
        assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    }
    let (of_nobody, _) = bus.first_deliveries(None);
    assert_eq!(of_nobody.len(), 2, "registered, logged in: {of_nobody:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_publish_a_tenants_events_in_order_and_once() {
    let app = TestApp::new().await;
    let other = app.second_instance().await;
    let bus = Arc::new(Recorder::default());
    let relays = [Running::start(&app.services().events, bus.clone()), Running::start(&other.services().events, bus.clone())];
    let alice = app.user("alice").await;
    let tenants = [alice.creates_tenant("A").await, alice.creates_tenant("B").await];
    for tenant in &tenants {
        let (one, two) = (alice.clone(), alice.at(&other));
        let workers = [tokio::spawn(work(one, tenant.clone(), "one", 15)), tokio::spawn(work(two, tenant.clone(), "two", 15))];
        let mut done = Vec::new();
        for worker in workers {
            done.push(worker.await.unwrap());
        }
        drained(&app).await;
        let (first, counts) = bus.first_deliveries(id_of(tenant));
        for (prefix, done) in ["one", "two"].iter().zip(done) {
            let told: Vec<_> = of_documents(&first).into_iter().filter(|told| told[1..].starts_with(prefix)).collect();
            assert_eq!(told, done);
        }
        assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    }
    for relay in relays {
        relay.stop().await;
    }
}

/// A reader of what is "greater than the last", as many outboxes have it: the control, which must fail.
#[derive(Default)]
struct NaiveReader {
    last: Option<uuid::Uuid>,
    seen: Vec<uuid::Uuid>,
}

impl NaiveReader {
    async fn read(&mut self, database: &models::TenantDatabase) {
        let mut ids: Vec<uuid::Uuid> =
            outbox::list(&mut database.read().await.unwrap(), 1_000).await.unwrap().into_iter().map(|event| event.id.into()).collect();
        ids.sort();
        ids.retain(|id| self.last.is_none_or(|last| *id > last));
        self.last = ids.last().copied().or(self.last);
        self.seen.extend(ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_in_the_opposite_order_of_their_ids_skip_nothing() {
    let app = TestApp::new().await;
    let bus = Arc::new(Recorder::default());
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    // Marked, as by every transaction that tells something.
    alice.uploads(&tenant, "a.txt", "a").await.expect(201);
    let database = database_of(&app, &tenant).await;
    let relay = Running::start(&app.services().events, bus.clone());
    drained(&app).await;
    let (mut naive, mut told) = (NaiveReader::default(), Vec::new());
    let seen = async |id: EventId| {
        let began = Instant::now();
        while bus.seen_at(id).is_none() {
            assert!(began.elapsed() < PATIENCE, "an event was skipped");
            app.services().events.notify(id_of(&tenant));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    for n in 0..20 {
        let mut ids = [EventId::generate(&SystemClock), EventId::generate(&SystemClock)];
        ids.sort();
        let [early, late] = ids;
        let mut slow = database.begin().await.unwrap();
        tell(&mut slow, &event(early, &tenant, &format!("early_{n}")));
        if app.databases().engine() == "postgres" && n % 2 == 0 {
            // There already, and not committed.
            slow.query("SELECT 1", Vec::new()).await.unwrap();
        }
        let mut quick = database.begin().await.unwrap();
        tell(&mut quick, &event(late, &tenant, &format!("late_{n}")));
        quick.commit().await.unwrap();
        seen(late).await;
        naive.read(&database).await;
        slow.commit().await.unwrap();
        seen(early).await;
        naive.read(&database).await;
        told.extend([early, late].map(uuid::Uuid::from));
    }
    let skipped = told.iter().filter(|id| !naive.seen.contains(id)).count();
    assert_eq!(skipped, 20, "the control did not fail: the test proves nothing");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_that_the_bus_is_down_and_what_waits_drains_in_order() {
    let app = TestApp::new().await;
    let bus = Arc::new(Recorder::default());
    let relay = Running::start(&app.services().events, bus.clone());
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    drained(&app).await;
    bus.set_down(true);
    let before = bus.seen().len();
    let done = work(alice, tenant.clone(), "a", 30).await;
    assert_eq!(bus.seen().len(), before);
    let waiting: u64 = app.services().operator.outbox_status().await.unwrap().backlogs.iter().map(|backlog| backlog.events).sum();
    assert!(waiting >= done.len() as u64, "{waiting}");
    bus.set_down(false);
    drained(&app).await;
    let (first, counts) = bus.first_deliveries(id_of(&tenant));
    assert_eq!(of_documents(&first), done);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_untold_is_found_by_its_mark() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let (tenant, idle) = (alice.creates_tenant("Acme").await, alice.creates_tenant("Idle").await);
    let done = work(alice.clone(), tenant.clone(), "a", 5).await;
    let (main, _) = app.databases().open();
    let marks = async || {
        let after = app.clock().now().plus(Duration::from_secs(1));
        dirty_tenants::list_before(&mut main.read().await.unwrap(), after, None, 100).await.unwrap()
    };
    assert_eq!(marks().await.iter().map(|mark| Some(mark.tenant_id)).collect::<Vec<_>>(), [id_of(&tenant)]);
    assert_ne!(id_of(&tenant), id_of(&idle));

    // Another process, which nobody told of it.
    let other = app.second_instance().await;
    let bus = Arc::new(Recorder::default());
    let relay = Running::start(&other.services().events, bus.clone());
    drained(&app).await;
    assert_eq!(of_documents(&bus.first_deliveries(id_of(&tenant)).0), done);
    relay.stop().await;
    assert_eq!(marks().await.len(), 1, "whoever marked it just now may be writing");

    app.clock().advance(Duration::from_secs(61));
    let relay = Running::start(&other.services().events, bus.clone());
    let began = Instant::now();
    while !marks().await.is_empty() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Marked again, by one that does not go by its mark from before, and found while the relay runs, once the mark is old.
    let writer = app.second_instance().await;
    let again = work(alice.at(&writer), tenant.clone(), "b", 2).await;
    app.clock().advance(Duration::from_secs(61));
    drained(&app).await;
    assert_eq!(of_documents(&bus.first_deliveries(id_of(&tenant)).0), [done, again].concat());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_had_to_tell_is_told_after_its_deletion() {
    let app = TestApp::new().await;
    let bus = Arc::new(Recorder::default());
    bus.set_down(true);
    let relay = Running::start(&app.services().events, bus.clone());
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let done = work(alice, tenant.clone(), "a", 12).await;
    let (main, _) = app.databases().open();
    let found = tenants::find(&mut main.read().await.unwrap(), tenant.parse().unwrap()).await.unwrap().unwrap();
    app.services().operator.delete_tenant(&found).await.unwrap();
    bus.set_down(false);
    drained(&app).await;
    let (first, _) = bus.first_deliveries(id_of(&tenant));
    assert_eq!(of_documents(&first), done);
    let position = |kind| first.iter().position(|event| event.kind == kind).unwrap();
    assert!(position(EventKind::TenantDeleted) > position(EventKind::DocumentUploaded), "{first:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_many_events_does_not_hold_up_another() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let (busy, other) = (alice.creates_tenant("Busy").await, alice.creates_tenant("Other").await);
    let bus = Arc::new(Recorder::slow(Duration::from_millis(5)));
    let relay = Running::start(&app.services().events, bus.clone());
    drained(&app).await;
    let one = async || {
        let began = Instant::now();
        alice.uploads(&other, "one.txt", format!("{began:?}")).await.expect(201);
        let uploaded = began.elapsed();
        drained_key(&app, &other).await;
        (began.elapsed() - uploaded).max(Duration::from_millis(10))
    };
    let mut alone = one().await;
    for _ in 0..4 {
        alone = alone.max(one().await);
    }
    relay.stop().await;
    for n in 0..300 {
        alice.uploads(&busy, "many.txt", format!("{n}")).await.expect(201);
    }
    let relay = Running::start(&app.services().events, bus.clone());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut beside = Vec::new();
    for _ in 0..5 {
        beside.push(one().await);
    }
    beside.sort();
    let waiting = app.services().operator.outbox_status().await.unwrap();
    assert!(waiting.backlogs.iter().any(|backlog| backlog.key == id_of(&busy)), "the many were through too early");
    assert!(beside[2] <= alone * 2, "{beside:?} against {alone:?}");
    relay.stop().await;
}

async fn drained_key(app: &TestApp, tenant: &str) {
    let began = Instant::now();
    while app.services().operator.outbox_status().await.unwrap().backlogs.iter().any(|backlog| backlog.key == id_of(tenant)) {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_long_ago_is_forgotten() {
    const LONGER_THAN_KEPT: Duration = Duration::from_secs(25 * 3600);
    let app = TestApp::new().await;
    let relay = Running::start(&app.services().events, Arc::new(Recorder::default()));
    let alice = app.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    // No document is left whose upload would be forgotten.
    let upload_and_delete = async |name: &str| {
        let id = alice.uploads(&tenant, name, name.to_owned()).await.expect(201).id();
        alice.delete(&format!("/api/tenants/{tenant}/documents/{id}")).await.expect(200);
    };
    upload_and_delete("published").await;
    drained(&app).await;
    relay.stop().await;
    upload_and_delete("waiting").await;
    let forget = async || {
        let tenant = app.services().operator.list_all_tenants().await.unwrap().remove(0);
        app.services().operator.collect_garbage(&tenant).await.unwrap();
        app.services().operator.purge_platform_events().await.unwrap();
        let of_nobody =
            app.services().operator.list_events(None, 100).await.unwrap().iter().filter(|event| event.tenant_id.is_none()).count();
        let mut of_tenant = of_documents(&app.services().operator.list_events(Some(tenant.id), 100).await.unwrap());
        of_tenant.sort();
        (of_tenant, of_nobody)
    };
    let waiting = ["+waiting", "-waiting"].map(ToOwned::to_owned).to_vec();
    let both = ["+published", "+waiting", "-published", "-waiting"].map(ToOwned::to_owned).to_vec();
    assert_eq!(forget().await, (both, 2), "published just now");
    app.clock().advance(LONGER_THAN_KEPT);
    assert_eq!(forget().await, (waiting.clone(), 0), "one is old, but was never published");
    let relay = Running::start(&app.services().events, Arc::new(Recorder::default()));
    drained(&app).await;
    assert_eq!(forget().await, (waiting, 0), "it is old, but was published just now");
    app.clock().advance(LONGER_THAN_KEPT);
    assert_eq!(forget().await, (Vec::new(), 0));
    relay.stop().await;
}
