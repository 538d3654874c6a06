//! Objects: the cost of storing and fetching content, beside the best specialised clients and servers.

use std::{
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
use object_store::{
    ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
};
use serde_json::json;
use url::Url;

use crate::{
    environment::Environment,
    fixture::{Tenant, User},
    load::{Connection, Load, Outcome, Request},
    process::{Server, Tenantry, free_address},
    progress,
    report::{Report, median},
};

/// Bytes of a small upload, and the number of connections that upload.
const SMALL: usize = 10_000;
const CLIENTS: usize = 32;
/// The number of concurrent large uploads.
const UPLOAD_CONCURRENCY: usize = 8;
/// Bytes of a download.
const DOWNLOAD: usize = 100_000_000;
/// The server's variables for the S3 store.
const VARIABLES: [&str; 4] = ["S3_ENDPOINT_URL", "S3_BUCKET", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"];

/// The S3 store, and the programs to compare with.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The endpoint of an S3 store
    #[arg(long, env = "TEST_S3_ENDPOINT_URL")]
    endpoint: String,
    /// A bucket for the benchmark
    #[arg(long, env = "TEST_S3_BUCKET")]
    bucket: String,
    /// The access key id
    #[arg(long, env = "TEST_S3_ACCESS_KEY_ID")]
    key_id: String,
    /// The secret access key
    #[arg(long, env = "TEST_S3_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret: String,
    /// The program of the AWS CLI
    #[arg(long, default_value = "aws")]
    aws: PathBuf,
    /// The program of nginx
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Size of a large upload in MiB
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u16).range(64..=8192))]
    large: u16,
}

/// Measures in an empty environment; comparisons are repeated, and their median is reported.
pub(crate) async fn measure(
    options: &Options,
    environment: &Environment,
    tenantry: &Tenantry,
    seconds: Duration,
    repeat: u16,
) -> Result<Report> {
    let report = Report::new(format!("large uploads of {} MiB", options.large), json!({ "large_mib": options.large }))?;
    let mut bench = Bench { options, environment, tenantry, seconds, repeat: repeat.into(), report };
    bench.measure_s3().await?;
    bench.measure_downloads().await?;
    Ok(bench.report)
}

/// A run, and its report so far.
struct Bench<'a> {
    options: &'a Options,
    environment: &'a Environment,
    tenantry: &'a Tenantry,
    seconds: Duration,
    repeat: usize,
    report: Report,
}

