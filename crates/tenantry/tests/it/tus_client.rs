//! The official tus client (tus-js-client on Node.js), with kills of the server and of the client.

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
    process::{Home, Server, WAIT_TIMEOUT},
    uploads::expire_uploads,
};

const MB: u64 = 1_000_000;
/// The bytes that a client may have sent and that are not durable when a process is killed: a part (8 MiB), and the kernel's
/// buffers.
const IN_FLIGHT: u64 = 24 * MB;
/// The maximum time without output from a client: it prints nothing while it waits for the document.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// Installs the client, and returns its folder: a copy of the checked-in one, which stays unchanged.
fn installed() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tus-client");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tus-client");
        fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        for file in ["package.json", "package-lock.json", "upload.js"] {
            fs::copy(source.join(file), folder.join(file)).unwrap();
        }
        let version = output(Command::new("node").arg("--version"));
        let major = version.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
        assert!(major.is_some_and(|major| major >= 18), "Node.js {version} is too old. {NEEDED}");
        let (wanted, installed) = (fs::read(folder.join("package-lock.json")).unwrap(), folder.join("installed"));
        if fs::read(&installed).ok().as_ref() != Some(&wanted) {
            output(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder));
            fs::write(&installed, wanted).unwrap();
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

/// A client that uploads one file. Killed when dropped.
struct Client {
    child: Child,
    receiver: mpsc::UnboundedReceiver<Value>,
    /// Its output so far.
    output: Vec<Value>,
}

impl Client {
    fn start(task: &Value) -> Self {
        let mut command = Command::new("node");
        command.arg("upload.js").arg(task.to_string()).current_dir(installed());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines {
                // A killed client may leave a partial line.
                if let Ok(line) = serde_json::from_str(&line.unwrap()) {
                    drop(sender.send(line));
                }
            }
        });
        Self { child, receiver, output: Vec::new() }
    }

    /// Waits until it has sent at least this number of bytes, and returns how many it has sent.
    async fn sent(&mut self, min: u64) -> u64 {
        loop {
            let line = timeout(READ_TIMEOUT, self.receiver.recv()).await.ok().flatten();
            let line = line.unwrap_or_else(|| panic!("the client has not sent {min} bytes: {}", self.log()));
            self.output.push(line);
            if let Some(sent) = self.output.last().unwrap()["sent"].as_u64().filter(|sent| *sent >= min) {
                return sent;
            }
        }
    }

    /// Waits for its successful exit, and returns its output.
    async fn done(mut self) -> Vec<Value> {
        while let Some(line) =
            timeout(READ_TIMEOUT, self.receiver.recv()).await.unwrap_or_else(|_| panic!("the client hangs: {}", self.log()))
        {
            self.output.push(line);
        }
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
        std::mem::take(&mut self.output)
    }

    fn log(&self) -> String {
        self.output.iter().filter(|line| line["sent"].is_null()).map(|line| format!("{line}\n")).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails when it has exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A server on a fixed port, and a file to upload.
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

    /// The task of a client, with further options.
    fn task(&self, server: &Server, options: &Value) -> Value {
        let mut task = json!({
            "endpoint": format!("{}{}/tus", server.base, self.documents()),
            "token": self.alice.access_token,
            "file": self.file,
            "filename": "Ünïque.bin",
        });
        task.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        task
    }

    /// Asserts that there is one document, byte for byte the file, and nothing else.
    async fn assert_uploaded(self, server: Server, output: &[Value]) {
        let path = output.iter().find_map(|line| line["document"].as_str()).expect("a document");
        let alice = server.known(&self.alice);
        let found = alice.get(&self.documents()).await.expect(200);
        let [document] = found.items() else { panic!("{}", found.json) };
        assert_eq!(path, format!("{}/{}", self.documents(), document["id"].as_str().unwrap()));
        assert_eq!(document["filename"], "Ünïque.bin");
        let downloaded = alice.downloads(&self.tenant, document["id"].as_str().unwrap()).await;
        assert_eq!(Sha256::digest(&downloaded), Sha256::digest(fs::read(&self.file).unwrap()));
        drop(downloaded);
        self.assert_objects(server, 1).await;
    }

    /// Asserts that this number of objects is left after a garbage collection.
    async fn assert_objects(self, server: Server, objects: usize) {
        expire_uploads(&self.home).await;
        self.home.run(["gc"]).expect(0);
        assert_eq!(self.home.object_keys().await.len(), objects);
        self.home.stop_and_check(server).await;
    }
}

async fn serve(home: &Home, port: &str) -> Server {
    home.serve_with(&[("PORT", port), ("MAX_UPLOAD_BYTES", "1GB")]).await
}

