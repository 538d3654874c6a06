//! Documents.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use api::TrustedProxies;
use futures_util::{StreamExt, stream};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use testkit::{Persona, Reply, TestApp};

async fn alice_in_acme(app: &TestApp) -> (Persona, String) {
    let alice = app.user("alice").await;
    let acme = alice.creates_tenant("Acme").await;
    (alice, acme)
}

#[tokio::test]
async fn an_uploaded_document_can_be_downloaded() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let uploaded = alice.uploads(&acme, "hello.txt", b"hello, world").await.expect(201);
    let document = uploaded.data();
    assert_eq!((&document["filename"], &document["mime_type"]), (&json!("hello.txt"), &json!("text/plain")));
    assert_eq!(document["deduplicated"], false);
    assert_eq!(document["user_id"], alice.id.as_str());
    assert_eq!(document["file_id"], document["file"]["id"]);
    assert_eq!(document["file"]["file_size"], 12);
    assert_eq!(document["file"]["md5_hash"], "e4d7f1b4ed2e42d15898f4b27b019da4");
    assert_eq!(document["file"]["sha256"], "09ca7e4eaa6e8ae9c7d261167129184883644d07dfba7cbfbc4c8a2e08360d5b");
    let key = format!("tenants/{acme}/files/e4/d7/e4d7f1b4ed2e42d15898f4b27b019da4_{}", document["file_id"].as_str().unwrap());
    assert_eq!(document["file"]["s3_path"], key);

    let found = alice.get(&format!("/api/tenants/{acme}/documents/{}", uploaded.id())).await.expect(200);
    let mut expected = document.clone();
    expected.as_object_mut().unwrap().remove("deduplicated");
    assert_eq!(*found.data(), expected);
    assert_eq!(alice.downloads(&acme, &uploaded.id()).await, b"hello, world");
}

#[tokio::test]
async fn content_of_any_size_is_preserved() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    // Around the boundaries of the spool's memory and chunks.
    for size in [1, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 1_000_000, 5_000_000] {
        let content: Vec<u8> = (0..=250).cycle().step_by(31).take(size).collect();
        let uploaded = alice.uploads(&acme, &format!("{size}.bin"), content.clone()).await.expect(201);
        assert_eq!(uploaded.data()["file"]["file_size"], size);
        assert!(alice.downloads(&acme, &uploaded.id()).await == content, "{size} bytes were changed");
    }
}

#[tokio::test]
async fn identical_content_is_stored_once_per_tenant() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let first = alice.uploads(&acme, "a.txt", b"same").await.expect(201);
    let second = alice.uploads(&acme, "b.txt", b"same").await.expect(201);
    assert_eq!(second.data()["deduplicated"], true);
    assert_eq!(second.data()["file_id"], first.data()["file_id"]);
    assert_ne!(second.id(), first.id());

    let other = alice.creates_tenant("Other").await;
    let third = alice.uploads(&other, "c.txt", b"same").await.expect(201);
    assert_eq!(third.data()["deduplicated"], false);
    assert_ne!(third.data()["file_id"], first.data()["file_id"]);
}

#[tokio::test]
async fn form_fields_come_in_any_order_and_override_the_files_part() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let file = || Part::bytes(b"{}".to_vec()).file_name("x.bin");
    let named = Form::new().part("file", file()).text("filename", " Bericht Ü.json ").text("mime_type", "Application/JSON");
    let uploaded = alice.uploads_form(&acme, named).await.expect(201);
    assert_eq!((&uploaded.data()["filename"], &uploaded.data()["mime_type"]), (&json!("Bericht Ü.json"), &json!("application/json")));
    let before = Form::new().text("filename", "y.json").part("file", file());
    let uploaded = alice.uploads_form(&acme, before).await.expect(201);
    assert_eq!((&uploaded.data()["filename"], &uploaded.data()["mime_type"]), (&json!("y.json"), &json!("application/octet-stream")));
    let typed = Form::new().part("file", file().mime_str("text/html; charset=utf-8").unwrap());
    assert_eq!(alice.uploads_form(&acme, typed).await.expect(201).data()["mime_type"], "text/html");
    // What Uppy's XHR uploader adds, before and after the file.
    let more = Form::new().text("relativePath", "null").text("name", "x.bin").part("file", file()).text("type", "text/plain");
    let uploaded = alice.uploads_form(&acme, more.text("owner", "x".repeat(5000))).await.expect(201);
    assert_eq!((&uploaded.data()["filename"], &uploaded.data()["mime_type"]), (&json!("x.bin"), &json!("application/octet-stream")));
}

