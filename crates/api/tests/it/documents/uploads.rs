//! Multipart uploads: direct and tus.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use api::Origins;
use base64::{Engine, engine::general_purpose::STANDARD};
use domain::Quota;
use futures_util::{StreamExt, stream};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use testkit::{Persona, Reply, TestApp};

const DAY: Duration = Duration::from_secs(24 * 3600);

struct World {
    app: TestApp,
    alice: Persona,
    acme: String,
}

impl World {
    async fn new() -> Self {
        Self::of(TestApp::new().await).await
    }

    async fn of(app: TestApp) -> Self {
        let alice = app.user("alice").await;
        let acme = alice.creates_tenant("Acme").await;
        Self { app, alice, acme }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}/documents{rest}", self.acme)
    }

    async fn count(&self) -> usize {
        self.alice.get(&self.path("")).await.expect(200).items().len()
    }

    async fn collect(&self) {
        let tenants = self.app.services().operator.list_all_tenants().await.unwrap();
        self.app.services().operator.collect_garbage(&tenants[0]).await.unwrap();
    }

    /// The keys of all the tenant's objects.
    async fn objects(&self) -> Vec<String> {
        let prefix = format!("tenants/{}", self.acme);
        let storage = self.app.objects().open();
        storage.list(&prefix).map(|object| object.unwrap().key).collect().await
    }

    /// Changes the tenant's database, bypassing the API.
    async fn executes(&self, sql: &'static str) {
        let tenants = self.app.services().operator.list_all_tenants().await.unwrap();
        let mut tx = self.app.databases().open().1.open(&tenants[0].location).unwrap().begin().await.unwrap();
        tx.execute(sql, vec![]).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn reserved(&self) -> Value {
        self.alice.get(&format!("/api/tenants/{}/storage", self.acme)).await.expect(200).data()["reserved_bytes"].clone()
    }

    async fn declares(&self, content: &[u8]) -> Reply {
        let sha256 = hex(&Sha256::digest(content));
        let declaration = json!({ "filename": "a.bin", "mime_type": "text/plain", "size": content.len(), "sha256": sha256 });
        self.alice.post(&self.path("/uploads"), &declaration).await
    }

    /// Sends the parts of an upload.
    async fn sends(&self, begun: &Reply, content: &[u8]) {
        for part in begun.data()["parts"].as_array().unwrap() {
            let number = |name: &str| usize::try_from(part[name].as_u64().unwrap()).unwrap();
            let (offset, size) = (number("offset"), number("size"));
            self.puts(part, &content[offset..offset + size]).await.expect(200);
        }
    }

    async fn puts(&self, part: &Value, bytes: &[u8]) -> Reply {
        Reply::to(self.app.stranger().request(Method::PUT, part["url"].as_str().unwrap()).body(bytes.to_vec())).await
    }

    async fn completes(&self, begun: &Reply) -> Reply {
        let id = begun.data()["upload"]["id"].as_str().unwrap();
        Reply::to(self.alice.request(Method::POST, &self.path(&format!("/uploads/{id}/complete")))).await
    }

    async fn downloads(&self, document: &str) -> Vec<u8> {
        self.alice.downloads(&self.acme, document).await
    }

    fn tus(&self, method: Method, path: &str) -> RequestBuilder {
        self.alice.request(method, path).header("tus-resumable", "1.0.0")
    }

    /// Starts a resumable upload and returns its URL.
    async fn begins(&self, size: usize) -> String {
        let metadata = format!("filename {},filetype {},client's", STANDARD.encode("Über.txt"), STANDARD.encode("text/plain"));
        let request = self.tus(Method::POST, &self.path("/tus")).header("upload-length", size).header("upload-metadata", metadata);
        let begun = Reply::to(request).await.expect(201);
        assert!(begun.header("upload-expires").ends_with(" GMT"), "{}", begun.header("upload-expires"));
        begun.header("location").to_owned()
    }

    fn patch(&self, url: &str, offset: usize, bytes: impl Into<reqwest::Body>) -> RequestBuilder {
        let request = self.tus(Method::PATCH, url).header("upload-offset", offset);
        request.header("content-type", "application/offset+octet-stream").body(bytes)
    }

    async fn offset(&self, url: &str) -> String {
        Reply::to(self.tus(Method::HEAD, url)).await.expect(200).header("upload-offset").to_owned()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Unique content of `size` bytes.
fn content(size: usize) -> Vec<u8> {
    let seed = domain::random_bytes::<32>();
    seed.iter().copied().cycle().zip(0_u32..).map(|(byte, n)| byte ^ n.to_le_bytes()[1]).take(size).collect()
}

#[tokio::test]
async fn a_direct_upload_becomes_a_document_after_verification() {
    let world = World::new().await;
    // Two parts: the second is smaller.
    let content = content(16 * 1024 * 1024 + 5);
    let begun = world.declares(&content).await.expect(201);
    assert_eq!((begun.data()["parts"].as_array().unwrap().len(), &begun.data()["document"]), (2, &Value::Null));
    assert_eq!(world.reserved().await, json!(content.len()));
    world.completes(&begun).await.expect_error(400, "validation_failed");
    // Parts arrive in any order and may be repeated.
    let parts = begun.data()["parts"].as_array().unwrap();
    for wrong in [&b"1234"[..], b"123456"] {
        assert!(world.puts(&parts[1], wrong).await.status.is_client_error());
    }
    world.puts(&parts[1], &content[16 * 1024 * 1024..]).await.expect(200);
    world.completes(&begun).await.expect_error(400, "validation_failed");
    // A part may be sent again. (To SeaweedFS 4.48 none may: it then refuses to put them together.)
    if world.app.objects().open().direct_uploads().is_none() {
        world.puts(&parts[1], &content[16 * 1024 * 1024..]).await.expect(200);
    }
    world.puts(&parts[0], &content[..16 * 1024 * 1024]).await.expect(200);
    assert_eq!(world.count().await, 0);
    let completed = world.completes(&begun).await.expect(200);
    assert_eq!((&completed.data()["upload"]["state"], &completed.data()["document"]["deduplicated"]), (&json!("completed"), &json!(false)));
    let document = completed.data()["document"]["id"].as_str().unwrap();
    assert!(world.downloads(document).await == content);
    assert_eq!(world.completes(&begun).await.expect(200).data()["document"]["id"], document);
    assert!(!world.puts(&parts[1], &content[16 * 1024 * 1024..]).await.status.is_success(), "its URLs are invalid");
    assert_eq!((world.count().await, world.reserved().await), (1, json!(0)));
    assert_eq!(world.objects().await.len(), 1, "no parts are left");

    // The content is stored now, so it need not be sent again.
    let again = world.declares(&content).await.expect(201);
    assert_eq!((&again.data()["upload"], &again.data()["document"]["deduplicated"]), (&Value::Null, &json!(true)));
    assert_eq!(world.count().await, 2);
}

/// Clients repeat requests without a response.
#[tokio::test]
async fn a_part_sent_twice_yields_a_document_or_a_permanent_failure() {
    let world = World::new().await;
    let content = content(16 * 1024 * 1024 + 5);
    let begun = world.declares(&content).await.expect(201);
    world.sends(&begun, &content).await;
    world.puts(&begun.data()["parts"][1], &content[16 * 1024 * 1024..]).await.expect(200);
    let completed = world.completes(&begun).await;
    if completed.status == 200 {
        assert!(world.downloads(completed.data()["document"]["id"].as_str().unwrap()).await == content);
        return;
    }
    let problem = completed.expect_error(400, "validation_failed").json["error"]["details"]["parts"][0].to_string();
    assert!(problem.contains("begin another upload"), "{problem}");
    let begun = world.declares(&content).await.expect(201);
    world.sends(&begun, &content).await;
    world.completes(&begun).await.expect(200);
}

#[tokio::test]
async fn declared_size_and_hashes_are_always_verified() {
    let world = World::new().await;
    let (declared, sent) = (content(1000), content(1000));
    let begun = world.declares(&declared).await.expect(201);
    world.sends(&begun, &sent).await;
    let refused = world.completes(&begun).await.expect_error(409, "upload_failed");
    assert!(refused.json["error"]["message"].as_str().unwrap().contains("its SHA-256 is"), "{}", refused.json);
    world.completes(&begun).await.expect_error(409, "upload_failed");
    assert_eq!((world.count().await, world.reserved().await, world.objects().await.len()), (0, json!(0), 0));
    let id = begun.data()["upload"]["id"].as_str().unwrap().to_owned();
    let state = world.alice.get(&world.path(&format!("/uploads/{id}"))).await.expect(200);
    assert_eq!(state.data()["upload"]["state"], "failed");
    // A failed upload can be deleted, once.
    world.alice.delete(&world.path(&format!("/uploads/{id}"))).await.expect(200);
    world.alice.delete(&world.path(&format!("/uploads/{id}"))).await.expect_error(404, "upload_not_found");
}

/// Content in the trash, orphaned content and other tenants' content has to be sent: the response does not reveal that it is stored.
#[tokio::test]
async fn only_content_that_the_caller_may_read_need_not_be_sent() {
    let world = World::of(TestApp::builder().trash_retention(DAY).start().await).await;
    let content = content(1000);
    let bob = world.app.user("bob").await;
    let bobs = bob.creates_tenant("Bob's").await;
    bob.uploads(&bobs, "a.bin", content.clone()).await.expect(201);
    assert_eq!(world.declares(&content).await.expect(201).data()["document"], Value::Null);

    let mine = world.alice.uploads(&world.acme, "a.bin", content.clone()).await.expect(201).id();
    world.alice.delete(&world.path(&format!("/{mine}"))).await.expect(200);
    let begun = world.declares(&content).await.expect(201);
    assert_eq!(begun.data()["document"], Value::Null);
    world.sends(&begun, &content).await;
    // The caller has proved possession of the content, so it is deduplicated.
    assert_eq!(world.completes(&begun).await.expect(200).data()["document"]["deduplicated"], true);
    assert_eq!(world.objects().await.len(), 1);
}

#[tokio::test]
async fn an_aborted_or_expired_multipart_upload_leaves_no_trace() {
    let world = World::of(TestApp::builder().quota(Quota { bytes: Some(2000), documents: None }).start().await).await;
    let first = content(1000);
    let begun = world.declares(&first).await.expect(201);
    world.sends(&begun, &first).await;
    let tus = world.begins(1000).await;
    Reply::to(world.patch(&tus, 0, "half")).await.expect(204);
    // Both uploads have reservations.
    world.declares(b"more").await.expect_error(403, "quota_exceeded");
    world.alice.uploads(&world.acme, "a.txt", "more").await.expect_error(403, "quota_exceeded");

    let id = begun.data()["upload"]["id"].as_str().unwrap();
    world.alice.delete(&world.path(&format!("/uploads/{id}"))).await.expect(200);
    world.completes(&begun).await.expect_error(404, "upload_not_found");
    assert_eq!(world.reserved().await, json!(1000));
    let fresh = world.declares(&first).await.expect(201);
    world.sends(&fresh, &first).await;
    world.app.clock().advance(DAY);
    let world = World { alice: world.alice.logged_in().await, ..world };
    // Expired uploads are not found and reserve nothing, before and after their collection.
    for _ in 0..2 {
        world.completes(&fresh).await.expect_error(404, "upload_not_found");
        Reply::to(world.tus(Method::HEAD, &tus)).await.expect(404);
        Reply::to(world.patch(&tus, 4, "rest")).await.expect_error(404, "upload_not_found");
        assert_eq!(world.reserved().await, json!(0));
        world.collect().await;
    }
    assert_eq!(world.objects().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_resumable_upload_resumes_at_its_offset() {
    let world = World::new().await;
    let content = content(9 * 1024 * 1024);
    let url = world.begins(content.len()).await;
    let head = Reply::to(world.tus(Method::HEAD, &url)).await.expect(200);
    assert_eq!((head.header("upload-offset"), head.header("upload-length")), ("0", content.len().to_string().as_str()));
    assert_eq!((head.header("cache-control"), head.header("tus-resumable")), ("no-store", "1.0.0"));
    assert!(head.header("upload-metadata").ends_with(",client's"));
    // Large and small chunks.
    let mut sent = 0;
    for size in [1, 8 * 1024 * 1024 + 1, 100] {
        let reply = Reply::to(world.patch(&url, sent, content[sent..sent + size].to_vec())).await.expect(204);
        sent += size;
        assert_eq!(reply.header("upload-offset"), sent.to_string());
    }
    // The server rejects a wrong offset.
    for offset in [0, sent - 1, sent + 1] {
        let refused = Reply::to(world.patch(&url, offset, "x")).await.expect_error(409, "upload_offset_mismatch");
        assert_eq!(refused.json["error"]["details"]["offset"], sent);
    }
    Reply::to(world.patch(&url, sent, content[sent..].iter().copied().chain([0]).collect::<Vec<_>>())).await.expect(413);
    // The bytes received before the size was exceeded are stored.
    let sent: usize = world.offset(&url).await.parse().unwrap();
    let last = Reply::to(world.patch(&url, sent, content[sent..].to_vec())).await.expect(204);
    let document = last.header("content-location").rsplit('/').next().unwrap();
    assert!(world.downloads(document).await == content);
    let found = world.alice.get(&world.path(&format!("/{document}"))).await.expect(200);
    assert_eq!((&found.data()["filename"], &found.data()["mime_type"]), (&json!("Über.txt"), &json!("text/plain")));
    assert_eq!(world.objects().await.len(), 1);
    // The completed upload can still be queried.
    let head = Reply::to(world.tus(Method::HEAD, &url)).await.expect(200);
    assert_eq!(
        (head.header("upload-offset"), head.header("content-location")),
        (content.len().to_string().as_str(), last.header("content-location"))
    );
    Reply::to(world.tus(Method::DELETE, &url)).await.expect_error(409, "upload_closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_received_before_a_broken_connection_are_kept() {
    let world = World::new().await;
    let url = world.begins(1_000_000).await;
    let body = stream::iter([Ok(vec![1_u8; 300_000]), Ok(vec![2; 300_000])]).chain(stream::once(async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Err(std::io::Error::other("the client dies"))
    }));
    assert!(world.patch(&url, 0, reqwest::Body::wrap_stream(body)).send().await.is_err());
    for attempt in 0.. {
        if world.offset(&url).await == "600000" {
            break;
        }
        assert!(attempt < 100, "{}", world.offset(&url).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let last = Reply::to(world.patch(&url, 600_000, vec![3_u8; 400_000])).await.expect(204);
    let document = last.header("content-location").rsplit('/').next().unwrap();
    assert!(world.downloads(document).await == [vec![1_u8; 300_000], vec![2; 300_000], vec![3; 400_000]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clients_sending_the_same_bytes_one_is_counted() {
    let world = World::new().await;
    for _ in 0..10 {
        let url = world.begins(20).await;
        let replies = futures_util::future::join_all((0..4).map(|_| Reply::to(world.patch(&url, 0, "0123456789")))).await;
        assert_eq!(replies.iter().filter(|reply| reply.status == 204).count(), 1);
        assert!(replies.iter().all(|reply| reply.status == 204 || reply.code() == "upload_offset_mismatch"));
        assert_eq!(world.offset(&url).await, "10");
        Reply::to(world.tus(Method::DELETE, &url)).await.expect(204);
    }
    world.collect().await;
    assert_eq!(world.objects().await, Vec::<String>::new());
}

#[tokio::test]
async fn checksums_are_verified_before_bytes_are_stored() {
    let world = World::new().await;
    let url = world.begins(12).await;
    let sum = |bytes: &[u8]| format!("sha1 {}", STANDARD.encode(Sha1::digest(bytes)));
    let wrong = world.patch(&url, 0, "abc").header("upload-checksum", sum(b"abd"));
    let refused = Reply::to(wrong).await;
    assert_eq!((refused.status.as_u16(), refused.code(), world.offset(&url).await.as_str()), (460, "checksum_mismatch", "0"));
    Reply::to(world.patch(&url, 0, "abc").header("upload-checksum", sum(b"abc"))).await.expect(204);
    let sha256 = format!("sha256 {}", STANDARD.encode(Sha256::digest("def")));
    Reply::to(world.patch(&url, 3, "def").header("upload-checksum", sha256)).await.expect(204);
    let md5 = "md5 a/JSnL4DGjxzKGDRoHJWqA==";
    assert_eq!(Reply::to(world.patch(&url, 6, "ghi").header("upload-checksum", md5)).await.status.as_u16(), 460);
    for bad in ["crc32 AAAA", "sha1", "sha1 ???", "sha1 AAAA"] {
        Reply::to(world.patch(&url, 6, "ghi").header("upload-checksum", bad)).await.expect_error(400, "validation_failed");
    }
    assert_eq!(world.offset(&url).await, "6");
}

#[tokio::test]
async fn tus_conforms_to_the_protocol() {
    let world = World::of(TestApp::builder().max_upload_bytes(100).start().await).await;
    let described = Reply::to(world.app.stranger().request(Method::OPTIONS, &world.path("/tus"))).await.expect(204);
    assert_eq!((described.header("tus-version"), described.header("tus-max-size")), ("1.0.0", "100"));
    assert_eq!(described.header("tus-checksum-algorithm"), "sha1,md5,sha256");
    let begin = |length: &'static str, metadata: &'static str| {
        let request = world.tus(Method::POST, &world.path("/tus")).header("upload-length", length);
        Reply::to(request.header("upload-metadata", metadata))
    };
    begin("101", "filename YQ==").await.expect_error(413, "payload_too_large");
    for (length, metadata) in
        [("0", "filename YQ=="), ("x", "filename YQ=="), ("1", ""), ("1", "filename ???"), ("1", "filename YS9i"), ("1", "filetype YQ==")]
    {
        begin(length, metadata).await.expect_error(400, "validation_failed");
    }
    for metadata in ["filename YQ==", "name YQ==", "relativePath bnVsbA==,name YQ==,type bm9uc2Vuc2U="] {
        begin("1", metadata).await.expect(201);
    }
    let plain = world.alice.request(Method::POST, &world.path("/tus")).header("upload-length", "1");
    Reply::to(plain).await.expect_error(412, "tus_version");
    let url = world.begins(10).await;
    let request = world.tus(Method::PATCH, &url).header("upload-offset", "0").header("content-type", "text/plain").body("x");
    Reply::to(request).await.expect_error(415, "unsupported_media_type");
    let request = world.tus(Method::PATCH, &url).header("content-type", "application/offset+octet-stream").body("x");
    Reply::to(request).await.expect_error(400, "validation_failed");
    // For clients behind proxies that pass only POST.
    let request = world.tus(Method::POST, &url).header("x-http-method-override", "PATCH").header("upload-offset", "0");
    Reply::to(request.header("content-type", "application/offset+octet-stream").body("ab")).await.expect(204);
    assert_eq!(world.offset(&url).await, "2");
    Reply::to(world.tus(Method::POST, &url).header("x-http-method-override", "DELETE")).await.expect(204);
    Reply::to(world.tus(Method::POST, &url).header("x-http-method-override", "GET")).await.expect_error(400, "validation_failed");
    Reply::to(world.tus(Method::HEAD, &url)).await.expect(404);
}

/// The response decides whether the official clients resume an upload or start a new one.
#[tokio::test]
async fn only_an_upload_that_is_lost_looks_lost() {
    let world = World::new().await;
    let url = world.begins(10).await;
    assert!(url.starts_with("/api/tenants/"), "relative, so that it has the client's scheme: {url}");
    let set = async |provisioning: &str| {
        let mut tx = world.app.databases().open().0.begin().await.unwrap();
        tx.execute("UPDATE tenants SET provisioning = $1", vec![provisioning.into()]).await.unwrap();
        tx.commit().await.unwrap();
        // A change of the member invalidates the instance's cache.
        world.app.services().operator.set_user_active(world.alice.id.parse::<uuid::Uuid>().unwrap().into(), true).await.unwrap();
    };
    let head = || Reply::to(world.tus(Method::HEAD, &url));
    set("creating").await;
    let locked = head().await.expect(423);
    assert_eq!((locked.header("tus-resumable"), locked.header("retry-after")), ("1.0.0", "5"));
    Reply::to(world.patch(&url, 0, "x")).await.expect_error(503, "service_unavailable");
    set("active").await;
    assert_eq!(head().await.expect(200).header("upload-offset"), "0");
    assert_eq!(Reply::to(world.patch(&url, 1, "x")).await.expect(409).header("tus-resumable"), "1.0.0");
    let none = Reply::to(world.alice.request(Method::HEAD, &url)).await.expect(412);
    assert_eq!((none.header("tus-version"), none.header("tus-resumable")), ("1.0.0", "1.0.0"));

    // Complete but without a document: the client must restart, or it would assume success.
    Reply::to(world.patch(&url, 0, "0123456789")).await.expect(204);
    world.executes("UPDATE staged_uploads SET state = 'failed', failure = 'it was damaged'").await;
    head().await.expect(409);
    // An upload of another protocol is not found.
    let id = world.declares(b"x").await.expect(201).data()["upload"]["id"].as_str().unwrap().to_owned();
    Reply::to(world.tus(Method::HEAD, &world.path(&format!("/tus/{id}")))).await.expect(404);
}

#[tokio::test]
async fn browsers_of_other_origins_can_discover_tus_capabilities() {
    let world = World::of(TestApp::builder().cors(Origins::Listed(vec!["https://app.example.com".into()])).start().await).await;
    for path in [world.path("/tus"), world.begins(10).await] {
        let ask = || world.app.stranger().request(Method::OPTIONS, &path).header("origin", "https://app.example.com");
        let preflight = ask().header("access-control-request-method", "PATCH");
        let preflight = preflight.header("access-control-request-headers", "x-request-id,upload-offset,upload-length,tus-resumable");
        let preflight = Reply::to(preflight).await.expect(200);
        for header in ["x-request-id", "upload-offset", "upload-length", "tus-resumable"] {
            assert!(preflight.header("access-control-allow-headers").contains(header), "{header}");
        }
        for reply in [Reply::to(ask()).await.expect(200), preflight] {
            assert_eq!((reply.header("tus-version"), reply.header("tus-checksum-algorithm")), ("1.0.0", "sha1,md5,sha256"));
            assert_eq!(reply.header("access-control-allow-origin"), "https://app.example.com");
        }
    }
    // A client that is no browser gets the handler's answer: it has to authenticate, and the tenant to exist.
    let discover = |tus: String| Reply::to(world.alice.request(Method::OPTIONS, &tus));
    assert_eq!(discover(world.path("/tus")).await.expect(204).header("tus-version"), "1.0.0");
    discover("/api/tenants/none/documents/tus".to_owned()).await.expect(400);
    let elsewhere = Reply::to(world.app.stranger().request(Method::OPTIONS, &world.path(""))).await;
    assert!(elsewhere.headers.get("tus-version").is_none());
}

#[tokio::test]
async fn ambiguous_or_malformed_headers_are_rejected() {
    let world = World::new().await;
    let begin = |lengths: &[&str], metadata: &[&[u8]], more: &[(&'static str, &'static str)]| {
        let mut request = world.tus(Method::POST, &world.path("/tus"));
        for length in lengths {
            request = request.header("upload-length", *length);
        }
        for metadata in metadata {
            request = request.header("upload-metadata", *metadata);
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        Reply::to(request)
    };
    let name: &[u8] = b"filename YQ==";
    for length in ["+5", "-5", "5.0", "0x5", "", "18446744073709551616", "5, 5"] {
        begin(&[length], &[name], &[]).await.expect_error(400, "validation_failed");
    }
    begin(&["18446744073709551615"], &[name], &[]).await.expect_error(413, "payload_too_large");
    begin(&["5", "6"], &[name], &[]).await.expect_error(400, "validation_failed");
    begin(&["5"], &[name, name], &[]).await.expect_error(400, "validation_failed");
    begin(&["5"], &["filename YQ==,ü".as_bytes()], &[]).await.expect_error(400, "validation_failed");
    // If they were ignored, each part would become a document.
    begin(&["5"], &[name], &[("upload-concat", "partial")]).await.expect_error(400, "validation_failed");
    begin(&[], &[name], &[("upload-defer-length", "1")]).await.expect_error(400, "validation_failed");

    let url = world.begins(5).await;
    for offset in ["+0", "-0", "18446744073709551616"] {
        let request =
            world.tus(Method::PATCH, &url).header("upload-offset", offset).header("content-type", "application/offset+octet-stream");
        Reply::to(request.body("x")).await.expect_error(400, "validation_failed");
    }
    Reply::to(world.patch(&url, 0, "x").header("upload-offset", "1")).await.expect_error(400, "validation_failed");
    assert_eq!(world.offset(&url).await, "0");
}

#[tokio::test]
async fn a_rejected_declaration_leaves_nothing_in_the_storage() {
    let world = World::of(TestApp::builder().quota(Quota { bytes: Some(10), documents: None }).start().await).await;
    world.declares(&content(11)).await.expect_error(403, "quota_exceeded");
    let prefix = format!("tenants/{}", world.acme);
    let storage = world.app.objects().open();
    let unfinished: Vec<_> = storage.list_unfinished(&prefix).map(|upload| upload.unwrap().key).collect().await;
    assert_eq!(unfinished, Vec::<String>::new());
}

/// Both instances complete the same uploads while the collector considers them stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_instances_and_the_collector_one_creates_the_document() {
    let world = World::of(TestApp::builder().quota(Quota { bytes: Some(1_000_000), documents: Some(1000) }).start().await).await;
    let elsewhere = world.app.second_instance().await;
    for round in 1..=8 {
        let content = content(10_000);
        let begun = world.declares(&content).await.expect(201);
        world.sends(&begun, &content).await;
        let path = world.path(&format!("/uploads/{}/complete", begun.data()["upload"]["id"].as_str().unwrap()));
        let there = world.alice.at(&elsewhere);
        let complete = |persona: &Persona| Reply::to(persona.request(Method::POST, &path));
        let collect = async {
            let tenants = elsewhere.services().operator.list_all_tenants().await.unwrap();
            elsewhere.services().operator.collect_garbage(&tenants[0]).await.unwrap();
        };
        let (here, there, ()) = futures_util::join!(complete(&world.alice), complete(&there), collect);
        let (here, there) = (here.expect(200), there.expect(200));
        assert_eq!(here.data()["document"]["id"], there.data()["document"]["id"]);
        assert!(world.downloads(here.data()["document"]["id"].as_str().unwrap()).await == content);
        assert_eq!((world.count().await, world.reserved().await), (round, json!(0)));
    }
    world.collect().await;
    assert_eq!(world.objects().await.len(), 8);
}

/// A complete upload was acknowledged: it survives the tenant's deactivation, and so does its reservation.
#[tokio::test]
async fn a_completing_upload_survives_an_inactive_tenant() {
    let world = World::of(TestApp::builder().quota(Quota { bytes: Some(10), documents: None }).start().await).await;
    let tenant_id = world.acme.parse::<uuid::Uuid>().unwrap().into();
    let url = world.begins(10).await;
    Reply::to(world.patch(&url, 0, "01234567")).await.expect(204);
    // The state after a crash between the last part and the document.
    world.executes("UPDATE staged_uploads SET state = 'completing', file_size = 8").await;
    world.app.services().operator.set_tenant_active(tenant_id, false).await.unwrap();
    world.app.clock().advance(Duration::from_secs(120));
    world.collect().await;
    world.app.services().operator.set_tenant_active(tenant_id, true).await.unwrap();
    let world = World { alice: world.alice.logged_in().await, ..world };
    assert_eq!(world.reserved().await, json!(8));
    world.collect().await;
    assert_eq!((world.count().await, world.reserved().await), (1, json!(0)));
    assert!(!Reply::to(world.tus(Method::HEAD, &url)).await.expect(200).header("content-location").is_empty());
}

/// Signed URLs need no session, so the server checks the user's current permissions.
#[tokio::test]
async fn a_part_is_accepted_only_from_users_who_may_upload() {
    let world = World::of(TestApp::builder().objects_as_files().start().await).await;
    let bob = world.app.user("bob").await;
    world.alice.invites(&bob, &world.acme, "user").await;
    let member = format!("/api/tenants/{}/users/{}", world.acme, bob.id);
    let content = content(100);
    let declaration = json!({ "filename": "b.bin", "size": 100, "sha256": hex(&Sha256::digest(&content)) });
    let begun = bob.post(&world.path("/uploads"), &declaration).await.expect(201);
    let part = &begun.data()["parts"][0];
    world.puts(part, &content).await.expect(200);
    world.alice.put(&member, &json!({ "role": "viewer" })).await.expect(200);
    world.puts(part, &content).await.expect_error(403, "insufficient_role");
    world.alice.put(&member, &json!({ "role": "user" })).await.expect(200);
    world.puts(part, &content).await.expect(200);
    let bob_id = bob.id.parse::<uuid::Uuid>().unwrap().into();
    world.app.services().operator.set_user_active(bob_id, false).await.unwrap();
    world.puts(part, &content).await.expect_error(404, "tenant_not_found");
    world.app.services().operator.set_user_active(bob_id, true).await.unwrap();
    world.puts(part, &content).await.expect(200);
    world.alice.delete(&member).await.expect(200);
    world.puts(part, &content).await.expect_error(404, "tenant_not_found");
}

/// Xiaoyun Wang and Hongbo Yu, "How to Break MD5 and Other Hash Functions" (EUROCRYPT 2005): two contents with one MD5. They differ
/// in the top bit of six bytes.
fn collision() -> [Vec<u8>; 2] {
    let first = "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a\
                 085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0\
                 e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70";
    let byte = |n: usize| u8::from_str_radix(&first[2 * n..2 * n + 2], 16).unwrap();
    let first: Vec<u8> = (0..128).map(byte).collect();
    let mut second = first.clone();
    for n in [19, 45, 59, 83, 109, 123] {
        second[n] ^= 0x80;
    }
    [first, second]
}

#[tokio::test]
async fn two_contents_with_the_same_md5_stay_two_files() {
    let world = World::new().await;
    let [first, second] = collision();
    let uploaded = world.alice.uploads(&world.acme, "first", first.clone()).await.expect(201);
    let other = world.alice.uploads(&world.acme, "second", second.clone()).await.expect(201);
    let file = |reply: &Reply, field: &str| reply.data()["file"][field].as_str().unwrap().to_owned();
    assert_eq!(
        (file(&uploaded, "md5_hash"), file(&other, "md5_hash")),
        (file(&other, "md5_hash"), "79054025255fb1a26e4bc422aef54eb4".into())
    );
    for field in ["id", "s3_path", "sha256"] {
        assert_ne!(file(&uploaded, field), file(&other, field), "{field}");
    }
    assert_eq!(other.data()["deduplicated"], false);
    assert!(world.downloads(&uploaded.id()).await == first && world.downloads(&other.id()).await == second);
    // Neither passes for the other in a declared upload or as a new version.
    world.alice.delete(&world.path(&format!("/{}", other.id()))).await.expect(200);
    let declaration = json!({
        "filename": "second", "size": second.len(), "sha256": hex(&Sha256::digest(&second)), "md5": "79054025255fb1a26e4bc422aef54eb4",
    });
    let begun = world.alice.post(&world.path("/uploads"), &declaration).await.expect(201);
    assert_eq!(begun.data()["document"], Value::Null);
    world.sends(&begun, &first).await;
    world.completes(&begun).await.expect_error(409, "upload_failed");
    let put = world.alice.request(Method::PUT, &world.path(&format!("/{}/content", uploaded.id()))).body(second.clone());
    assert_eq!(Reply::to(put).await.expect(200).data()["version"], 2);
    assert!(world.downloads(&uploaded.id()).await == second);
}

/// The same bytes in two tenants: neither responses nor (as far as this test can measure) response times reveal to one tenant that
/// the other stores them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_tenants_content_makes_no_difference() {
    let world = World::of(TestApp::builder().trash_retention(DAY).start().await).await;
    let bob = world.app.user("bob").await;
    let bobs = bob.creates_tenant("Bob's").await;
    let kinds = ["unknown", "another tenant's", "in the trash", "here"];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); kinds.len()];
    for _ in 0..40 {
        // Interleaved, so that other load on the machine affects all kinds equally.
        for (kind, times) in kinds.iter().zip(&mut times) {
            let content = content(2000);
            match *kind {
                "another tenant's" => drop(bob.uploads(&bobs, "a", content.clone()).await.expect(201)),
                "in the trash" | "here" => {
                    let id = world.alice.uploads(&world.acme, "a", content.clone()).await.expect(201).id();
                    if *kind == "in the trash" {
                        world.alice.delete(&world.path(&format!("/{id}"))).await.expect(200);
                    }
                }
                _ => {}
            }
            let began = std::time::Instant::now();
            let begun = world.declares(&content).await.expect(201);
            times.push(began.elapsed());
            assert_eq!(begun.data()["document"].is_null(), *kind != "here", "{kind}");
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|times| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64()
        })
        .collect();
    let (unknown, ratios) = (medians[0], medians.iter().map(|median| median / medians[0]).collect::<Vec<_>>());
    println!("a median of {unknown:.6} s; as ratios: {kinds:?} {ratios:.3?}");
    for (kind, ratio) in kinds[..3].iter().zip(&ratios) {
        assert!((0.67..1.5).contains(ratio), "{kind}: {ratio:.3} of the time of unknown content");
    }
    // A plain upload is stored separately for each tenant.
    let content = content(2000);
    let first = bob.uploads(&bobs, "a", content.clone()).await.expect(201);
    let second = world.alice.uploads(&world.acme, "a", content).await.expect(201);
    assert_eq!(second.data()["deduplicated"], false);
    assert_ne!(first.data()["file"]["s3_path"], second.data()["file"]["s3_path"]);
}
