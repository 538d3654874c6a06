//! Objects: what storing and fetching content costs, beside the best clients and servers for that alone.

use std::{
    fmt,
    fs::File,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::value_parser;
use comfy_table::{Table, presets};
use object_store::{
    ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
};
use serde::Serialize;
use url::Url;

use crate::{
    fixture::{Tenant, User},
    load::{Connection, Load, Outcome, Request},
    place::Place,
    process::{Tenantry, free_address},
    progress,
    report::median,
};

/// Bytes of a small upload, and connections that send such.
const SMALL: usize = 10_000;
const CLIENTS: usize = 32;
/// Large uploads at once.
const AT_ONCE: usize = 8;
/// Bytes of a download.
const DOWNLOAD: usize = 100_000_000;
/// The variables of the server that the S3 store is named by.
const VARIABLES: [&str; 4] = ["S3_ENDPOINT_URL", "S3_BUCKET", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"];

/// Which store, beside what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The endpoint of an S3 store with a bucket for the benchmark
    #[arg(long, env = "TEST_S3_ENDPOINT_URL")]
    endpoint: String,
    /// The bucket
    #[arg(long, env = "TEST_S3_BUCKET")]
    bucket: String,
    /// The id of the access key
    #[arg(long, env = "TEST_S3_ACCESS_KEY_ID")]
    key_id: String,
    /// Its secret
    #[arg(long, env = "TEST_S3_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret: String,
    /// The AWS CLI, the client to compare with
    #[arg(long, default_value = "aws")]
    aws: PathBuf,
    /// nginx, the server to compare with
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// MiB of a large upload
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u16).range(64..=8192))]
    large: u16,
}