/// The bytes of a form with one file, as a client writes its part's header section.
fn raw_form(head: &str) -> String {
    format!("--b\r\n{head}\r\n\r\ncontent\r\n--b--\r\n")
}

#[tokio::test]
async fn names_are_understood_as_clients_write_them() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let path = format!("/api/tenants/{acme}/documents");
    let send = |content_type: &'static str, head: &str| {
        Reply::to(alice.request(Method::POST, &path).header("content-type", content_type).body(raw_form(head)))
    };
    for head in [
        r#"Content-Disposition: form-data; name="file"; filename="a %22b%22.txt""#,
        r#"Content-Disposition: form-data; name="file"; filename="a \"b\".txt""#,
        r#"Content-Disposition: form-data; filename*=utf-8''a%20%22b%22.txt; name=file"#,
        r#"content-disposition:form-data;NAME="file";FILENAME="a %22b%22.txt""#,
    ] {
        let uploaded = send("Multipart/Form-Data; Boundary=\"b\"", head).await.expect(201);
        assert_eq!(uploaded.data()["filename"], "a \"b\".txt", "{head}");
    }
    let evil = r#"Content-Disposition: form-data; name="file"; filename="x; name=filename""#;
    assert_eq!(send("multipart/form-data; boundary=b", evil).await.expect(201).data()["filename"], "x; name=filename");
    let lines = "Content-Disposition: form-data; name=\"file\"; filename=\"a%0D%0Ab\"";
    send("multipart/form-data; boundary=b", lines).await.expect_error(400, "validation_failed");
    for twice in ["multipart/form-data; boundary=b; boundary=c", "multipart/form-data; boundary="] {
        send(twice, evil).await.expect_error(400, "malformed_request");
    }
    send("multipart/form-dataset; boundary=b", evil).await.expect_error(415, "unsupported_media_type");
}

/// Seeded fault: `MAX_HEAD_BYTES` or `MAX_PREAMBLE_BYTES` at 100 MiB. Failure: the form is read to its end.
#[tokio::test]
async fn what_is_neither_field_nor_file_is_bounded() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let path = format!("/api/tenants/{acme}/documents");
    let sent = Arc::new(AtomicUsize::new(0));
    for start in ["--b\r\nX-Endless: ", "--b\r\nContent-Disposition: form-data; name=\"", "", "--b"] {
        sent.store(0, Ordering::Relaxed);
        let counter = Arc::clone(&sent);
        let endless = stream::iter((0..1600).map(move |n| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(if n == 0 { start.to_owned() + " " } else { " ".repeat(64 * 1024) })
        }));
        let request = alice.request(Method::POST, &path).header("content-type", "multipart/form-data; boundary=b");
        Reply::to(request.body(reqwest::Body::wrap_stream(endless))).await.expect_error(400, "malformed_request");
        // What the buffers between client and server hold.
        assert!(sent.load(Ordering::Relaxed) < 400, "{start:?}: {} chunks of 64 KiB were read", sent.load(Ordering::Relaxed));
    }
}

