//! The official tus client (tus-js-client on Node.js) against the program: through kills of the server and of its own.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Read},
    net::TcpListener,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{Persona, Reply};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    process::{Home, PATIENCE, Server},
    uploads::expire,
};

const MB: u64 = 1_000_000;
/// What a client may have sent that is not durable when a server or a client dies: a part (8 MiB), and what the kernel buffers.
const UNDERWAY: u64 = 24 * MB;
/// How long a client may be silent: while it waits for the document, it is.
const SILENCE: Duration = Duration::from_secs(120);

/// Where the client is installed. The folder with its lock file stays as it is checked in.
fn installed() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tus-client");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tus-client");
        fs::create_dir_all(&folder).unwrap();
        let one_at_a_time = File::create(folder.join("lock")).unwrap();
        one_at_a_time.lock().unwrap();
        for file in ["package.json", "package-lock.json", "upload.js"] {
            fs::copy(source.join(file), folder.join(file)).unwrap();
        }
        let version = output(Command::new("node").arg("--version"));
        let major = version.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
        assert!(major.is_some_and(|major| major >= 18), "Node.js {version} is too old. {NEEDED}");
        let (wanted, done) = (fs::read(folder.join("package-lock.json")).unwrap(), folder.join("installed"));
        if fs::read(&done).ok().as_ref() != Some(&wanted) {
            output(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder));
            fs::write(&done, wanted).unwrap();
        }
        folder
    })
}

const NEEDED: &str = "These tests need Node.js 18 or newer with npm (Debian: apt-get install nodejs npm).";

