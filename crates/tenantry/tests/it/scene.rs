//! The opening of most tests, and of all tests of crashes: a server on an empty home, with a user who has a tenant.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
    sync::atomic::{AtomicUsize, Ordering},
};

use reqwest::RequestBuilder;
use rustix::process::Signal;
use testkit::Persona;

use crate::process::{Home, Server, WAIT_TIMEOUT};

/// The variable that names the failpoint at which a process aborts.
pub(crate) const FAILPOINT: &str = "FAILPOINT";
/// The number of runs of a test at a time. They mostly wait.
const CONCURRENCY: usize = 8;

/// A home, the server that runs on it, a user, and a tenant of which the user is admin.
pub(crate) struct Scene {
    pub(crate) home: Home,
    server: Option<Server>,
    /// The user, at the running server.
    pub(crate) alice: Persona,
    /// The tenant's id.
    pub(crate) tenant: String,
    variables: Vec<(&'static str, &'static str)>,
}

impl Scene {
    /// A new scene on an empty home.
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// A new scene, whose servers all have these environment variables.
    pub(crate) async fn with(variables: &[(&'static str, &'static str)]) -> Self {
        Self::on(Home::new(), variables).await
    }

    /// A new scene on this home.
    pub(crate) async fn on(home: Home, variables: &[(&'static str, &'static str)]) -> Self {
        let server = home.serve_with(variables).await;
        let alice = server.user("alice").await;
        let tenant = alice.creates_tenant("Acme").await;
        Self { home, server: Some(server), alice, tenant, variables: variables.to_vec() }
    }

    /// The running server.
    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// The path of the tenant's documents, with more of it.
    pub(crate) fn documents(&self, rest: &str) -> String {
        format!("/api/tenants/{}/documents{rest}", self.tenant)
    }

    /// The number of the tenant's documents.
    pub(crate) async fn count_documents(&self) -> u64 {
        self.alice.get(&self.documents("")).await.expect(200).json["data"]["pagination"]["total"].as_u64().unwrap()
    }

    /// Stops the server, which must succeed.
    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    /// Starts a server.
    pub(crate) async fn start(&mut self) {
        self.start_with(&[]).await;
    }

    /// Starts a server with further environment variables.
    pub(crate) async fn start_with(&mut self, variables: &[(&str, &str)]) {
        let server = self.home.serve_with(&[&self.variables, variables].concat()).await;
        self.alice = server.known(&self.alice);
        self.server = Some(server);
    }

    /// Stops the server and starts another one.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Restarts the server so that it aborts at a failpoint.
    pub(crate) async fn restart_at(&mut self, failpoint: &str) {
        self.stop().await;
        self.start_with(&[(FAILPOINT, failpoint)]).await;
    }

    /// Asserts that the server has aborted at the failpoint.
    pub(crate) async fn assert_aborted(&mut self, failpoint: &str) {
        self.server.as_mut().unwrap().assert_aborted(failpoint).await;
    }

    /// Crashes a server at a failpoint by a request, which gets no response, and starts another one.
    pub(crate) async fn crash(&mut self, failpoint: &str, request: impl FnOnce(&Self) -> RequestBuilder) {
        self.restart_at(failpoint).await;
        if let Ok(response) = request(self).timeout(WAIT_TIMEOUT).send().await {
            panic!("{failpoint} was not hit: {}", response.text().await.unwrap());
        }
        self.assert_aborted(failpoint).await;
        self.start().await;
    }

    /// Collects garbage, stops the server, and checks the invariants.
    pub(crate) async fn stop_and_check(self) {
        self.home.stop_and_check(self.server.unwrap()).await;
    }
}

impl Server {
    /// Waits until it exits, and asserts that it aborted at the failpoint.
    pub(crate) async fn assert_aborted(&mut self, failpoint: &str) {
        let status = self.exited().await;
        assert_aborted(status, failpoint, &self.log());
    }
}

impl Home {
    /// Runs a command that aborts at a failpoint.
    pub(crate) fn crash(&self, arguments: &[&str], failpoint: &str) {
        crash(&mut self.command(arguments), failpoint);
    }
}

/// Runs a command that aborts at a failpoint.
pub(crate) fn crash(command: &mut Command, failpoint: &str) {
    let output = command.env(FAILPOINT, failpoint).output().unwrap();
    assert_aborted(output.status, failpoint, &String::from_utf8_lossy(&output.stderr));
}

fn assert_aborted(status: ExitStatus, failpoint: &str, log: &str) {
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{failpoint} was not hit: {log}");
    // CI counts these lines.
    println!("{}: hit once", failpoint.split(':').next().unwrap());
}

/// Runs a test of crashes as often as `CRASH_RUNS` says, by default once, several runs at a time.
pub(crate) fn repeatedly(test: impl AsyncFn() + Sync) {
    let left = AtomicUsize::new(crash_runs());
    let run = || {
        while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(test());
        }
    };
    let failure = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..CONCURRENCY.min(crash_runs())).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(std::thread::ScopedJoinHandle::join).fold(None, |failure, run| run.err().or(failure))
    });
    // Repeats the failure at the end of a long output.
    if let Some(failure) = failure {
        let message = failure.downcast_ref::<String>().map(String::as_str).or_else(|| failure.downcast_ref::<&str>().copied());
        panic!("one of the runs failed: {}", message.unwrap_or("without a message"));
    }
}

#[expect(clippy::disallowed_methods, reason = "the environment of a test run decides how often")]
fn crash_runs() -> usize {
    std::env::var("CRASH_RUNS").map_or(1, |runs| runs.parse().expect("CRASH_RUNS is a number"))
}