/// The figures.
#[derive(Serialize)]
pub(crate) struct Objects {
    large_mib: u16,
    findings: Vec<(&'static str, f64)>,
}

/// Measures in an empty place; what is compared so many times, for the median.
pub(crate) async fn measure(options: &Options, place: &Place, tenantry: &Tenantry, seconds: Duration, repeat: u16) -> Result<Objects> {
    let mut findings = Vec::new();
    let values = [&options.endpoint, &options.bucket, &options.key_id, &options.secret];
    let mut variables: Vec<_> = VARIABLES.into_iter().zip(values.map(String::as_str)).collect();
    variables.push(("MAX_UPLOAD_BYTES", "20GiB"));
    {
        let server = tenantry.start_with(&variables)?;
        let mut api = Connection::open(server.address).await?;
        let writer = User::register(&mut api, "writer@example.com").await?;
        progress("small uploads to S3");
        let mut tenants = vec![Tenant::create(&mut api, &writer).await?];
        while tenants.len() < CLIENTS {
            tenants.push(Tenant::create(&mut api, &writer).await?);
        }
        let mut rounds = Vec::new();
        for _ in 0..usize::from(repeat) {
            let bare = bare_puts(options, seconds).await?;
            let over_all = small_uploads(server.address, &writer, &tenants, seconds).await?;
            let over_one = small_uploads(server.address, &writer, &tenants[..1], seconds).await?;
            rounds.push((bare, over_all, over_one));
        }
        findings.push(("bare PUTs of 10 kB per second, same library", median(rounds.iter().map(|(bare, ..)| *bare))));
        findings.push(("uploads of 10 kB per second, 32 tenants", median(rounds.iter().map(|(_, all, _)| *all))));
        findings.push(("uploads over 32 tenants / bare PUTs", median(rounds.iter().map(|(bare, all, _)| all / bare))));
        findings.push(("uploads of 10 kB per second, one tenant", median(rounds.iter().map(|(.., one)| *one))));
        findings.push(("uploads over one tenant / bare PUTs", median(rounds.iter().map(|(bare, _, one)| one / bare))));

        let size = usize::from(options.large) * 1024 * 1024;
        let file = place.directory().join("large");
        write_file(&file, size)?;
        for (at_once, what) in [
            (1, ["a large upload by the AWS CLI, MB/s", "a large upload, MB/s", "large upload / AWS CLI"]),
            (AT_ONCE, ["eight by the AWS CLI, MB/s", "eight at once, MB/s", "eight at once / AWS CLI"]),
        ] {
            progress(what[1]);
            let megabytes = (size * at_once) as f64 / 1e6;
            let mut rounds = Vec::new();
            for round in 0..usize::from(repeat) {
                let cli = megabytes / aws_uploads(options, &file, round, at_once)?.as_secs_f64();
                let before = server.memory()?;
                server.forget_peak_memory()?;
                let ours = megabytes / uploads(server.address, &writer, &tenants[0], size, at_once).await?.as_secs_f64();
                rounds.push((cli, ours, server.peak_memory()? - before));
            }
            findings.push((what[0], median(rounds.iter().map(|(cli, ..)| *cli))));
            findings.push((what[1], median(rounds.iter().map(|(_, ours, _)| *ours))));
            findings.push((what[2], median(rounds.iter().map(|(cli, ours, _)| ours / cli))));
            if at_once > 1 {
                findings.push(("growth of memory meanwhile, MiB", rounds.iter().map(|(.., growth)| *growth).fold(0.0, f64::max)));
            }
        }
        server.stop()?;
    }
    progress("downloads from the local disk");
    let server = tenantry.start()?;
    let mut api = Connection::open(server.address).await?;
    let reader = User::register(&mut api, "reader@example.com").await?;
    let tenant = Tenant::create(&mut api, &reader).await?;
    let document = reader.uploaded(&mut api, &tenant, DOWNLOAD).await?;
    let url = api.call(&reader.get_download(&tenant, document)).await?["url"].as_str().context("a download has no URL")?.to_owned();
    let url = Url::parse(&url)?;
    let file = place.directory().join("download");
    write_file(&file, DOWNLOAD)?;
    let nginx = Nginx::start(options, place.directory())?;
    let ours = Request::get_without_token(&url[url::Position::BeforePath..]);
    let theirs = Request::get_without_token("/download");
    let mut rounds = Vec::new();
    for _ in 0..usize::from(repeat) {
        rounds.push((downloads(nginx.address, &theirs, seconds).await?, downloads(server.address, &ours, seconds).await?));
    }
    findings.push(("downloads by nginx, MB/s", median(rounds.iter().map(|(nginx, _)| *nginx))));
    findings.push(("downloads, MB/s", median(rounds.iter().map(|(_, ours)| *ours))));
    findings.push(("downloads / nginx", median(rounds.iter().map(|(nginx, ours)| ours / nginx))));
    server.stop()?;
    Ok(Objects { large_mib: options.large, findings })
}

fn write_file(path: &Path, size: usize) -> Result<()> {
    let piece: Vec<u8> = (0..1_usize << 20).map(|n| (n * n / 7).to_le_bytes()[0]).collect();
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        file.write_all(&piece[..left.min(piece.len())])?;
        left -= left.min(piece.len());
    }
    Ok(file.sync_all()?)
}

/// Small uploads per second, spread over tenants.
async fn small_uploads(address: SocketAddr, writer: &User, tenants: &[Tenant], duration: Duration) -> Result<f64> {
    let requests = tenants.iter().map(|tenant| writer.upload(tenant, SMALL)).collect();
    let load = Load { address, requests, connections: CLIENTS, duration, expected_status: 201 };
    let Outcome { latencies, failed, elapsed } = load.run().await?;
    ensure!(failed == 0, "{failed} uploads failed");
    Ok(latencies.total() as f64 / elapsed.as_secs_f64())
}