impl Bench<'_> {
    /// Measures uploads to S3.
    async fn measure_s3(&mut self) -> Result<()> {
        let Options { endpoint, bucket, key_id, secret, .. } = self.options;
        let values = [endpoint, bucket, key_id, secret];
        let mut variables: Vec<_> = VARIABLES.into_iter().zip(values.map(String::as_str)).collect();
        variables.push(("MAX_UPLOAD_BYTES", "20GiB"));
        let server = self.tenantry.start_with(&variables)?;
        let mut api = Connection::open(server.address).await?;
        let writer = User::register(&mut api, "writer@example.com").await?;
        let mut tenants = vec![Tenant::create(&mut api, &writer).await?];
        while tenants.len() < CLIENTS {
            tenants.push(Tenant::create(&mut api, &writer).await?);
        }
        self.measure_small_uploads(&server, &writer, &tenants).await?;
        self.measure_large_uploads(&server, &writer, &tenants[0]).await?;
        server.stop()
    }

    async fn measure_small_uploads(&mut self, server: &Server, writer: &User, tenants: &[Tenant]) -> Result<()> {
        progress("small uploads to S3");
        let mut rounds = Vec::new();
        for _ in 0..self.repeat {
            let bare = bare_puts(self.options, self.seconds).await?;
            let over_all = small_uploads(server.address, writer, tenants, self.seconds).await?;
            let over_one = small_uploads(server.address, writer, &tenants[..1], self.seconds).await?;
            rounds.push((bare, over_all, over_one));
        }
        let report = &mut self.report;
        report.add("bare PUTs of 10 kB per second, same library", median(rounds.iter().map(|(bare, ..)| *bare)));
        report.add("uploads of 10 kB per second, 32 tenants", median(rounds.iter().map(|(_, all, _)| *all)));
        report.add("uploads over 32 tenants / bare PUTs", median(rounds.iter().map(|(bare, all, _)| all / bare)));
        report.add("uploads of 10 kB per second, one tenant", median(rounds.iter().map(|(.., one)| *one)));
        report.add("uploads over one tenant / bare PUTs", median(rounds.iter().map(|(bare, _, one)| one / bare)));
        Ok(())
    }

    async fn measure_large_uploads(&mut self, server: &Server, writer: &User, tenant: &Tenant) -> Result<()> {
        let size = usize::from(self.options.large) * 1024 * 1024;
        let file = self.environment.directory().join("large");
        write_file(&file, size)?;
        for (concurrency, names) in [
            (1, ["a large upload by the AWS CLI, MB/s", "a large upload, MB/s", "large upload / AWS CLI"]),
            (UPLOAD_CONCURRENCY, ["eight by the AWS CLI, MB/s", "eight at once, MB/s", "eight at once / AWS CLI"]),
        ] {
            progress(names[1]);
            let megabytes = (size * concurrency) as f64 / 1e6;
            let mut rounds = Vec::new();
            for round in 0..self.repeat {
                let cli = megabytes / aws_uploads(self.options, &file, round, concurrency)?.as_secs_f64();
                let before = server.memory()?;
                server.reset_peak_memory()?;
                let ours = megabytes / uploads(server.address, writer, tenant, size, concurrency).await?.as_secs_f64();
                rounds.push((cli, ours, server.peak_memory()? - before));
            }
            self.report.add(names[0], median(rounds.iter().map(|(cli, ..)| *cli)));
            self.report.add(names[1], median(rounds.iter().map(|(_, ours, _)| *ours)));
            self.report.add(names[2], median(rounds.iter().map(|(cli, ours, _)| ours / cli)));
            if concurrency > 1 {
                let growth = rounds.iter().map(|(.., growth)| *growth).fold(0.0, f64::max);
                self.report.add("growth of memory meanwhile, MiB", growth);
            }
        }
        Ok(())
    }

    /// Measures downloads from the local disk.
    async fn measure_downloads(&mut self) -> Result<()> {
        progress("downloads from the local disk");
        let server = self.tenantry.start()?;
        let mut api = Connection::open(server.address).await?;
        let reader = User::register(&mut api, "reader@example.com").await?;
        let tenant = Tenant::create(&mut api, &reader).await?;
        let document = reader.upload_document(&mut api, &tenant, DOWNLOAD).await?;
        let download = api.call(&reader.get_download(&tenant, document)).await?;
        let url = Url::parse(download["url"].as_str().context("a download has no URL")?)?;
        write_file(&self.environment.directory().join("download"), DOWNLOAD)?;
        let nginx = Nginx::start(self.options, self.environment.directory())?;
        let ours = Request::get_without_token(&url[url::Position::BeforePath..]);
        let theirs = Request::get_without_token("/download");
        let mut rounds = Vec::new();
        for _ in 0..self.repeat {
            let by_nginx = downloads(nginx.address, &theirs, self.seconds).await?;
            rounds.push((by_nginx, downloads(server.address, &ours, self.seconds).await?));
        }
        self.report.add("downloads by nginx, MB/s", median(rounds.iter().map(|(nginx, _)| *nginx)));
        self.report.add("downloads, MB/s", median(rounds.iter().map(|(_, ours)| *ours)));
        self.report.add("downloads / nginx", median(rounds.iter().map(|(nginx, ours)| ours / nginx)));
        server.stop()
    }
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

/// PUTs of small objects per second by the product's library alone. The keys look like the product's: each is in a directory of its
/// own, which is expensive for some stores.
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

/// The duration of concurrent uploads by the AWS CLI.
fn aws_uploads(options: &Options, file: &Path, round: usize, concurrency: usize) -> Result<Duration> {
    let began = Instant::now();
    let started: Vec<Child> = (0..concurrency)
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

/// The duration of concurrent uploads to the product.
async fn uploads(server: SocketAddr, writer: &User, tenant: &Tenant, size: usize, concurrency: usize) -> Result<Duration> {
    let began = Instant::now();
    let uploads = (0..concurrency).map(async |_| {
        let mut api = Connection::open(server).await?;
        writer.upload_document(&mut api, tenant, size).await
    });
    futures_util::future::try_join_all(uploads).await?;
    Ok(began.elapsed())
}

/// Download rate of four connections in MB/s.
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

/// nginx serving a directory with its defaults: a process for each core, `sendfile`. Stopped when dropped.
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
            ensure!(began.elapsed() < Duration::from_secs(5), "nginx does not respond");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master stops its workers; it may have exited already.
        let _signalled = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        let _exited = self.child.wait();
    }
}
