//! Multipart uploads: a crash at every step.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{Persona, Reply};

use crate::{
    process::{Home, Server, WAIT_TIMEOUT},
    scene::{Scene, repeatedly},
};

/// A resumable upload, up to its document.
pub(crate) const TUS: &[&str] = &[
    "staged.beginning",
    "staged.begun",
    "staged.part_noted",
    "staged.part_stored",
    "tus.part_counting",
    "tus.part_counted",
    "staged.verified",
    "upload.noted",
    "upload.stored",
    "upload.committing",
    "upload.committed",
];
/// A direct upload through the API.
pub(crate) const DIRECT: &[&str] =
    &["direct.beginning", "direct.begun", "direct.part_keeping", "direct.part_kept", "direct.completing", "direct.completed"];
/// A direct upload whose parts go to S3.
pub(crate) const DIRECT_ON_S3: &[&str] =
    &["direct.gathering", "direct.beginning", "direct.gathered", "direct.completing", "direct.completed"];
/// The abort of an upload, and whether the upload is gone afterwards.
pub(crate) const ABORT: &[(&str, bool)] = &[("staged.aborting", false), ("staged.aborted", true)];
/// The removal of expired uploads.
pub(crate) const EXPIRE: &[&str] = &["staged.expiring", "staged.expired"];

const SIZE: usize = 300_000;

fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(SIZE).collect()
}

/// A client that survives crashes of the server.
struct Client<'a> {
    alice: &'a Persona,
    tenant: &'a str,
    /// The upload's id, once a response named it.
    id: Option<String>,
}