/// PUTs of small objects per second by the library that the product uses, and nothing around it, under keys as the product's: every
/// one lies in a directory of its own, which costs some stores.
async fn bare_puts(options: &Options, duration: Duration) -> Result<f64> {
    let store: Arc<AmazonS3> = Arc::new(
        AmazonS3Builder::new()
            .with_endpoint(&options.endpoint)
            .with_allow_http(true)
            .with_bucket_name(&options.bucket)
            .with_region("us-east-1")
            .with_access_key_id(&options.key_id)
            .with_secret_access_key(&options.secret)
            .build()?,
    );
    let began = Instant::now();
    let run = uuid::Uuid::new_v4();
    let puts = (0..CLIENTS).map(|client| {
        let store = Arc::clone(&store);
        async move {
            let mut content = vec![b'.'; SMALL];
            let mut stored = 0_u64;
            while began.elapsed() < duration {
                content[..8].copy_from_slice(&stored.to_be_bytes());
                let md5 = uuid::Uuid::new_v4().simple().to_string();
                let key = format!("tenants/{run}/files/{}/{}/{md5}_{client}", &md5[..2], &md5[2..4]);
                let path = object_store::path::Path::from(key);
                store.put(&path, Bytes::copy_from_slice(&content).into()).await?;
                stored += 1;
            }
            Ok::<_, object_store::Error>(stored)
        }
    });
    let stored: u64 = futures_util::future::try_join_all(puts).await?.into_iter().sum();
    Ok(stored as f64 / began.elapsed().as_secs_f64())
}

/// How long the AWS CLI takes for so many uploads at once.
fn aws_uploads(options: &Options, file: &Path, round: usize, at_once: usize) -> Result<Duration> {
    let began = Instant::now();
    let started: Vec<Child> = (0..at_once)
        .map(|n| {
            let mut command = Command::new(&options.aws);
            command.args(["s3", "cp", "--only-show-errors", "--endpoint-url", &options.endpoint]).arg(file);
            command.arg(format!("s3://{}/bench/{round}-{n}", options.bucket));
            command.env("AWS_ACCESS_KEY_ID", &options.key_id).env("AWS_SECRET_ACCESS_KEY", &options.secret);
            command.env("AWS_DEFAULT_REGION", "us-east-1").stdin(Stdio::null()).spawn().context("run the AWS CLI")
        })
        .collect::<Result<_>>()?;
    for mut child in started {
        ensure!(child.wait()?.success(), "the AWS CLI failed");
    }
    Ok(began.elapsed())
}

/// How long so many uploads at once take.
async fn uploads(server: SocketAddr, writer: &User, tenant: &Tenant, size: usize, at_once: usize) -> Result<Duration> {
    let began = Instant::now();
    let uploads = (0..at_once).map(async |_| {
        let mut api = Connection::open(server).await?;
        writer.uploaded(&mut api, tenant, size).await
    });
    futures_util::future::try_join_all(uploads).await?;
    Ok(began.elapsed())
}

/// MB per second that four connections get.
async fn downloads(address: SocketAddr, request: &Request, duration: Duration) -> Result<f64> {
    let began = Instant::now();
    let connections = (0..4).map(async |_| {
        let mut connection = Connection::open(address).await?;
        let mut bytes = 0;
        while began.elapsed() < duration {
            bytes += connection.download(request).await?;
        }
        Ok::<_, anyhow::Error>(bytes)
    });
    let bytes: usize = futures_util::future::try_join_all(connections).await?.into_iter().sum();
    Ok(bytes as f64 / 1e6 / began.elapsed().as_secs_f64())
}

/// nginx over a directory, as it comes: a process for each core, `sendfile`. Killed when dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    fn start(options: &Options, directory: &Path) -> Result<Self> {
        let address = free_address()?;
        let root = directory.display();
        let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
        let configuration = format!(
            "daemon off; {user} worker_processes auto; pid {root}/nginx.pid; error_log {root}/nginx.log;
             events {{ worker_connections 1024; }}
             http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {root}/nginx-body; proxy_temp_path {root}/nginx-proxy;
                     fastcgi_temp_path {root}/nginx-fastcgi; uwsgi_temp_path {root}/nginx-uwsgi; scgi_temp_path {root}/nginx-scgi;
                     server {{ listen {address}; root {root}; }} }}"
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let child = Command::new(&options.nginx).arg("-c").arg(&file).stdin(Stdio::null()).spawn().context("run nginx")?;
        let nginx = Self { child, address };
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(5), "nginx does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers when it is asked to; it may be gone already.
        let _asked = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        let _gone = self.child.wait();
    }
}

impl Objects {
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["", "found"]);
        for (what, value) in &self.findings {
            table.add_row([(*what).to_owned(), format!("{value:.2}")]);
        }
        write!(f, "large uploads of {} MiB\n{table}", self.large_mib)
    }
}
