//! The measured servers, as separate processes.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running server. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From the start of the process to the first response with status 200.
    pub(crate) start_time: Duration,
}

/// How to start `tenantry serve`.
pub(crate) struct Tenantry {
    pub(crate) program: PathBuf,
    /// The directory for its data and its log.
    pub(crate) directory: PathBuf,
    /// The URL of the main database; none for SQLite.
    pub(crate) database_url: Option<String>,
    /// Further settings.
    pub(crate) variables: Vec<(String, String)>,
}

impl Tenantry {
    /// Starts a server with the defaults, except for its locations and for tokens that outlive the benchmark.
    pub(crate) fn start(&self) -> Result<Server> {
        self.start_with(&[])
    }

    /// Starts a server with further environment variables.
    pub(crate) fn start_with(&self, variables: &[(&str, &str)]) -> Result<Server> {
        let address = free_address()?;
        self.start_command("serve", address, &[&[("PORT", address.port().to_string().as_str())], variables].concat())
    }

    /// Starts a worker.
    pub(crate) fn start_worker(&self, variables: &[(&str, &str)]) -> Result<Server> {
        let address = free_address()?;
        self.start_command("worker", address, &[&[("METRICS_ADDRESS", address.to_string().as_str())], variables].concat())
    }

    fn start_command(&self, name: &str, address: SocketAddr, variables: &[(&str, &str)]) -> Result<Server> {
        let log = File::options().create(true).append(true).open(self.directory.join("log"))?;
        let mut command = Command::new(&self.program);
        command.arg(name).env_clear().current_dir(&self.directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env("DATA_DIR", self.directory.join("data")).envs(self.variables.iter().cloned());
        command.env("JWT_ACCESS_TOKEN_EXPIRES", "86400").envs(variables.iter().copied());
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        Server::start(command, address).with_context(|| format!("start {} (its log: {})", self.program.display(), self.log_end()))
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.lines().last().unwrap_or("empty").to_owned()
    }
}

impl Server {
    /// Starts this program's bare HTTP server with responses of `body_bytes`.
    pub(crate) fn start_bare_http(body_bytes: usize) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bare-http", &address.to_string(), &body_bytes.to_string()]).stdin(Stdio::null());
        Self::start(command, address).context("start the bare HTTP server")
    }

    fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        let began = Instant::now();
        let child = command.spawn()?;
        let mut server = Self { child, address, start_time: Duration::ZERO };
        while !is_healthy(address) {
            if let Some(status) = server.child.try_wait()? {
                bail!("it exited with {status}");
            }
            ensure!(began.elapsed() < START_TIMEOUT, "it does not respond");
            sleep(Duration::from_micros(500));
        }
        server.start_time = began.elapsed();
        Ok(server)
    }

    /// Stops it with SIGTERM.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server exited with {status}");
        Ok(())
    }

    /// The CPU time that it has used so far, with a resolution of 10 ms.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        // The name in parentheses may contain any character. User and system time are fields 14 and 15 (proc_pid_stat(5)).
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Its current resident memory in MiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        self.status_mib("VmRSS:")
    }

    /// Its peak resident memory since [`Server::reset_peak_memory`], in MiB.
    pub(crate) fn peak_memory(&self) -> Result<f64> {
        self.status_mib("VmHWM:")
    }

    pub(crate) fn reset_peak_memory(&self) -> Result<()> {
        fs::write(self.proc("clear_refs"), "5").context("reset the peak memory of a server")
    }

    fn status_mib(&self, name: &str) -> Result<f64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel does not report a server's memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails after `stop`.
        let _killed = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// An address that is currently free.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn is_healthy(address: SocketAddr) -> bool {
    let health = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok::<_, std::io::Error>(response)
    };
    health().is_ok_and(|response| response.starts_with("HTTP/1.1 200"))
}