#[tokio::test]
async fn names_are_found_however_they_are_typed() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    for name in ["Gro\u{308}ße.pdf", "Straße.txt", "İstanbul.txt", "ｆｕｌｌ.txt", "100%_sure!.txt"] {
        alice.uploads(&acme, name, name.to_owned()).await.expect(201);
    }
    let find = async |text: &str| {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("filename", text).finish();
        let found = alice.get(&format!("/api/tenants/{acme}/documents?{query}")).await.expect(200);
        found.items().iter().map(|item| item["filename"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (text, name) in [
        ("Größe", "Gro\u{308}ße.pdf"),
        ("gro\u{308}sse", "Gro\u{308}ße.pdf"),
        ("STRASSE", "Straße.txt"),
        ("istanbul", "İstanbul.txt"),
        ("İSTANBUL", "İstanbul.txt"),
        ("full", "ｆｕｌｌ.txt"),
        ("FULL", "ｆｕｌｌ.txt"),
        ("%_S", "100%_sure!.txt"),
        ("e!", "100%_sure!.txt"),
    ] {
        assert_eq!(find(text).await, [name], "{text}");
    }
    assert_eq!(find("Grosze").await, Vec::<String>::new());

    // What a program stored that knows no search keys: found by its lower case, and as all others after a collection.
    let tenant = app.services().operator.list_all_tenants().await.unwrap().remove(0);
    let (_, directory) = app.databases().open();
    let database = directory.open(&tenant.location).unwrap();
    let mut tx = database.begin().await.unwrap();
    let renamed = "UPDATE documents SET filename = 'MASSE.txt', filename_folded = 'masse.txt' WHERE filename = 'Straße.txt'";
    assert_eq!(tx.execute(renamed, Vec::new()).await.unwrap(), 1);
    let unknown = "UPDATE documents SET filename_key = NULL, filename_keyed = NULL WHERE filename LIKE 'Gro%'";
    assert_eq!(tx.execute(unknown, Vec::new()).await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert_eq!(find("strasse").await, Vec::<String>::new(), "the former name is found");
    assert_eq!(find("masse").await, ["MASSE.txt"]);
    assert_eq!(find("ße").await, ["Gro\u{308}ße.pdf"]);
    assert_eq!(find("größe").await, Vec::<String>::new());
    app.services().operator.collect_garbage(&tenant).await.unwrap();
    assert_eq!(find("maße").await, ["MASSE.txt"]);
    assert_eq!(find("größe").await, ["Gro\u{308}ße.pdf"]);
}

/// Names that older rules accepted can still be read, downloaded and renamed.
#[tokio::test]
async fn stored_names_that_are_refused_today_stay_usable() {
    let app = TestApp::builder().trash_retention(std::time::Duration::from_secs(3600)).start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let document = alice.uploads(&acme, "a.txt", "content").await.expect(201).id();
    let tenant = app.services().operator.list_all_tenants().await.unwrap().remove(0);
    let database = app.databases().open().1.open(&tenant.location).unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.execute("UPDATE documents SET filename = '\u{202e}gpj.exe', filename_folded = '\u{202e}gpj.exe'", Vec::new()).await.unwrap();
    tx.commit().await.unwrap();
    let path = format!("/api/tenants/{acme}/documents/{document}");
    assert_eq!(alice.get(&path).await.expect(200).data()["filename"], "\u{202e}gpj.exe");
    assert_eq!(alice.downloads(&acme, &document).await, b"content");
    alice.put(&path, &json!({ "mime_type": "text/csv" })).await.expect(200);
    alice.delete(&path).await.expect(200);
    assert_eq!(alice.get(&format!("/api/tenants/{acme}/documents/trash")).await.items().len(), 1);
    alice.post(&format!("/api/tenants/{acme}/documents/trash/{document}/restore"), &json!({})).await.expect(200);
    alice.put(&path, &json!({ "filename": "\u{202e}gpj.exe" })).await.expect_error(400, "validation_failed");
    alice.put(&path, &json!({ "filename": "exe.jpg" })).await.expect(200);
}

#[tokio::test]
async fn bad_forms_are_rejected() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let file = |name: &str| Part::bytes(b"x".to_vec()).file_name(name.to_owned());
    let cases = [
        (Form::new().text("filename", "a.txt"), "file"),
        (Form::new().part("file", Part::bytes(b"".to_vec()).file_name("a.txt")), "file"),
        (Form::new().part("file", file("a")).part("file", file("b")), "file"),
        (Form::new().part("file", file("a/b.txt")), "filename"),
        (Form::new().part("file", file("..\\b.txt")), "filename"),
        (Form::new().part("file", file("..")), "filename"),
        (Form::new().part("file", file("a")).text("filename", ""), "filename"),
        (Form::new().part("file", file("a")).text("filename", "x".repeat(256)), "filename"),
        (Form::new().part("file", file("a")).text("filename", "x".repeat(2000)), "filename"),
        (Form::new().part("file", file("a")).text("filename", "a\u{0}b"), "filename"),
        (Form::new().part("file", file("a")).part("filename", Part::bytes(vec![0xff])), "filename"),
        (Form::new().part("file", Part::bytes(b"x".to_vec())), "filename"),
        (Form::new().part("file", file("a")).text("mime_type", "text"), "mime_type"),
        (Form::new().part("file", file("\u{202e}gpj.exe")), "filename"),
        (Form::new().part("file", file("a\u{2066}b")), "filename"),
        (Form::new().part("file", file("\u{200b}")), "filename"),
    ];
    for (n, (form, field)) in cases.into_iter().enumerate() {
        let reply = alice.uploads_form(&acme, form).await;
        assert_eq!(reply.status, 400, "case {n} ({field}): {}", reply.json);
        assert!(reply.json["error"]["details"][field].is_array(), "case {n} ({field}): {}", reply.json);
    }
    let path = format!("/api/tenants/{acme}/documents");
    let send = |content_type: &'static str, body: &'static str| {
        Reply::to(alice.request(Method::POST, &path).header("content-type", content_type).body(body))
    };
    send("application/json", "{}").await.expect_error(415, "unsupported_media_type");
    send("multipart/form-data", "x").await.expect_error(400, "malformed_request");
    send("multipart/form-data; boundary=b", "nonsense").await.expect_error(400, "malformed_request");
    let cut_off = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nhal";
    send("multipart/form-data; boundary=b", cut_off).await.expect_error(400, "malformed_request");
    assert_eq!(alice.get(&path).await.data()["pagination"]["total"], 0);
}

#[tokio::test]
async fn the_upload_limit_is_exact() {
    let app = TestApp::builder().max_upload_bytes(100_000).start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    alice.uploads(&acme, "fits", vec![1; 100_000]).await.expect(201);
    let refused = alice.uploads(&acme, "does not", vec![2; 100_001]).await.expect_error(413, "payload_too_large");
    assert_eq!(refused.json["error"]["details"]["max_bytes"], 100_000);
    // Nor may a field that is ignored be larger.
    let padded = Form::new().text("padding", "x".repeat(200_000)).part("file", Part::bytes(vec![3; 10]).file_name("small"));
    alice.uploads_form(&acme, padded).await.expect_error(413, "payload_too_large");
    let chunks = stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 10_000])));
    let endless =
        alice.request(Method::POST, &format!("/api/tenants/{acme}/documents")).header("content-type", "multipart/form-data; boundary=b");
    let start = stream::iter([Ok(b"--b\r\nContent-Disposition: form-data; name=\"padding\"\r\n\r\n".to_vec())]);
    Reply::to(endless.body(reqwest::Body::wrap_stream(start.chain(chunks)))).await.expect_error(413, "payload_too_large");
    assert_eq!(alice.get(&format!("/api/tenants/{acme}/files")).await.data()["pagination"]["total"], 1);
}

