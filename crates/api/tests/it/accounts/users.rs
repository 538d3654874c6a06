//! Registration, login and profiles.

use api::Origins;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{Reply, TestApp};

fn ada() -> Value {
    json!({ "email": "Ada@Example.com", "password": "correct horse 1", "first_name": " Ada ", "last_name": "Lovelace" })
}

#[tokio::test]
async fn login_ignores_the_case_of_the_address() {
    let app = TestApp::new().await;
    let stranger = app.stranger();

    let registered = stranger.post("/api/auth/register", &ada()).await.expect(201);
    assert_eq!(registered.json["message"], "User registered");
    assert_eq!(registered.data()["email"], "ada@example.com");
    assert_eq!(registered.data()["first_name"], "Ada");
    assert_eq!(registered.data()["created_by"], Value::Null);
    assert!(registered.data().get("password").is_none() && registered.data().get("password_hash").is_none());

    let credentials = json!({ "email": " aDa@example.COM", "password": "correct horse 1" });
    let login = stranger.post("/api/auth/login", &credentials).await.expect(200);
    assert_eq!(login.data()["token_type"], "Bearer");
    assert_eq!(login.data()["expires_in"], 900);
    assert_eq!(login.data()["user"]["id"], registered.data()["id"]);
    assert_eq!(login.data()["tenants"], json!([]));

    let ada = stranger.with_token(login.data()["access_token"].as_str().unwrap());
    assert_eq!(ada.get("/api/users/me").await.expect(200).data(), registered.data());
}

#[tokio::test]
async fn an_address_is_unique_ignoring_case() {
    let app = TestApp::new().await;
    app.stranger().post("/api/auth/register", &ada()).await.expect(201);
    let mut again = ada();
    again["email"] = json!("ADA@example.com ");
    app.stranger().post("/api/auth/register", &again).await.expect_error(409, "email_taken");
}

