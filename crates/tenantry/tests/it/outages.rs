//! Invalid configurations, full disks and outages: an outage affects only what depends on it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use testkit::{Persona, Reply};

use crate::process::{CommandOutput, Home, Server, WAIT_TIMEOUT};

#[test]
fn a_refused_start_prints_one_line() {
    let home = Home::new();
    let serve = |variables: &[(&str, &str)]| CommandOutput::of(home.command(["serve"]).envs(variables.iter().copied()));
    let secret = ("JWT_SECRET_KEY", "c4b1f7a09d3e5268c4b1f7a09d3e5268");

    let unknown = serve(&[("TENANTRY_PROT", "1")]);
    assert_eq!(unknown.error_line(2), "tenantry: TENANTRY_PROT is unknown; did you mean PORT?");
    let malformed = serve(&[("DATABASE_URL", "mysql://u:hush@h/d")]);
    assert!(malformed.error_line(2).starts_with("tenantry: DATABASE_URL must be sqlite:PATH or postgres://"), "{malformed:?}");
    assert!(!malformed.err.contains("hush"), "{malformed:?}");

    // Nothing listens on port 1.
    let unreachable = serve(&[("DATABASE_URL", "postgres://u:hush@127.0.0.1:1/d")]);
    assert!(unreachable.error_line(1).contains("main database") && unreachable.err.contains("refused"), "{unreachable:?}");
    assert!(!unreachable.err.contains("hush"), "{unreachable:?}");

    // A file in place of the directory: not even root can write there.
    fs::write(home.path().join("file"), "").unwrap();
    let data_dir = home.path().join("file/data");
    let unwritable = serve(&[("DATA_DIR", data_dir.to_str().unwrap()), secret]);
    assert!(unwritable.error_line(1).contains(data_dir.to_str().unwrap()), "{unwritable:?}");
    let no_secret_file = serve(&[("DATA_DIR", data_dir.to_str().unwrap())]);
    assert!(no_secret_file.error_line(2).contains("jwt_secret cannot be read or created"), "{no_secret_file:?}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port_taken = serve(&[("PORT", &address.port().to_string())]);
    let expected = format!("tenantry: listen on {address} (HOST, PORT): Address already in use");
    assert!(port_taken.error_line(1).starts_with(&expected), "{port_taken:?}");
}

/// Asserts that a dependency is unavailable.
#[track_caller]
fn assert_unavailable(reply: Reply, dependency: &str) {
    let reply = reply.expect_error(503, "service_unavailable");
    assert!(reply.header("retry-after").parse::<u32>().unwrap() > 0);
    assert_eq!(reply.json["error"]["details"]["dependency"], dependency, "{}", reply.json);
}

#[tokio::test]
async fn a_full_disk_only_refuses_large_uploads() {
    let home = Home::new();
    let program = home.command(["serve"]);
    // Limits files to about 1 MiB and ignores the signal: the closest thing to a full disk without a file system of its own.
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$0\" serve"]).arg(program.get_program());
    limited.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.current_dir(home.path()).stdin(Stdio::null());
    let server = Server::start(limited, home.path()).await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let small = alice.uploads(&tenant, "small.txt", "small").await.expect(201).id();
    for _ in 0..3 {
        // On a new connection: the server closes it when it responds before the end of the body.
        let alice = server.stranger().with_token(alice.access_token.as_deref().unwrap());
        assert_unavailable(alice.uploads(&tenant, "large.bin", vec![7; 3_000_000]).await, "object storage");
    }
    let spooled: Vec<_> = walk(&home.path().join("spool")).into_iter().filter(|path| path.is_file()).collect();
    assert_eq!(spooled, Vec::<PathBuf>::new(), "a failed upload leaves no spool file");
    assert_eq!(alice.downloads(&tenant, &small).await, b"small");
    alice.uploads(&tenant, "another.txt", "another").await.expect(201);
    server.stop().await;

    let server = home.serve().await;
    server.known(&alice).uploads(&tenant, "large.bin", vec![7; 3_000_000]).await.expect(201);
    server.stop().await;
    home.assert_consistent().await;
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_missing_or_swapped_database_file_affects_one_tenant_only() {
    let home = Home::new();
    if !home.is_sqlite() {
        // There is no file. The database crate tests missing and swapped databases on both engines.
        return;
    }
    let server = home.serve().await;
    let alice = server.user("alice").await;
    let (acme, best) = (alice.creates_tenant("Acme").await, alice.creates_tenant("Best").await);
    alice.uploads(&acme, "acme.txt", "acme").await.expect(201);
    alice.uploads(&best, "best.txt", "best").await.expect(201);
    let list = |tenant: &str| format!("/api/tenants/{tenant}/documents");

    let away = home.path().join("away");
    fs::create_dir(&away).unwrap();
    let tenants = home.path().join("tenants");
    move_database(&tenants, "tenant_acme", &away);
    // Readers check every quarter of a second that a file is still the same one; writers always check.
    assert_unavailable(alice.uploads(&acme, "lost.txt", "must not be acknowledged").await, "database");
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..8 {
        assert_unavailable(alice.get(&list(&acme)).await, "database");
        assert_unavailable(alice.uploads(&acme, "lost.txt", "must not be acknowledged").await, "database");
        assert_eq!(alice.get(&list(&best)).await.expect(200).items().len(), 1);
    }

    let name = files_of(&away, "tenant_acme").into_iter().find(|name| name.ends_with(".sqlite3")).unwrap();
    for file in files_of(&tenants, "tenant_best") {
        let suffix = file.split_once(".sqlite3").unwrap().1;
        fs::copy(tenants.join(&file), tenants.join(format!("{name}{suffix}"))).unwrap();
    }
    for _ in 0..8 {
        assert_unavailable(alice.get(&list(&acme)).await, "database");
        assert_unavailable(alice.uploads(&acme, "secret.txt", "must not reach another tenant").await, "database");
        assert_eq!(alice.get(&list(&best)).await.expect(200).items().len(), 1);
    }

    for file in files_of(&tenants, "tenant_acme") {
        fs::remove_file(tenants.join(file)).unwrap();
    }
    move_database(&away, "tenant_acme", &tenants);
    assert_eq!(alice.get(&list(&acme)).await.expect(200).items()[0]["filename"], "acme.txt");
    alice.uploads(&acme, "more.txt", "more").await.expect(201);
    server.stop().await;
    home.assert_consistent().await;
}