/// A port outside the kernel's ephemeral range, which stays free while the server is down.
fn free_port() -> u16 {
    loop {
        let port = 20_000 + u16::from_le_bytes(domain::random_bytes()) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn random(range: RangeInclusive<u64>) -> u64 {
    range.start() + u64::from_le_bytes(domain::random_bytes()) % (range.end() - range.start() + 1)
}

/// The offsets at which the client resumed.
fn resumed_at(output: &[Value]) -> Vec<u64> {
    let heads = output.iter().filter(|line| line["method"] == "HEAD");
    heads
        .map(|head| {
            assert_eq!(head["status"], 200, "{head}");
            head["offset"].as_str().unwrap().parse().unwrap()
        })
        .collect()
}

fn count(output: &[Value], method: &str) -> usize {
    output.iter().filter(|line| line["method"] == method).count()
}

/// The number of sent bytes, including those that were sent again.
fn count_sent(output: &[Value]) -> u64 {
    let (mut total, mut from, mut last) = (0, 0, 0);
    for line in output {
        if line["method"] == "HEAD" {
            total += last - from;
            from = line["offset"].as_str().unwrap().parse().unwrap();
            last = from;
        } else if let Some(sent) = line["sent"].as_u64() {
            last = sent.max(last);
        }
    }
    total + last - from
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_resumes_after_three_kills_of_the_server() {
    let began = Instant::now();
    let (world, mut server) = World::new(200 * MB).await;
    let mut client = Client::start(&world.task(&server, &json!({})));
    let mut sent = Vec::new();
    // The last kill is in the last third.
    for megabytes in [35..=65, 80..=120, 135..=165] {
        sent.push(client.sent(random(megabytes) * MB).await);
        tokio::time::sleep(Duration::from_millis(random(0..=30))).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(random(0..=500))).await;
        server = serve(&world.home, &world.port).await;
    }
    let output = client.done().await;
    let resumed = resumed_at(&output);
    assert_eq!((resumed.len(), count(&output, "POST")), (3, 1), "{output:?}");
    for (sent, resumed) in sent.iter().zip(&resumed) {
        assert!(*resumed < world.size && resumed + IN_FLIGHT > *sent, "{sent} bytes were sent, {resumed} kept");
    }
    assert!(resumed.is_sorted());
    println!(
        "killed after {sent:?} bytes, resumed at {resumed:?}: sent {} bytes of {} in {:?}",
        count_sent(&output),
        world.size,
        began.elapsed()
    );
    world.assert_uploaded(server, &output).await;
    println!("{:?} in total", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_resumes_after_its_own_kill() {
    let (world, server) = World::new(60 * MB).await;
    let urls = world.home.path().join("urls.json");
    let task = world.task(&server, &json!({ "urls": urls }));
    let mut client = Client::start(&task);
    let sent = client.sent(random(30..=45) * MB).await;
    drop(client);

    let output = Client::start(&task).done().await;
    assert!(output[0]["resumed"].as_str().unwrap().contains("/documents/tus/"), "{output:?}");
    let resumed = resumed_at(&output);
    assert!(count(&output, "POST") == 0 && resumed[0] + IN_FLIGHT > sent, "{sent} bytes were sent, {resumed:?} kept");
    println!("killed after {sent} bytes, resumed at {resumed:?}");
    let stored: Value = serde_json::from_slice(&fs::read(&urls).unwrap()).unwrap();
    assert_eq!(stored, json!({}), "the client has removed the upload");
    world.assert_uploaded(server, &output).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_aborts_an_upload() {
    let (world, server) = World::new(60 * MB).await;
    // In several requests, since the client is sure to report its progress at the end of each.
    let task = json!({ "abortAt": random(20..=45) * MB, "chunkSize": 10 * MB });
    let output = Client::start(&world.task(&server, &task)).done().await;
    let deleted = output.iter().find(|line| line["method"] == "DELETE").expect("a DELETE");
    assert_eq!((&deleted["status"], output.last().unwrap()), (&json!(204), &json!({ "aborted": true })), "{output:?}");
    let url = output.iter().find_map(|line| line["url"].as_str()).unwrap();
    Reply::to(world.alice.request(Method::HEAD, url).header("tus-resumable", "1.0.0")).await.expect(404);
    // The last part may have been in flight; it is deleted without a garbage collection, too.
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !world.home.object_keys().await.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", world.home.object_keys().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(world.alice.get(&world.documents()).await.expect(200).items().is_empty());
    world.assert_objects(server, 0).await;
}