#[tokio::test]
async fn a_list_is_newest_first_and_filtered() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let bob = app.user("bob").await;
    alice.invites(&bob, &acme, "user").await;
    for name in ["Report 100%.txt", "report_final.txt", "Übersicht.txt"] {
        alice.uploads(&acme, name, name.as_bytes()).await.expect(201);
    }
    let pdf = Form::new().part("file", Part::bytes(b"%PDF".to_vec()).file_name("REPORT.pdf").mime_str("application/pdf").unwrap());
    bob.uploads_form(&acme, pdf).await.expect(201);

    let names = async |query: &str| -> Vec<String> {
        let reply = alice.get(&format!("/api/tenants/{acme}/documents?{query}")).await.expect(200);
        assert_eq!(reply.data()["pagination"]["total"], reply.items().len());
        reply.items().iter().map(|item| item["filename"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("").await, ["REPORT.pdf", "Übersicht.txt", "report_final.txt", "Report 100%.txt"]);
    assert_eq!(names("filename=rEpOrT").await, ["REPORT.pdf", "report_final.txt", "Report 100%.txt"]);
    assert_eq!(names("filename=%C3%BCBER").await, ["Übersicht.txt"]);
    assert_eq!(names("filename=100%25").await, ["Report 100%.txt"]);
    assert_eq!(names("filename=t_f").await, ["report_final.txt"]);
    assert_eq!(names("filename=!").await, Vec::<String>::new());
    assert_eq!(names("mime_type=APPLICATION/pdf").await, ["REPORT.pdf"]);
    assert_eq!(names(&format!("user_id={}&filename=report", alice.id)).await, ["report_final.txt", "Report 100%.txt"]);
    for query in ["user_id=x", "mime_type=pdf", "filename=%00", "owner=x", "page=0"] {
        alice.get(&format!("/api/tenants/{acme}/documents?{query}")).await.expect_error(400, "validation_failed");
    }
    let page = alice.get(&format!("/api/tenants/{acme}/documents?per_page=3&page=2")).await.expect(200);
    assert_eq!(page.items()[0]["filename"], "Report 100%.txt");
    assert_eq!(page.data()["pagination"], json!({ "page": 2, "per_page": 3, "total": 4, "pages": 2 }));
}

#[tokio::test]
async fn owners_and_admins_update_documents() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let (bob, carol) = (app.user("bob").await, app.user("carol").await);
    alice.invites(&bob, &acme, "user").await;
    alice.invites(&carol, &acme, "user").await;
    let document = bob.uploads(&acme, "draft.txt", b"draft").await.expect(201).id();
    let path = format!("/api/tenants/{acme}/documents/{document}");

    let changed = bob.put(&path, &json!({ "filename": "final.txt" })).await.expect(200);
    assert_eq!((&changed.data()["filename"], &changed.data()["mime_type"]), (&json!("final.txt"), &json!("text/plain")));
    let changed = alice.put(&path, &json!({ "mime_type": "text/markdown" })).await.expect(200);
    assert_eq!((&changed.data()["filename"], &changed.data()["mime_type"]), (&json!("final.txt"), &json!("text/markdown")));
    carol.put(&path, &json!({ "filename": "mine.txt" })).await.expect_error(403, "not_owner");
    carol.delete(&path).await.expect_error(403, "not_owner");
    for body in [json!({ "filename": "a/b" }), json!({ "mime_type": "x" }), json!({ "user_id": carol.id }), json!({ "filename": null })] {
        bob.put(&path, &body).await.expect_error(400, "validation_failed");
    }
    let found = alice.get(&format!("/api/tenants/{acme}/documents?filename=FINAL")).await;
    assert_eq!(found.items().len(), 1);

    bob.delete(&path).await.expect(200);
    for reply in
        [bob.get(&path).await, bob.delete(&path).await, bob.put(&path, &json!({})).await, bob.get(&format!("{path}/download")).await]
    {
        reply.expect_error(404, "document_not_found");
    }
}

