//! Limits of logins, registrations and requests. Each has its control: without the limit, everything is let through.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, time::Duration};

use api::{Rate, RateLimits, TrustedProxies};
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use services::RegistrationPolicy;
use testkit::{Builder, PASSWORD, Reply, TestApp};

/// An app behind a proxy on this machine, so that requests can come from any address.
fn behind_proxy() -> Builder {
    TestApp::builder()
        .api(api::Settings { trusted_proxies: TrustedProxies::parse(["127.0.0.1"].into_iter()).unwrap(), ..api::Settings::default() })
}

/// Logs in from an address.
async fn log_in(app: &TestApp, client: &str, body: &Value) -> Reply {
    Reply::to(app.stranger().request(Method::POST, "/api/auth/login").header("x-forwarded-for", client).json(body)).await
}

fn credentials(email: &str, password: &str) -> Value {
    json!({ "email": email, "password": password })
}

/// How often each status was answered.
fn statuses(replies: &[Reply]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for reply in replies {
        *counts.entry(reply.status.as_u16()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn guesses_at_a_password_are_slowed_down() {
    let app = behind_proxy().start().await;
    let alice = app.user("alice").await;
    for email in [alice.email.as_str(), "nobody@example.com"] {
        let guess = async || log_in(&app, "192.0.2.1", &credentials(email, "wrong password 1")).await;
        for _ in 0..5 {
            guess().await.expect_error(401, "invalid_credentials");
        }
        let limited = guess().await.expect_error(429, "rate_limited");
        assert_eq!(limited.header("retry-after"), "30");
        // Nor is the right password tried, and every network counts.
        log_in(&app, "198.51.100.1", &credentials(email, PASSWORD)).await.expect_error(429, "rate_limited");
        app.clock().advance(Duration::from_secs(30));
        guess().await.expect_error(401, "invalid_credentials");
        assert_eq!(guess().await.expect(429).header("retry-after"), "60");
    }
    // The case of the address and blanks around it make no other account.
    log_in(&app, "192.0.2.1", &credentials(" ALICE@example.com", PASSWORD)).await.expect(429);
    let bob = app.user("bob").await;
    log_in(&app, "192.0.2.1", &credentials(&bob.email, PASSWORD)).await.expect(200);

    let elsewhere = app.second_instance().await;
    log_in(&elsewhere, "192.0.2.1", &credentials(&alice.email, PASSWORD)).await.expect_error(429, "rate_limited");
    drop(elsewhere);
    // Success ends the row of failures.
    app.clock().advance(Duration::from_secs(60));
    log_in(&app, "192.0.2.1", &credentials(&alice.email, PASSWORD)).await.expect(200);
    for _ in 0..5 {
        log_in(&app, "203.0.113.1", &credentials(&alice.email, "wrong password 1")).await.expect(401);
    }
}

#[tokio::test]
async fn the_owners_devices_get_in_while_strangers_guess() {
    let app = behind_proxy().start().await;
    let alice = app.user("alice").await;
    let right = credentials(&alice.email, PASSWORD);
    let login = log_in(&app, "192.0.2.1", &right).await.expect(200);
    let device_token = login.data()["device_token"].as_str().unwrap().to_owned();
    let guesses = join_all((0..60).map(|_| {
        let app = &app;
        let wrong = credentials(&alice.email, "wrong password 1");
        async move { log_in(app, "198.51.100.1", &wrong).await }
    }));
    let counts = statuses(&guesses.await);
    assert!(counts[&401] <= 10 && counts[&401] + counts[&429] == 60, "{counts:?}");

    log_in(&app, "203.0.113.1", &right).await.expect_error(429, "rate_limited");
    log_in(&app, "192.0.2.1", &right).await.expect(200);
    let mut with_device = right.clone();
    with_device["device_token"] = device_token.clone().into();
    log_in(&app, "203.0.113.1", &with_device).await.expect(200);
    // A token of another kind or user is none.
    let bob = app.user("bob").await;
    for token in [alice.access_token.clone().unwrap(), alice.refresh_token.clone().unwrap(), "x".to_owned()] {
        with_device["device_token"] = token.into();
        log_in(&app, "203.0.113.77", &with_device).await.expect_error(429, "rate_limited");
    }
    let bobs = log_in(&app, "192.0.2.50", &credentials(&bob.email, PASSWORD)).await.expect(200);
    with_device["device_token"] = bobs.data()["device_token"].clone();
    log_in(&app, "203.0.113.77", &with_device).await.expect_error(429, "rate_limited");
    // A device token authorizes nothing, and who guesses with one has a count of his own.
    alice.with_token(device_token.clone()).get("/api/users/me").await.expect_error(401, "invalid_token");
    for n in 0..6 {
        let mut wrong = credentials(&alice.email, "wrong password 1");
        wrong["device_token"] = device_token.clone().into();
        log_in(&app, "203.0.113.5", &wrong).await.expect(if n < 5 { 401 } else { 429 });
    }
}

/// The control of the two tests before.
#[tokio::test]
async fn without_the_limit_every_guess_is_tried() {
    let app = behind_proxy().settings(|settings| settings.throttle_logins = false).start().await;
    let alice = app.user("alice").await;
    let guesses = join_all((0..30).map(|_| {
        let app = &app;
        let wrong = credentials(&alice.email, "wrong password 1");
        async move { log_in(app, "198.51.100.1", &wrong).await }
    }));
    assert_eq!(statuses(&guesses.await), BTreeMap::from([(401, 30)]));
}

fn per_minute(requests: u32) -> Rate {
    Rate { requests, per: Duration::from_secs(60) }
}

/// Limits that only the named requests reach.
fn limits() -> RateLimits {
    let none = per_minute(1_000_000);
    RateLimits { auth: none, read: none, write: none, upload: none, tenant: none }
}

fn with_limits(limits: RateLimits) -> Builder {
    let trusted_proxies = TrustedProxies::parse(["127.0.0.1"].into_iter()).unwrap();
    TestApp::builder().api(api::Settings { rate_limits: Some(limits), trusted_proxies, ..api::Settings::default() })
}

#[tokio::test]
async fn requests_without_a_user_are_limited_per_address() {
    let app = with_limits(RateLimits { auth: per_minute(3), ..limits() }).start().await;
    let unknown = credentials("nobody@example.com", PASSWORD);
    for n in 0..3 {
        let allowed = log_in(&app, "192.0.2.1", &unknown).await.expect(401);
        assert_eq!(allowed.header("ratelimit-policy"), "\"auth\";q=3;w=60");
        assert!(allowed.header("ratelimit").starts_with(&format!("\"auth\";r={};t=", 2 - n)), "{}", allowed.header("ratelimit"));
    }
    let limited = log_in(&app, "192.0.2.1", &unknown).await.expect_error(429, "rate_limited");
    let retry_after: u64 = limited.header("retry-after").parse().unwrap();
    assert!((1..=20).contains(&retry_after) && limited.header("ratelimit").starts_with("\"auth\";r=0;t="), "{retry_after}");
    let registration =
        Reply::to(app.stranger().request(Method::POST, "/api/auth/register").header("x-forwarded-for", "192.0.2.1").json(&json!({})));
    registration.await.expect_error(429, "rate_limited");
    let refresh = app.stranger().request(Method::POST, "/api/auth/refresh").header("x-forwarded-for", "192.0.2.1");
    Reply::to(refresh).await.expect_error(429, "rate_limited");
    // Other addresses, and health, are not concerned.
    log_in(&app, "192.0.2.2", &unknown).await.expect(401);
    for _ in 0..10 {
        let health = app.stranger().request(Method::GET, "/health").header("x-forwarded-for", "192.0.2.1");
        assert_eq!(Reply::to(health).await.expect(200).header("ratelimit"), "");
    }
}

#[tokio::test]
async fn behind_a_proxy_that_is_not_trusted_no_address_is_limited() {
    let settings = api::Settings { rate_limits: Some(RateLimits { auth: per_minute(1), ..limits() }), ..api::Settings::default() };
    let app = TestApp::builder().api(settings).start().await;
    let unknown = credentials("nobody@example.com", PASSWORD);
    for n in 0..4 {
        log_in(&app, &format!("192.0.2.{n}"), &unknown).await.expect(401);
    }
    // Without a proxy, the peer is the client.
    app.stranger().post("/api/auth/login", &unknown).await.expect(401);
    app.stranger().post("/api/auth/login", &unknown).await.expect_error(429, "rate_limited");
}

#[tokio::test]
async fn users_are_limited_by_class_and_tenants_in_sum() {
    let app =
        with_limits(RateLimits { read: per_minute(6), write: per_minute(4), upload: per_minute(2), tenant: per_minute(9), ..limits() });
    let app = app.start().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let acme = alice.creates_tenant("Acme").await;
    alice.invites(&bob, &acme, "user").await;
    let documents = format!("/api/tenants/{acme}/documents");
    // Two writes are left, and they do not count as uploads.
    for _ in 0..2 {
        alice.uploads(&acme, "a.txt", "a").await.expect(201);
    }
    alice.uploads(&acme, "a.txt", "a").await.expect_error(429, "rate_limited");
    let read = alice.get(&documents).await.expect(200);
    assert_eq!(read.header("ratelimit-policy"), "\"read\";q=6;w=60, \"tenant\";q=9;w=60");
    for _ in 0..5 {
        alice.get("/api/users/me").await.expect(200);
    }
    alice.get("/api/users/me").await.expect_error(429, "rate_limited");
    alice.put("/api/users/me", &json!({ "first_name": "Alice" })).await.expect(200);
    // Bob has limits of his own, but shares the tenant's.
    let shared: Vec<_> = join_all((0..6).map(|_| bob.get(&documents))).await;
    let counts = statuses(&shared);
    assert!(counts[&200] >= 3 && counts[&429] >= 1, "{counts:?}");
    bob.put("/api/users/me", &json!({ "first_name": "Bob" })).await.expect(200);
}

#[tokio::test]
async fn a_stranger_does_not_use_up_the_limit_of_a_tenant() {
    let app = with_limits(RateLimits { tenant: per_minute(5), ..limits() }).start().await;
    let (alice, mallory) = (app.user("alice").await, app.user("mallory").await);
    let acme = alice.creates_tenant("Acme").await;
    let path = format!("/api/tenants/{acme}/documents");
    for _ in 0..10 {
        mallory.get(&path).await.expect_error(404, "tenant_not_found");
    }
    for _ in 0..5 {
        alice.get(&path).await.expect(200);
    }
    alice.get(&path).await.expect_error(429, "rate_limited");
}

#[tokio::test]
async fn registration_can_be_closed() {
    let app = TestApp::builder().settings(|settings| settings.registration = RegistrationPolicy::Closed).start().await;
    let registration = json!({ "email": "ada@example.com", "password": PASSWORD, "first_name": "Ada", "last_name": "Lovelace" });
    app.stranger().post("/api/auth/register", &registration).await.expect_error(403, "registration_closed");
    app.stranger().post("/api/auth/login", &credentials("ada@example.com", PASSWORD)).await.expect(401);
}

#[tokio::test]
async fn a_user_creates_a_limited_number_of_tenants() {
    let app = TestApp::builder().settings(|settings| settings.tenants_per_user = 3).start().await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let created = join_all((0..8).map(|n| {
        let alice = &alice;
        async move { alice.post("/api/tenants", &json!({ "name": format!("Tenant {n}") })).await }
    }));
    let created = created.await;
    assert_eq!(statuses(&created), BTreeMap::from([(201, 3), (403, 5)]));
    let refused = created.iter().find(|reply| reply.status == StatusCode::FORBIDDEN).unwrap();
    assert_eq!((refused.code(), &refused.json["error"]["details"]["limit"]), ("too_many_tenants", &json!(3)));
    // Neither an inactive tenant counts, nor one that another user created.
    let first = created.iter().find(|reply| reply.status == StatusCode::CREATED).unwrap().id();
    alice.delete(&format!("/api/tenants/{first}")).await.expect(200);
    let theirs = bob.creates_tenant("Theirs").await;
    bob.invites(&alice, &theirs, "admin").await;
    alice.post("/api/tenants", &json!({ "name": "Again" })).await.expect(201);
    alice.post("/api/tenants", &json!({ "name": "Too many" })).await.expect_error(403, "too_many_tenants");
}