fn files_of(folder: &Path, prefix: &str) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Moves a database file with its log.
fn move_database(from: &Path, prefix: &str, to: &Path) {
    for file in files_of(from, prefix) {
        fs::rename(from.join(&file), to.join(&file)).unwrap();
    }
}

/// A PostgreSQL server for one test. Stopped when dropped.
struct Cluster {
    folder: tempfile::TempDir,
    port: u16,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Self { folder, port };
        if rustix::process::geteuid().is_root() {
            // PostgreSQL refuses to run as root.
            assert!(Command::new("chown").arg("postgres:").arg(cluster.folder.path()).status().unwrap().success());
        }
        cluster.run("initdb", &["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8"]);
        cluster.start();
        cluster
    }

    fn start(&self) {
        let options = format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=", self.port);
        let log = self.folder.path().join("log");
        self.run("pg_ctl", &["start", "-w", "-l", log.to_str().unwrap(), "-o", &options]);
    }

    fn stop(&self) {
        self.run("pg_ctl", &["stop", "-w", "-m", "immediate"]);
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/tenantry", self.port)
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let bin = Command::new("pg_config").arg("--bindir").output().ok().filter(|found| found.status.success());
        let bin = bin.map(|found| PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())).filter(|bin| bin.join(program).exists());
        let bin = bin.or_else(|| {
            let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
            versions.map(|version| version.unwrap().path().join("bin")).find(|bin| bin.join(program).exists())
        });
        let program = bin.expect("PostgreSQL's programs are installed").join(program);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg("-D").arg(self.folder.path().join("data")).args(arguments).current_dir("/");
        // Without inherited streams, which the server would keep open.
        assert!(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success(), "{command:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.folder.path().join("data/postmaster.pid").exists() {
            self.stop();
        }
    }
}

#[tokio::test]
async fn an_outage_of_the_database_server_needs_no_restart() {
    let home = Home::new();
    if home.is_sqlite() {
        // There is no server to stop.
        return;
    }
    let cluster = Cluster::new();
    let server = home.serve_with(&[("DATABASE_URL", &cluster.url())]).await;
    let alice = server.user("alice").await;
    let tenant = alice.creates_tenant("Acme").await;
    let kept = alice.uploads(&tenant, "kept.txt", "kept").await.expect(201).id();
    let url = alice.get(&format!("/api/tenants/{tenant}/documents/{kept}/download?redirect=false")).await.expect(200);
    let url = url.data()["url"].as_str().unwrap().to_owned();
    for round in 0..2 {
        cluster.stop();
        let list = format!("/api/tenants/{tenant}/documents");
        for _ in 0..5 {
            assert_unavailable(alice.get(&list).await, "database");
            assert_unavailable(alice.uploads(&tenant, "a.txt", "a").await, "database");
            assert_unavailable(alice.post("/api/tenants", &serde_json::json!({ "name": "Best" })).await, "database");
        }
        // Routes that need no database keep working.
        server.stranger().get("/health").await.expect(200);
        assert_eq!(server.stranger().get(&url).await.expect(200).bytes, b"kept");
        let ready = server.stranger().get("/health/ready").await.expect_error(503, "not_ready");
        assert!(ready.header("retry-after").parse::<u32>().unwrap() > 0);
        assert_eq!(
            (&ready.json["error"]["details"]["database"], &ready.json["error"]["details"]["object storage"]),
            (&"down".into(), &"up".into())
        );

        cluster.start();
        wait_until_available(&alice, &list).await;
        alice.uploads(&tenant, "a.txt", format!("round {round}")).await.expect(201);
        assert_eq!(alice.get(&list).await.expect(200).items().len(), round + 2);
        server.stranger().get("/health/ready").await.expect(200);
    }
    server.stop().await;
}

async fn wait_until_available(alice: &Persona, path: &str) {
    let started = Instant::now();
    while alice.get(path).await.status != 200 {
        assert!(started.elapsed() < WAIT_TIMEOUT, "the server does not recover");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