#[tokio::test]
async fn urls_are_those_at_which_clients_reach_the_api() {
    let trusted_proxies = TrustedProxies::parse(["127.0.0.1"].into_iter()).unwrap();
    let trusting = api::Settings { trusted_proxies, ..api::Settings::default() };
    for (settings, https) in [(trusting, true), (api::Settings::default(), false)] {
        let app = TestApp::builder().api(settings).objects_as_files().start().await;
        let (alice, acme) = alice_in_acme(&app).await;
        let document = alice.uploads(&acme, "a.txt", "a").await.expect(201).id();
        let path = format!("/api/tenants/{acme}/documents/{document}/download?redirect=false");
        let url = async |headers: &[(&'static str, &'static str)]| {
            let request = headers.iter().fold(alice.request(Method::GET, &path), |request, (name, value)| request.header(*name, *value));
            Reply::to(request).await.expect(200).data()["url"].as_str().unwrap().split("/api/").next().unwrap().to_owned()
        };
        let direct = format!("http://{}", app.address());
        assert_eq!(url(&[]).await, direct);
        let forwarded = url(&[("x-forwarded-proto", "https"), ("x-forwarded-host", "files.example.com")]).await;
        assert_eq!(forwarded, if https { "https://files.example.com" } else { &direct });
        // What is no scheme or host is not believed.
        let odd = url(&[("x-forwarded-proto", "javascript"), ("x-forwarded-host", "evil.example/path?")]).await;
        assert_eq!(odd, direct);
    }
}