impl Client<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}/documents{rest}", self.tenant)
    }

    fn tus(&self, server: &Server, method: Method, rest: &str) -> RequestBuilder {
        server.known(self.alice).request(method, &self.path(rest)).header("tus-resumable", "1.0.0").timeout(WAIT_TIMEOUT)
    }

    /// Uploads a content. Returns the document, or none when the server crashed.
    async fn upload(&mut self, protocol: Protocol, server: &Server, content: &[u8]) -> Option<String> {
        match protocol {
            Protocol::Tus => self.resume(server, content).await,
            Protocol::Direct => self.direct(server, content).await,
        }
    }

    /// Creates a resumable upload, sends the missing bytes in two requests, and waits for the document. None when the server
    /// crashed.
    async fn resume(&mut self, server: &Server, content: &[u8]) -> Option<String> {
        if self.id.is_none() {
            let request = self.tus(server, Method::POST, "/tus").header("upload-length", SIZE);
            let created = request.header("upload-metadata", "filename YS50eHQ=").send().await.ok()?;
            assert_eq!(created.status(), 201);
            self.id = created.headers()["location"].to_str().unwrap().rsplit('/').next().map(str::to_owned);
        }
        let path = format!("/tus/{}", self.id.as_ref().unwrap());
        loop {
            let head = self.tus(server, Method::HEAD, &path).send().await.ok()?;
            assert_eq!(head.status(), 200);
            let offset: usize = head.headers()["upload-offset"].to_str().unwrap().parse().unwrap();
            if offset == SIZE {
                return self.completed(server).await;
            }
            let piece = content[offset..SIZE.min(offset + SIZE / 2)].to_vec();
            let patch = self.tus(server, Method::PATCH, &path).header("upload-offset", offset);
            let sent = patch.header("content-type", "application/offset+octet-stream").body(piece).send().await.ok()?;
            assert_eq!(sent.status(), 204);
        }
    }

    /// Waits for the document.
    async fn completed(&self, server: &Server) -> Option<String> {
        let path = self.path(&format!("/uploads/{}", self.id.as_ref().unwrap()));
        let completed = async {
            loop {
                let sent = server.known(self.alice).request(Method::GET, &path).timeout(WAIT_TIMEOUT).send().await.ok()?;
                let state: Value = sent.json().await.ok()?;
                match state["data"]["upload"]["state"].as_str().unwrap() {
                    "completed" => break Some(state["data"]["document"]["id"].as_str().unwrap().to_owned()),
                    "completing" => tokio::time::sleep(Duration::from_millis(20)).await,
                    other => panic!("the upload is in state {other}"),
                }
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, completed).await.expect("the upload does not complete")
    }

    /// Declares a content, sends it, and completes the upload. None when the server crashed.
    async fn direct(&mut self, server: &Server, content: &[u8]) -> Option<String> {
        let alice = server.known(self.alice);
        let documents = self.path("");
        let post = async |rest: &str, body: Value| {
            let sent = alice.request(Method::POST, &format!("{documents}{rest}")).json(&body).timeout(WAIT_TIMEOUT).send().await.ok()?;
            assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
            sent.json::<Value>().await.ok()
        };
        let mut state = match &self.id {
            None => {
                let sha256: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
                post("/uploads", json!({ "filename": "a.txt", "size": SIZE, "sha256": sha256 })).await?
            }
            Some(id) => {
                let sent = alice.request(Method::GET, &self.path(&format!("/uploads/{id}"))).timeout(WAIT_TIMEOUT).send().await.ok()?;
                sent.json().await.ok()?
            }
        };
        self.id = state["data"]["upload"]["id"].as_str().map(str::to_owned);
        for part in state["data"]["parts"].as_array_mut().unwrap().drain(..) {
            let sent = server.stranger().request(Method::PUT, part["url"].as_str().unwrap()).body(content.to_vec());
            let sent = sent.timeout(WAIT_TIMEOUT).send().await.ok()?;
            // A storage that completed its multipart upload before the crash accepts no further parts.
            assert!(sent.status().is_success() || sent.status() == 404, "{}", sent.text().await.unwrap());
        }
        let id = self.id.clone()?;
        post(&format!("/uploads/{id}/complete"), json!({})).await?;
        self.completed(server).await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tus,
    Direct,
}

async fn crash_at_every_step(protocol: Protocol, steps: &[&str]) {
    let mut scene = Scene::new().await;
    for (n, failpoint) in (1..).zip(steps) {
        let (alice, tenant) = (scene.alice.clone(), scene.tenant.clone());
        let mut client = Client { alice: &alice, tenant: &tenant, id: None };
        let content = content(failpoint);
        scene.restart_at(failpoint).await;
        assert_eq!(client.upload(protocol, scene.server(), &content).await, None, "{failpoint} was not hit");
        scene.assert_aborted(failpoint).await;
        scene.start().await;
        let document = client.upload(protocol, scene.server(), &content).await.expect("a document");
        assert!(scene.alice.downloads(&tenant, &document).await == content, "{failpoint}");
        assert_eq!(scene.count_documents().await, n, "{failpoint}");
    }
    expire_uploads(&scene.home).await;
    scene.stop_and_check().await;
}

/// Expires all uploads.
pub(crate) async fn expire_uploads(home: &Home) {
    let (main, directory) = home.databases().open();
    for tenant in models::tenants::list(&mut main.read().await.unwrap()).await.unwrap() {
        let mut tx = directory.open(&tenant.place).unwrap().begin().await.unwrap();
        for expire in ["UPDATE uploads SET expires_at = $1", "UPDATE staged_uploads SET expires_at = $1"] {
            tx.execute(expire, vec![tenant.created_at.into()]).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

#[test]
fn a_crash_in_a_resumable_upload_loses_no_acknowledged_byte() {
    repeatedly(async || crash_at_every_step(Protocol::Tus, TUS).await);
}

#[test]
fn a_crash_in_a_direct_upload_leaves_one_document() {
    repeatedly(async || {
        let is_s3 = Home::new().objects().is_s3();
        crash_at_every_step(Protocol::Direct, if is_s3 { DIRECT_ON_S3 } else { DIRECT }).await;
    });
}

#[test]
fn a_crash_while_an_upload_is_removed_leaves_nothing() {
    repeatedly(async || {
        let mut scene = Scene::new().await;
        for (failpoint, is_gone) in ABORT {
            let path = begin_upload(&scene).await;
            scene.crash(failpoint, |scene| tus(scene, Method::DELETE, &path)).await;
            Reply::to(tus(&scene, Method::HEAD, &path)).await.expect(if *is_gone { 404 } else { 200 });
            Reply::to(tus(&scene, Method::DELETE, &path)).await.expect(if *is_gone { 404 } else { 204 });
        }
        for failpoint in EXPIRE {
            let path = begin_upload(&scene).await;
            expire_uploads(&scene.home).await;
            scene.home.crash(&["gc"], failpoint);
            Reply::to(tus(&scene, Method::HEAD, &path)).await.expect(404);
            scene.home.run(["gc"]).expect(0);
        }
        scene.stop_and_check().await;
    });
}

fn tus(scene: &Scene, method: Method, rest: &str) -> RequestBuilder {
    Client { alice: &scene.alice, tenant: &scene.tenant, id: None }.tus(scene.server(), method, rest)
}

/// Creates a resumable upload and sends a part of it. Returns its path.
async fn begin_upload(scene: &Scene) -> String {
    let create = tus(scene, Method::POST, "/tus").header("upload-length", SIZE).header("upload-metadata", "filename YS50eHQ=");
    let url = Reply::to(create).await.expect(201).header("location").to_owned();
    let path = format!("/tus/{}", url.rsplit('/').next().unwrap());
    let patch = tus(scene, Method::PATCH, &path).header("upload-offset", 0).body("some of it");
    Reply::to(patch.header("content-type", "application/offset+octet-stream")).await.expect(204);
    path
}