#[tokio::test]
async fn all_invalid_fields_are_reported_at_once() {
    let app = TestApp::new().await;
    let reply = app
        .stranger()
        .post("/api/auth/register", &json!({ "email": "ada", "password": "short", "first_name": "  " }))
        .await
        .expect_error(400, "validation_failed");
    assert_eq!(reply.problems("email"), r#"["must be an e-mail address"]"#);
    assert_eq!(reply.problems("password"), r#"["must be at least 8 characters"]"#);
    assert_eq!(reply.problems("first_name"), r#"["must not be empty"]"#);
    assert_eq!(reply.problems("last_name"), r#"["is required"]"#);
}

#[tokio::test]
async fn fields_at_their_limits() {
    let app = TestApp::new().await;
    let cases: [(&str, String, u16); 12] = [
        ("first_name", "x".repeat(100), 201),
        ("first_name", "x".repeat(101), 400),
        ("first_name", "ü".repeat(100), 201),
        ("last_name", "a\u{0}b".into(), 400),
        ("last_name", "a\u{85}b".into(), 400),
        ("password", format!("a1{}", "ü".repeat(254)), 201),
        ("password", format!("a1{}", "x".repeat(255)), 400),
        ("password", "1234567a".into(), 201),
        ("password", "12345678".into(), 400),
        ("password", "abcdefgh".into(), 400),
        ("email", format!("{}@example.com", "x".repeat(64)), 201),
        ("email", format!("{}@{}.com", "x".repeat(64), "y".repeat(190)), 400),
    ];
    for (n, (field, value, status)) in cases.into_iter().enumerate() {
        let mut body = ada();
        body["email"] = json!(format!("user{n}@example.com"));
        body[field] = json!(value);
        let reply = app.stranger().post("/api/auth/register", &body).await;
        assert_eq!(reply.status, status, "{field}: {value:?}: {}", reply.json);
        if status == 400 {
            assert!(reply.json["error"]["details"][field].is_array(), "{}", reply.json);
        }
    }
}

#[tokio::test]
async fn malformed_json_bodies_are_rejected() {
    let app = TestApp::new().await;
    let send = |content_type: &'static str, body: Vec<u8>| {
        Reply::to(app.stranger().request(Method::POST, "/api/auth/login").header("content-type", content_type).body(body))
    };
    let json = "application/json";
    for body in ["", "{", "{\"email\": \"a@b.c\"} x", "\u{feff}{}", "{'email': 1}"] {
        send(json, body.into()).await.expect_error(400, "malformed_request");
    }
    send(json, vec![b'"', 0xff, 0xfe, b'"']).await.expect(400);
    send(json, b"{\"email\": \"\xff\", \"password\": \"x\"}".to_vec()).await.expect(400);
    for (body, field) in [
        (json!({ "email": 1, "password": "x" }), "email"),
        (json!({ "email": null, "password": "x" }), "email"),
        (json!({ "email": "a@b.c", "password": ["x"] }), "password"),
        (json!({ "email": "a@b.c", "password": "x", "admin": true }), "admin"),
    ] {
        let reply = send(json, body.to_string().into()).await.expect_error(400, "validation_failed");
        assert!(reply.json["error"]["details"][field].is_array(), "{field}: {}", reply.json);
    }
    for body in ["[]", "null", "\"x\"", "1"] {
        send(json, body.into()).await.expect_error(400, "validation_failed");
    }
    send("text/plain", b"{}".to_vec()).await.expect_error(415, "unsupported_media_type");
    send("application/x-www-form-urlencoded", b"email=a".to_vec()).await.expect_error(415, "unsupported_media_type");
    send("application/json; charset=utf-8", b"{}".to_vec()).await.expect_error(400, "validation_failed");
    send(json, format!("{{\"email\": \"{}\"}}", "x".repeat(70_000)).into()).await.expect_error(413, "payload_too_large");
    send(json, b"[".repeat(60_000)).await.expect(400);
}

#[tokio::test]
async fn only_names_can_change_in_a_profile() {
    let app = TestApp::new().await;
    let alice = app.user("alice").await;
    let changed = alice.put("/api/users/me", &json!({ "last_name": "Liddell" })).await.expect(200);
    assert_eq!((&changed.data()["first_name"], &changed.data()["last_name"]), (&json!("alice"), &json!("Liddell")));
    assert!(changed.data()["updated_at"].as_str() > changed.data()["created_at"].as_str());
    alice.put("/api/users/me", &json!({})).await.expect(200);
    for field in ["email", "password", "is_active", "id"] {
        alice.put("/api/users/me", &json!({ field: "x" })).await.expect_error(400, "validation_failed");
    }
    alice.put("/api/users/me", &json!({ "first_name": null })).await.expect_error(400, "validation_failed");
    assert_eq!(alice.get("/api/users/me").await.data()["email"], "alice@example.com");
}

#[tokio::test]
async fn unknown_paths_and_methods_get_the_same_error_form() {
    let app = TestApp::new().await;
    let stranger = app.stranger();
    stranger.get("/nothing").await.expect_error(404, "not_found");
    stranger.get("/api/tenants/").await.expect_error(404, "not_found");
    let refused = stranger.delete("/api/auth/login").await.expect_error(405, "method_not_allowed");
    assert_eq!(refused.header("allow"), "POST");
    stranger.get("/api/users/me").await.expect_error(401, "missing_token");
    let basic = Reply::to(stranger.request(Method::GET, "/api/users/me").basic_auth("a", Some("b"))).await;
    assert_eq!(basic.expect_error(401, "invalid_token").header("www-authenticate"), "Bearer error=\"invalid_token\"");
}

#[tokio::test]
async fn a_valid_request_id_is_kept() {
    let app = TestApp::new().await;
    let ask = |id: &'static [u8]| {
        let id = reqwest::header::HeaderValue::from_bytes(id).unwrap();
        Reply::to(app.stranger().request(Method::GET, "/health").header("x-request-id", id))
    };
    assert_eq!(ask(b"trace-1").await.header("x-request-id"), "trace-1");
    for invalid in [b"" as &[u8], b"two words", b"caf\xe9", &[b'x'; 129]] {
        let invalid: &'static [u8] = invalid.to_vec().leak();
        assert_eq!(ask(invalid).await.header("x-request-id").len(), 36);
    }
}

#[tokio::test]
async fn public_endpoints() {
    let app = TestApp::new().await;
    let stranger = app.stranger();
    for path in ["/health", "/api/auth/health", "/api/users/health", "/api/tenants/health"] {
        assert_eq!(stranger.get(path).await.expect(200).data()["status"], "healthy");
    }
    let ready = stranger.get("/health/ready").await.expect(200);
    assert_eq!(ready.data()["dependencies"], json!({ "database": "up", "object storage": "up", "tenant databases (main)": "up" }));
    assert_eq!(stranger.get("/").await.expect(200).data()["paths"]["documentation"], "/docs");
    assert_eq!(stranger.get("/openapi.json").await.expect(200).json["openapi"], "3.1.0");
    let docs = stranger.get("/docs/").await.expect(200);
    assert!(docs.header("content-type").starts_with("text/html"));
    assert_eq!(stranger.get("/docs").await.header("location"), "docs/");
    for path in ["/health", "/docs/", "/nowhere", "/api/users/me"] {
        let reply = stranger.get(path).await;
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("referrer-policy"), "no-referrer", "{path}");
        assert!(reply.header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
    }
}

#[tokio::test]
async fn documentation_can_be_left_out() {
    let app = TestApp::builder().api(api::Settings { hide_docs: true, ..api::Settings::default() }).start().await;
    for path in ["/docs", "/docs/", "/docs/index.html", "/openapi.json"] {
        app.stranger().get(path).await.expect_error(404, "not_found");
    }
    let paths = app.stranger().get("/").await.expect(200).data()["paths"].clone();
    assert!(paths.get("documentation").is_none() && paths.get("specification").is_none() && paths.get("health").is_some(), "{paths}");
}

#[tokio::test]
async fn browsers_use_tls_only_where_there_is_tls() {
    let header = async |settings: api::Settings, proto: &'static str| {
        let app = TestApp::builder().api(settings).start().await;
        let request = app.stranger().request(Method::GET, "/health").header("x-forwarded-proto", proto);
        Reply::to(request).await.header("strict-transport-security").to_owned()
    };
    let trusted_proxies = api::TrustedProxies::parse(["127.0.0.1"].into_iter()).unwrap();
    let proxied = api::Settings { trusted_proxies, ..api::Settings::default() };
    let public = |url: &str| api::Settings { public_url: Some(url.to_owned()), ..api::Settings::default() };
    assert_eq!(header(proxied.clone(), "https").await, "max-age=31536000");
    assert_eq!(header(proxied, "http").await, "");
    assert_eq!(header(api::Settings::default(), "https").await, "");
    assert_eq!(header(public("https://example.com"), "http").await, "max-age=31536000");
    assert_eq!(header(public("http://example.com"), "https").await, "");
}

#[tokio::test]
async fn everything_is_below_the_path_of_the_public_url() {
    let api = api::Settings { public_url: Some("https://example.com/tenantry".to_owned()), ..api::Settings::default() };
    let app = TestApp::builder().api(api).objects_as_files().start().await;
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    let document = alice.uploads(&acme, "a.txt", "a").await.expect(201).id();
    // Whether the proxy in front removes the path or not.
    for prefix in ["", "/tenantry"] {
        alice.get(&format!("{prefix}/health")).await.expect(200);
        alice.get(&format!("{prefix}/api/tenants/{acme}/documents?per_page=1")).await.expect(200);
        assert_eq!(alice.get(&format!("{prefix}/docs")).await.header("location"), "docs/");
        assert_eq!(alice.get(&format!("{prefix}/openapi.json")).await.expect(200).json["servers"][0]["url"], "./");
        let redirect = alice.get(&format!("{prefix}/api/tenants/{acme}/documents/{document}/download")).await.expect(302);
        let url = redirect.header("location").strip_prefix("https://example.com").unwrap().to_owned();
        assert!(url.starts_with("/tenantry/api/objects/"), "{url}");
        assert_eq!(app.stranger().get(&url).await.expect(200).bytes, b"a");
    }
    alice.get("/tenantry").await.expect(200);
    for other in ["/tenantryx/health", "/other/health", "/tenantry/tenantry/health"] {
        alice.get(other).await.expect_error(404, "not_found");
    }
}

#[tokio::test]
async fn a_password_is_the_same_however_it_is_encoded() {
    let app = TestApp::new().await;
    let registration =
        json!({ "email": "ada@example.com", "password": "p\u{e4}ssw\u{f6}rt 1", "first_name": "Ada", "last_name": "Lovelace" });
    app.stranger().post("/api/auth/register", &registration).await.expect(201);
    let log_in =
        async |password: &str| app.stranger().post("/api/auth/login", &json!({ "email": "ada@example.com", "password": password })).await;
    for password in ["pa\u{308}sswo\u{308}rt 1", "p\u{e4}ssw\u{f6}rt\u{a0}1", "p\u{e4}ssw\u{f6}rt 1"] {
        log_in(password).await.expect(200);
    }
    log_in("P\u{e4}ssw\u{f6}rt 1").await.expect_error(401, "invalid_credentials");
}

#[tokio::test]
async fn browsers_may_call_only_from_allowed_origins() {
    let app = TestApp::builder().cors(Origins::Listed(vec!["https://app.example.com".into()])).start().await;
    let preflight = |origin: &'static str, headers: &'static str| {
        let request = app.stranger().request(Method::OPTIONS, "/api/users/me").header("origin", origin);
        Reply::to(request.header("access-control-request-method", "PUT").header("access-control-request-headers", headers))
    };
    // What Dropzone, pdf.js, tus and tracing libraries add to their requests.
    let added = "authorization,cache-control,x-requested-with,range,if-range,if-none-match,traceparent,tracestate,baggage,upload-offset";
    let allowed = preflight("https://app.example.com", added).await.expect(200);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://app.example.com");
    assert!(allowed.header("access-control-allow-methods").contains("PUT"));
    assert_eq!(allowed.header("access-control-allow-headers"), added);
    assert_eq!(allowed.header("access-control-max-age"), "7200");
    assert_eq!(preflight("https://evil.example.com", "authorization").await.header("access-control-allow-origin"), "");

    let request = app.stranger().request(Method::GET, "/health").header("origin", "https://app.example.com");
    let exposed = Reply::to(request).await.expect(200).header("access-control-expose-headers").to_owned();
    for header in
        ["accept-ranges", "content-disposition", "content-range", "etag", "ratelimit", "ratelimit-policy", "retry-after", "x-request-id"]
    {
        assert!(exposed.split(',').any(|listed| listed.trim() == header), "{header} is not in {exposed}");
    }
}

#[tokio::test]
async fn in_development_pages_on_this_machine_may_call() {
    let app = TestApp::builder().cors(Origins::Loopback).start().await;
    let preflight = |origin: &'static str| {
        let request = app.stranger().request(Method::OPTIONS, "/api/auth/login").header("origin", origin);
        Reply::to(request.header("access-control-request-method", "POST").header("access-control-request-headers", "content-type"))
    };
    let allowed = preflight("http://localhost:5173").await.expect(200);
    assert_eq!(allowed.header("access-control-allow-origin"), "http://localhost:5173");
    assert_eq!(preflight("http://localhost.example.com:5173").await.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn the_specification_is_compressed_and_cacheable() {
    let app = TestApp::new().await;
    let get = |name: &'static str, value: String| Reply::to(app.stranger().request(Method::GET, "/openapi.json").header(name, value));
    let compressed = get("accept-encoding", "gzip".into()).await.expect(200);
    assert_eq!(compressed.header("content-encoding"), "gzip");
    assert!(compressed.header("vary").contains("accept-encoding"));
    let plain = get("accept-encoding", "identity".into()).await.expect(200);
    assert_eq!(plain.header("content-encoding"), "");
    let etag = plain.header("etag").to_owned();
    assert_eq!(compressed.header("etag"), etag);
    let unchanged = get("if-none-match", etag).await.expect(304);
    assert!(unchanged.bytes.is_empty());
    get("if-none-match", "\"other\"".into()).await.expect(200);
}