#[tokio::test]
async fn every_request_for_a_document_obeys_its_preconditions() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let uploaded = alice.uploads(&acme, "a.txt", "a").await.expect(201);
    let (path, etag) = (format!("/api/tenants/{acme}/documents/{}", uploaded.id()), uploaded.header("etag").to_owned());
    let send = |method: Method, path: String, name: &'static str, value: &str| {
        let request = alice.request(method.clone(), &path).header(name, value);
        let request = match (method.as_str(), path.ends_with("/content")) {
            ("PUT", false) => request.json(&json!({ "filename": "b.txt" })),
            ("PUT", true) => request.body("b"),
            _ => request,
        };
        Reply::to(request)
    };
    for method in [Method::GET, Method::HEAD] {
        for matching in [&*etag, "*", &*format!("W/{etag}"), &*format!("\"x\", {etag}")] {
            let unchanged = send(method.clone(), path.clone(), "if-none-match", matching).await.expect(304);
            assert_eq!((unchanged.header("etag"), unchanged.bytes.len()), (&*etag, 0));
        }
        let changed = send(method.clone(), path.clone(), "if-none-match", "\"x\"").await.expect(200);
        assert_eq!(changed.header("etag"), etag);
        send(method.clone(), path.clone(), "if-match", &etag).await.expect(200);
        send(method, path.clone(), "if-match", "\"x\"").await.expect(412);
    }
    let content = format!("{path}/content");
    for (method, path) in [(Method::PUT, path.clone()), (Method::PUT, content.clone()), (Method::DELETE, path.clone())] {
        for (name, value) in [("if-none-match", "*"), ("if-none-match", &*etag), ("if-match", "\"x\"")] {
            send(method.clone(), path.clone(), name, value).await.expect_error(412, "precondition_failed");
        }
    }
    assert_eq!(alice.get(&path).await.expect(200).header("etag"), etag, "a refused request changed the document");
    // A condition that holds.
    let renamed = send(Method::PUT, path.clone(), "if-none-match", "\"x\"").await.expect(200).header("etag").to_owned();
    let replaced = send(Method::PUT, content, "if-match", &renamed).await.expect(200).header("etag").to_owned();
    send(Method::DELETE, path, "if-match", &replaced).await.expect(200);
}

