//! Uploads in parts: a crash at every step.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{Persona, Reply};

use crate::process::{Home, PATIENCE, Server, repeatedly};

/// The steps of a resumable upload, those of its becoming a document included.
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
/// The steps of a direct upload through the API.
pub(crate) const DIRECT: &[&str] =
    &["direct.beginning", "direct.begun", "direct.part_keeping", "direct.part_kept", "direct.completing", "direct.completed"];
/// The same where the storage gathers the parts.
pub(crate) const GATHERED: &[&str] = &["direct.gathering", "direct.beginning", "direct.gathered", "direct.completing", "direct.completed"];
/// The giving up of an upload: it is gone afterwards, or not.
pub(crate) const ABORT: &[(&str, bool)] = &[("staged.aborting", false), ("staged.aborted", true)];
/// The end of uploads whose time is over.
pub(crate) const EXPIRE: &[&str] = &["staged.expiring", "staged.expired"];

const SIZE: usize = 300_000;

fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(SIZE).collect()
}

/// Somebody who uploads, whatever happens to the server.
struct Client<'a> {
    alice: &'a Persona,
    tenant: &'a str,
    /// The upload, once its beginning was answered.
    id: Option<String>,
}

impl Client<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}/documents{rest}", self.tenant)
    }

    fn tus(&self, server: &Server, method: Method, rest: &str) -> RequestBuilder {
        server.known(self.alice).request(method, &self.path(rest)).header("tus-resumable", "1.0.0").timeout(PATIENCE)
    }

    /// Begins a resumable upload, sends what is missing in two requests, and waits for the document. Nothing when the server died.
    async fn resume(&mut self, server: &Server, content: &[u8]) -> Option<String> {
        if self.id.is_none() {
            let begun = self.tus(server, Method::POST, "/tus").header("upload-length", SIZE);
            let begun = begun.header("upload-metadata", "filename YS50eHQ=").send().await.ok()?;
            assert_eq!(begun.status(), 201);
            self.id = begun.headers()["location"].to_str().unwrap().rsplit('/').next().map(str::to_owned);
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
        let waited = async {
            loop {
                let sent = server.known(self.alice).request(Method::GET, &path).timeout(PATIENCE).send().await.ok()?;
                let state: Value = sent.json().await.ok()?;
                match state["data"]["upload"]["state"].as_str().unwrap() {
                    "completed" => break Some(state["data"]["document"]["id"].as_str().unwrap().to_owned()),
                    "completing" => tokio::time::sleep(Duration::from_millis(20)).await,
                    other => panic!("the upload is {other}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.expect("the upload is not completed")
    }

    /// Announces a content, sends it, and has it completed. Nothing when the server died.
    async fn direct(&mut self, server: &Server, content: &[u8]) -> Option<String> {
        let alice = server.known(self.alice);
        let documents = self.path("");
        let post = async |rest: &str, body: Value| {
            let sent = alice.request(Method::POST, &format!("{documents}{rest}")).json(&body).timeout(PATIENCE).send().await.ok()?;
            assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
            sent.json::<Value>().await.ok()
        };
        let mut state = match &self.id {
            None => {
                let sha256: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
                post("/uploads", json!({ "filename": "a.txt", "size": SIZE, "sha256": sha256 })).await?
            }
            Some(id) => {
                let sent = alice.request(Method::GET, &self.path(&format!("/uploads/{id}"))).timeout(PATIENCE).send().await.ok()?;
                sent.json().await.ok()?
            }
        };
        self.id = state["data"]["upload"]["id"].as_str().map(str::to_owned);
        for part in state["data"]["parts"].as_array_mut().unwrap().drain(..) {
            let sent = server.stranger().request(Method::PUT, part["url"].as_str().unwrap()).body(content.to_vec());
            let sent = sent.timeout(PATIENCE).send().await.ok()?;
            // Gathered by a storage that has put it together before the crash: it takes no more.
            assert!(sent.status().is_success() || sent.status() == 404, "{}", sent.text().await.unwrap());
        }
        let id = self.id.clone()?;
        post(&format!("/uploads/{id}/complete"), json!({})).await?;
        self.completed(server).await
    }
}

async fn count_documents(alice: &Persona, tenant: &str) -> u64 {
    alice.get(&format!("/api/tenants/{tenant}/documents")).await.expect(200).json["data"]["pagination"]["total"].as_u64().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Tus,
    Direct,
}

async fn crash_at_every_step(by: By, steps: &[&str]) {
    let home = Home::new();
    let mut server = home.serve().await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    for (n, failpoint) in (1..).zip(steps) {
        let mut client = Client { alice: &alice, tenant: &tenant, id: None };
        let content = content(failpoint);
        server.stop().await;
        server = home.serve_with(&[("FAILPOINT", failpoint)]).await;
        let died = match by {
            By::Tus => client.resume(&server, &content).await,
            By::Direct => client.direct(&server, &content).await,
        };
        assert_eq!(died, None, "{failpoint} was not hit");
        assert_eq!(server.ended().await.signal_number(), Some(Signal::ABORT.as_raw()), "{failpoint}: {}", server.log());
        println!("{failpoint}: hit once");

        server = home.serve().await;
        let document = match by {
            By::Tus => client.resume(&server, &content).await,
            By::Direct => client.direct(&server, &content).await,
        };
        let alice = server.known(&alice);
        assert!(alice.downloads(&tenant, &document.expect("a document")).await == content, "{failpoint}");
        assert_eq!(count_documents(&alice, &tenant).await, n, "{failpoint}");
    }
    expire(&home).await;
    home.settle(server).await;
}

/// Puts the clock of all uploads forward.
pub(crate) async fn expire(home: &Home) {
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
fn a_crash_in_a_resumable_upload_loses_no_byte_that_was_acknowledged() {
    repeatedly(async || crash_at_every_step(By::Tus, TUS).await);
}

#[test]
fn a_crash_in_a_direct_upload_leaves_one_document() {
    repeatedly(async || {
        let home = Home::new();
        let steps = if home.objects().is_s3() { GATHERED } else { DIRECT };
        drop(home);
        crash_at_every_step(By::Direct, steps).await;
    });
}

#[test]
fn a_crash_in_the_end_of_an_upload_leaves_nothing() {
    repeatedly(async || {
        let home = Home::new();
        let mut server = home.serve().await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let begin = async |server: &Server| {
            let client = Client { alice: &alice, tenant: &tenant, id: None };
            let begun =
                client.tus(server, Method::POST, "/tus").header("upload-length", SIZE).header("upload-metadata", "filename YS50eHQ=");
            let url = Reply::to(begun).await.expect(201).header("location").to_owned();
            let path = format!("/tus/{}", url.rsplit('/').next().unwrap());
            let patch = client.tus(server, Method::PATCH, &path).header("upload-offset", 0).body("some of it");
            Reply::to(patch.header("content-type", "application/offset+octet-stream")).await.expect(204);
            path
        };
        for (failpoint, is_gone) in ABORT {
            let path = begin(&server).await;
            server.stop().await;
            server = home.serve_with(&[("FAILPOINT", failpoint)]).await;
            let client = Client { alice: &alice, tenant: &tenant, id: None };
            assert!(client.tus(&server, Method::DELETE, &path).send().await.is_err(), "{failpoint} was not hit");
            assert_eq!(server.ended().await.signal_number(), Some(Signal::ABORT.as_raw()), "{failpoint}: {}", server.log());
            println!("{failpoint}: hit once");
            server = home.serve().await;
            Reply::to(client.tus(&server, Method::HEAD, &path)).await.expect(if *is_gone { 404 } else { 200 });
            Reply::to(client.tus(&server, Method::DELETE, &path)).await.expect(if *is_gone { 404 } else { 204 });
        }
        for failpoint in EXPIRE {
            let path = begin(&server).await;
            expire(&home).await;
            let status = home.command(["gc"]).env("FAILPOINT", failpoint).output().unwrap().status;
            assert_eq!(status.signal_number(), Some(Signal::ABORT.as_raw()), "{failpoint} was not hit");
            println!("{failpoint}: hit once");
            let client = Client { alice: &alice, tenant: &tenant, id: None };
            Reply::to(client.tus(&server, Method::HEAD, &path)).await.expect(404);
            home.run(["gc"]).expect(0);
        }
        home.settle(server).await;
    });
}

/// The number of the signal that ended a process.
trait SignalNumber {
    fn signal_number(&self) -> Option<i32>;
}

impl SignalNumber for std::process::ExitStatus {
    fn signal_number(&self) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(self)
    }
}
