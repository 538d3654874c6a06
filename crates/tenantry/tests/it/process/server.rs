//! Servers and workers.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Client, StatusCode, redirect};
use rustix::process::{Pid, Signal, kill_process};
use testkit::Persona;

use super::WAIT_TIMEOUT;

/// A running server or worker. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// `http://ADDRESS:PORT`
    pub(crate) base: String,
    log: PathBuf,
}

impl Server {
    /// Starts a server with this command, and waits until it is healthy.
    pub(crate) async fn start(command: Command, home: &Path) -> Self {
        let mut server = Self::spawn(command, home);
        assert!(server.listens().await, "the server exited: {}", server.log());
        let started = Instant::now();
        while !server.is_healthy().await {
            assert!(started.elapsed() < WAIT_TIMEOUT, "the server is not healthy: {}", server.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    /// Starts a process with this command.
    pub(super) fn spawn(mut command: Command, home: &Path) -> Self {
        let log = home.join(format!("log-{:?}", Instant::now()).replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', ""));
        let child = command.stderr(File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
        Self { child, base: String::new(), log }
    }

    /// Waits until it listens. False if it exits before.
    pub(crate) async fn listens(&mut self) -> bool {
        let started = Instant::now();
        loop {
            let log = self.log();
            if let Some((before, _)) = log.split_once(": documentation at") {
                self.base = before.rsplit("listening on ").next().unwrap().to_owned();
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(started.elapsed() < WAIT_TIMEOUT, "the server does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the log satisfies a condition, and returns the log.
    pub(crate) async fn wait_for(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            if condition(&log) {
                return log;
            }
            let exited = self.child.try_wait().unwrap();
            assert!(exited.is_none() && started.elapsed() < WAIT_TIMEOUT, "no {what:?}, {exited:?}: {log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn is_healthy(&self) -> bool {
        let response = client().get(format!("{}/health", self.base)).timeout(Duration::from_secs(5)).send().await;
        response.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// A client without an account.
    pub(crate) fn stranger(&self) -> Persona {
        Persona::stranger(self.base.clone(), client())
    }

    /// A new user, logged in.
    pub(crate) async fn user(&self, name: &str) -> Persona {
        Persona::registered(&self.stranger(), name).await
    }

    /// The same user at this server, with tokens that another server issued.
    pub(crate) fn known(&self, persona: &Persona) -> Persona {
        persona.at_base(&self.base)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL, without finishing or flushing anything.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it exits.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < WAIT_TIMEOUT, "the server does not exit: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops it with SIGTERM, which must succeed.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.exited().await.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A new client that follows no redirects. Its time-out is necessary: a request whose server died was once seen to wait for ever
/// without a connection.
pub(crate) fn client() -> Client {
    Client::builder().redirect(redirect::Policy::none()).no_proxy().timeout(3 * WAIT_TIMEOUT).build().unwrap()
}