#[tokio::test]
async fn a_download_redirects_to_a_signed_url() {
    let app = TestApp::builder().objects_as_files().start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let document = alice.uploads(&acme, "Schöne \"Grüße\".txt", b"0123456789").await.expect(201).id();
    let path = format!("/api/tenants/{acme}/documents/{document}/download");
    let redirect = alice.get(&path).await.expect(302);
    let url = redirect.header("location").to_owned();
    assert!(url.starts_with(&format!("/api/objects/tenants/{acme}/files/")), "{url}");
    let answered = alice.get(&format!("{path}?redirect=false")).await.expect(200);
    assert_eq!(answered.data()["url"].as_str().unwrap(), format!("http://{}{url}", app.address()));

    let stranger = app.stranger();
    let whole = stranger.get(&url).await.expect(200);
    assert_eq!(whole.bytes, b"0123456789");
    assert_eq!(whole.header("content-type"), "text/plain");
    assert_eq!(whole.header("content-length"), "10");
    assert_eq!(whole.header("x-content-type-options"), "nosniff");
    let disposition = whole.header("content-disposition").to_owned();
    assert!(disposition.starts_with("inline; filename=\"") && disposition.contains("filename*=UTF-8''Sch%C3%B6ne"), "{disposition}");
    let etag = whole.header("etag").to_owned();

    let with = |name: &'static str, value: String| Reply::to(stranger.request(Method::GET, &url).header(name, value));
    let part = with("range", "bytes=2-4".into()).await.expect(206);
    assert_eq!((part.bytes.as_slice(), part.header("content-range")), (b"234" as &[u8], "bytes 2-4/10"));
    assert_eq!(with("range", "bytes=-3".into()).await.expect(206).bytes, b"789");
    assert_eq!(with("range", "bytes=10-".into()).await.expect_error(416, "range_not_satisfiable").header("content-range"), "bytes */10");
    assert_eq!(with("range", "bytes=0-1,3-4".into()).await.expect(200).bytes, b"0123456789");
    with("if-none-match", etag.clone()).await.expect(304);
    with("if-match", "\"other\"".into()).await.expect_error(412, "precondition_failed");
    let head = Reply::to(stranger.request(Method::HEAD, &url)).await.expect(200);
    assert_eq!((head.bytes.len(), head.header("content-length")), (0, "10"));
    for range in ["bytes=2-4", "bytes=10-"] {
        let head = Reply::to(stranger.request(Method::HEAD, &url).header("range", range)).await.expect(200);
        assert_eq!((head.header("content-length"), head.header("content-range")), ("10", ""), "Range is for GET only");
    }

    for (changed, from, to) in [
        ("the key", "/files/", "/files/../"),
        ("the type", "text%2Fplain", "text%2Fhtml"),
        ("the disposition", "inline", "attachment"),
        ("the expiry", "expires=", "expires=1"),
        ("the signature", "signature=", "signature=0"),
    ] {
        let reply = stranger.get(&url.replacen(from, to, 1)).await;
        assert!(matches!(reply.status.as_u16(), 403 | 404), "{changed}: {}", reply.status);
    }
    stranger.get(url.split("&signature").next().unwrap()).await.expect_error(400, "validation_failed");

    app.clock().advance(std::time::Duration::from_secs(3601));
    stranger.get(&url).await.expect_error(403, "invalid_signature");
}

#[tokio::test]
async fn active_content_is_sent_as_an_attachment() {
    let app = TestApp::builder().objects_as_files().start().await;
    let (alice, acme) = alice_in_acme(&app).await;
    for (mime_type, disposition) in
        [("text/html", "attachment"), ("image/svg+xml", "attachment"), ("application/pdf", "inline"), ("image/png", "inline")]
    {
        let part = Part::bytes(mime_type.as_bytes().to_vec()).file_name("x").mime_str(mime_type).unwrap();
        let document = alice.uploads_form(&acme, Form::new().part("file", part)).await.expect(201).id();
        let url = alice.get(&format!("/api/tenants/{acme}/documents/{document}/download")).await.header("location").to_owned();
        let object = app.stranger().get(&url).await.expect(200);
        assert!(object.header("content-disposition").starts_with(disposition), "{mime_type}");
        assert_eq!(object.header("content-security-policy"), "default-src 'none'; sandbox; frame-ancestors 'none'");
    }
}

#[tokio::test]
async fn deleting_a_document_deletes_its_file_only_if_unused() {
    let app = TestApp::new().await;
    let (alice, acme) = alice_in_acme(&app).await;
    let first = alice.uploads(&acme, "a.txt", b"shared").await.expect(201).id();
    let second = alice.uploads(&acme, "b.txt", b"shared").await.expect(201).id();
    let collect = async || {
        let tenants = app.services().operator.list_all_tenants().await.unwrap();
        app.services().operator.collect_garbage(&tenants[0]).await.unwrap().files
    };
    alice.delete(&format!("/api/tenants/{acme}/documents/{first}")).await.expect(200);
    assert_eq!(collect().await, 0);
    assert_eq!(alice.downloads(&acme, &second).await, b"shared");
    alice.delete(&format!("/api/tenants/{acme}/documents/{second}")).await.expect(200);
    assert_eq!(collect().await, 1);
    assert_eq!(alice.get(&format!("/api/tenants/{acme}/files")).await.items(), &[] as &[Value]);
    let again = alice.uploads(&acme, "c.txt", b"shared").await.expect(201);
    assert_eq!(again.data()["deduplicated"], false);
}