fn output(command: &mut Command) -> String {
    match command.output() {
        Ok(Output { status, stdout, .. }) if status.success() => String::from_utf8(stdout).unwrap(),
        Ok(Output { stderr, .. }) => panic!("{command:?}: {}", String::from_utf8_lossy(&stderr)),
        Err(error) if error.kind() == ErrorKind::NotFound => panic!("{command:?}: not found. {NEEDED}"),
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// A client at work on one file. Dropped, it is killed.
struct Client {
    child: Child,
    says: mpsc::UnboundedReceiver<Value>,
    /// What it has said so far.
    said: Vec<Value>,
}

impl Client {
    fn start(task: &Value) -> Self {
        let mut command = Command::new("node");
        command.arg("upload.js").arg(task.to_string()).current_dir(installed());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (send, says) = mpsc::unbounded_channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines {
                // Killed, it may leave half a line.
                if let Ok(said) = serde_json::from_str(&line.unwrap()) {
                    drop(send.send(said));
                }
            }
        });
        Self { child, says, said: Vec::new() }
    }

    /// Waits until it has sent so many bytes, and answers how many those are.
    async fn sent(&mut self, least: u64) -> u64 {
        loop {
            let said = timeout(SILENCE, self.says.recv()).await.ok().flatten();
            let said = said.unwrap_or_else(|| panic!("it has not sent {least} bytes: {}", self.log()));
            self.said.push(said);
            if let Some(sent) = self.said.last().unwrap()["sent"].as_u64().filter(|sent| *sent >= least) {
                return sent;
            }
        }
    }

    /// Waits for its end, which must be a success, and answers all that it said.
    async fn done(mut self) -> Vec<Value> {
        while let Some(said) = timeout(SILENCE, self.says.recv()).await.unwrap_or_else(|_| panic!("it hangs: {}", self.log())) {
            self.said.push(said);
        }
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
        std::mem::take(&mut self.said)
    }

    fn log(&self) -> String {
        self.said.iter().filter(|said| said["sent"].is_null()).map(|said| format!("{said}\n")).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What uploads are made of.
struct World {
    home: Home,
    port: String,
    alice: Persona,
    tenant: String,
    file: PathBuf,
    size: u64,
}

impl World {
    async fn new(size: u64) -> (Self, Server) {
        installed();
        let home = Home::new();
        let port = free_port().to_string();
        let server = serve(&home, &port).await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        let file = home.path().join("Ünïque.bin");
        let content = &mut File::open("/dev/urandom").unwrap().take(size);
        assert_eq!(io::copy(content, &mut File::create(&file).unwrap()).unwrap(), size);
        (Self { home, port, alice, tenant, file, size }, server)
    }

    fn documents(&self) -> String {
        format!("/api/tenants/{}/documents", self.tenant)
    }

    /// What a client has to do, and more of it.
    fn task(&self, server: &Server, more: &Value) -> Value {
        let mut task = json!({
            "endpoint": format!("{}{}/tus", server.base, self.documents()),
            "token": self.alice.access_token,
            "file": self.file,
            "filename": "Ünïque.bin",
        });
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        task
    }

    /// The document is there, once and byte for byte, and nothing else is.
    async fn ends_whole(self, server: Server, said: &[Value]) {
        let path = said.iter().find_map(|said| said["document"].as_str()).expect("a document");
        let alice = server.known(&self.alice);
        let found = alice.get(&self.documents()).await.expect(200);
        let [document] = found.items() else { panic!("{}", found.json) };
        assert_eq!(path, format!("{}/{}", self.documents(), document["id"].as_str().unwrap()));
        assert_eq!(document["filename"], "Ünïque.bin");
        let downloaded = alice.downloads(&self.tenant, document["id"].as_str().unwrap()).await;
        assert_eq!(Sha256::digest(&downloaded), Sha256::digest(fs::read(&self.file).unwrap()));
        drop(downloaded);
        self.holds(server, 1).await;
    }

    /// So many objects are left when all that is over is collected.
    async fn holds(self, server: Server, objects: usize) {
        expire(&self.home).await;
        self.home.run(["gc"]).expect(0);
        assert_eq!(self.home.object_keys().await.len(), objects);
        self.home.settle(server).await;
    }
}

async fn serve(home: &Home, port: &str) -> Server {
    home.serve_with(&[("PORT", port), ("MAX_UPLOAD_BYTES", "1GB")]).await
}

/// A port that stays free while a server is down: none that the kernel gives to others.
fn free_port() -> u16 {
    loop {
        let port = 20_000 + u16::from_le_bytes(domain::random_bytes()) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn random(among: RangeInclusive<u64>) -> u64 {
    among.start() + u64::from_le_bytes(domain::random_bytes()) % (among.end() - among.start() + 1)
}

/// Where the client went on, by what the server told it.
fn resumed_at(said: &[Value]) -> Vec<u64> {
    let heads = said.iter().filter(|said| said["method"] == "HEAD");
    heads
        .map(|said| {
            assert_eq!(said["status"], 200, "{said}");
            said["offset"].as_str().unwrap().parse().unwrap()
        })
        .collect()
}

fn count(said: &[Value], method: &str) -> usize {
    said.iter().filter(|said| said["method"] == method).count()
}

/// How many bytes went out, those that went out again included.
fn count_sent(said: &[Value]) -> u64 {
    let (mut whole, mut from, mut last) = (0, 0, 0);
    for said in said {
        if said["method"] == "HEAD" {
            whole += last - from;
            from = said["offset"].as_str().unwrap().parse().unwrap();
            last = from;
        } else if let Some(sent) = said["sent"].as_u64() {
            last = sent.max(last);
        }
    }
    whole + last - from
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_goes_on_through_three_kills_of_the_server() {
    let began = Instant::now();
    let (world, mut server) = World::new(200 * MB).await;
    let mut client = Client::start(&world.task(&server, &json!({})));
    let mut sent = Vec::new();
    // The last is within the last third.
    for moment in [35..=65, 80..=120, 135..=165] {
        sent.push(client.sent(random(moment) * MB).await);
        tokio::time::sleep(Duration::from_millis(random(0..=30))).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(random(0..=500))).await;
        server = serve(&world.home, &world.port).await;
    }
    let said = client.done().await;
    let resumed = resumed_at(&said);
    assert_eq!((resumed.len(), count(&said, "POST")), (3, 1), "{said:?}");
    for (sent, resumed) in sent.iter().zip(&resumed) {
        assert!(*resumed < world.size && resumed + UNDERWAY > *sent, "{sent} bytes were sent, {resumed} kept");
    }
    assert!(resumed.is_sorted());
    println!(
        "killed after {sent:?} bytes, resumed at {resumed:?}: sent {} bytes of {} in {:?}",
        count_sent(&said),
        world.size,
        began.elapsed()
    );
    world.ends_whole(server, &said).await;
    println!("{:?} in all", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_goes_on_after_its_own_death() {
    let (world, server) = World::new(60 * MB).await;
    let urls = world.home.path().join("urls.json");
    let task = world.task(&server, &json!({ "urls": urls }));
    let mut client = Client::start(&task);
    let sent = client.sent(random(30..=45) * MB).await;
    drop(client);

    let said = Client::start(&task).done().await;
    assert!(said[0]["resumed"].as_str().unwrap().contains("/documents/tus/"), "{said:?}");
    let resumed = resumed_at(&said);
    assert!(count(&said, "POST") == 0 && resumed[0] + UNDERWAY > sent, "{sent} bytes were sent, {resumed:?} kept");
    println!("killed after {sent} bytes, resumed at {resumed:?}");
    let stored: Value = serde_json::from_slice(&fs::read(&urls).unwrap()).unwrap();
    assert_eq!(stored, json!({}), "the client has forgotten the upload");
    world.ends_whole(server, &said).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_takes_an_upload_back() {
    let (world, server) = World::new(60 * MB).await;
    // By several requests: it notices how far it is now and then, but in any case at the end of each.
    let task = json!({ "abortAt": random(20..=45) * MB, "chunkSize": 10 * MB });
    let said = Client::start(&world.task(&server, &task)).done().await;
    let deleted = said.iter().find(|said| said["method"] == "DELETE").expect("a DELETE");
    assert_eq!((&deleted["status"], said.last().unwrap()), (&json!(204), &json!({ "aborted": true })), "{said:?}");
    let url = said.iter().find_map(|said| said["url"].as_str()).unwrap();
    Reply::to(world.alice.request(Method::HEAD, url).header("tus-resumable", "1.0.0")).await.expect(404);
    // The last part may have been on its way: it goes, too, without any collector.
    let deadline = Instant::now() + PATIENCE;
    while !world.home.object_keys().await.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", world.home.object_keys().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(world.alice.get(&world.documents()).await.expect(200).items().is_empty());
    world.holds(server, 0).await;
}
