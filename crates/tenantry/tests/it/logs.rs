//! The content of the log, and what it must not contain.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};
use testkit::Reply;

use crate::process::Home;

/// Handles every kind of secret at the most verbose level.
#[tokio::test]
async fn no_secret_is_ever_logged() {
    let home = Home::new();
    let mut server = home.serve_with(&[("LOG_LEVEL", "trace"), ("LOG_FORMAT", "json")]).await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let document = alice.uploads(&tenant, "secret plans.txt", b"the content of a document").await.expect(201).id();
    let download = alice.get(&format!("/api/tenants/{tenant}/documents/{document}/download")).await.expect(302);
    let url = download.header("location").to_owned();
    server.stranger().get(&url).await.expect(200);
    server.stranger().get(&format!("{url}0")).await.expect(403);
    let (access_token, refresh_token) = (alice.access_token.clone().unwrap(), alice.refresh_token.clone().unwrap());
    alice.post("/api/auth/login", &json!({ "email": alice.email, "password": "a wrong password 1" })).await.expect(401);
    server.stranger().post("/api/auth/refresh", &json!({ "refresh_token": refresh_token })).await.expect(200);
    alice.with_token(format!("{access_token}x")).get("/api/users/me").await.expect(401);
    let marked = Reply::to(alice.request(Method::GET, "/api/users/me").header("x-request-id", "marked")).await;
    marked.expect(200);

    let log = server.wait_for("the last request", |log| log.lines().any(|line| line.contains("answered") && line.contains("marked"))).await;
    let secret = fs::read_to_string(home.path().join("jwt_secret")).unwrap();
    let signature = url.rsplit_once("ignature=").unwrap().1;
    let tail = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    for (what, secret) in [
        ("the password", "correct horse 1".to_owned()),
        ("a wrong password", "a wrong password 1".to_owned()),
        ("the access token", tail(&access_token)),
        ("the refresh token", tail(&refresh_token)),
        ("the signature of a download", signature.to_owned()),
        ("the server's secret", secret.trim().to_owned()),
        ("a password's hash", "$argon2id$".to_owned()),
        ("a document's content", "the content of a document".to_owned()),
    ] {
        assert!(!secret.is_empty() && !log.contains(&secret), "the log contains {what}");
    }

    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered =
        lines.iter().find(|line| line["message"] == "answered" && line["span"]["id"] == "marked" || line["spans"][0]["id"] == "marked");
    let answered = answered.expect("every request has a line with its id");
    assert_eq!((&answered["method"], &answered["route"], &answered["status"]), (&json!("GET"), &json!("/api/users/me"), &json!(200)));
}
