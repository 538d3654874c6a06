//! From the rounds of the main benchmark to its report: medians, and the ratios that do not depend on the machine.

use comfy_table::Table;
use serde::Serialize;

use crate::{
    LARGE,
    report::{Bound, Report, median, short, table},
    round::{Measurement, Round},
};

/// All figures of a run.
#[derive(Serialize)]
pub(crate) struct Run {
    pub(crate) engine: &'static str,
    pub(crate) cores: usize,
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    pub(crate) rounds: Vec<Round>,
    /// From the start of the process to the first response, on the data of the run.
    pub(crate) start_ms: Vec<f64>,
    /// Resident memory of a server five seconds after its start, without any request.
    pub(crate) idle_memory_mib: f64,
}

impl Run {
    /// The report of the run.
    pub(crate) fn report(&self) -> serde_json::Result<Report> {
        let Self { engine, cores, connections, seconds, rounds, .. } = self;
        let heading = format!("{engine}, {cores} cores, {connections} connections; medians of {} rounds of {seconds} s each", rounds.len());
        let mut report = Report::new(heading, self)?;
        report.add_table(self.scenarios());
        report.add_table(self.floors());
        self.add_ratios(&mut report);
        self.add_process_figures(&mut report);
        Ok(report)
    }

    /// The medians of ratios within each round.
    fn add_ratios(&self, report: &mut Report) {
        let on = |engine, bound| (self.engine == engine).then_some(bound);
        report.add_with_bound(
            "document GET / bare HTTP server",
            self.median(|round| round.document_get.per_second / round.bare_http.per_second),
            on("SQLite", Bound::AtLeast(0.3)),
        );
        report.add_with_bound(
            "document GET / database alone",
            self.median(|round| round.document_get.per_second / round.database_per_second),
            on("PostgreSQL", Bound::AtLeast(0.4)),
        );
        report.add_with_bound(
            "document GET p99 in a login flood / unloaded",
            self.median(|round| round.document_get_in_login_flood.p99_ms / round.document_get.p99_ms),
            Bound::AtMost(2.0),
        );
        let large_upload = |round: &Round| round.large_upload.per_second * LARGE as f64;
        report.add_with_bound(
            "large upload / slower of hashing and writing",
            self.median(|round| large_upload(round) / round.hashing_bytes_per_second.min(round.writing_bytes_per_second)),
            Bound::AtLeast(0.7),
        );
        report.add(
            "four large uploads at once / one",
            self.median(|round| round.four_large_uploads.per_second / round.large_upload.per_second),
        );
        report.add("small uploads per sync of the disk", self.median(|round| round.small_upload.per_second * round.sync_ms / 1e3));
        report.add("logins per Argon2id hash", self.median(|round| round.login.per_second * round.argon2id_ms / 1e3));
    }

    fn add_process_figures(&self, report: &mut Report) {
        report.add("memory gained from the first to the last round, MiB", self.memory_gained());
        let starts = || self.start_ms.iter().copied();
        report.add_with_bound("start to the first answer, median, ms", median(starts()), Bound::AtMost(300.0));
        report.add("start to the first answer, worst, ms", starts().fold(0.0, f64::max));
        report.add_with_bound("memory when idle, MiB", self.idle_memory_mib, Bound::AtMost(40.0));
    }

    fn memory_gained(&self) -> f64 {
        let after = |round: Option<&Round>| round.map_or(0.0, |round| round.memory_mib);
        after(self.rounds.last()) - after(self.rounds.first())
    }

    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn scenarios(&self) -> Table {
        let mut table = table(&["", "/s", "p50 ms", "p99 ms", "server CPU ms", "peak memory MiB", "failed"]);
        let mut row = |name: &str, of: fn(&Round) -> &Measurement| {
            let figure = |field: fn(&Measurement) -> f64| self.median(|round| field(of(round)));
            let failed: u64 = self.rounds.iter().map(|round| of(round).failed).sum();
            table.add_row([
                name.to_owned(),
                short(figure(|measured| measured.per_second)),
                short(figure(|measured| measured.p50_ms)),
                short(figure(|measured| measured.p99_ms)),
                short(figure(|measured| measured.cpu_ms)),
                short(figure(|measured| measured.peak_memory_mib)),
                failed.to_string(),
            ]);
        };
        row("bare HTTP server", |round| &round.bare_http);
        row("document GET", |round| &round.document_get);
        row("document GET, login flood", |round| &round.document_get_in_login_flood);
        row("document list of 20", |round| &round.document_list);
        row("upload of 10 kB", |round| &round.small_upload);
        row("upload of 100 MB", |round| &round.large_upload);
        row("uploads of 100 MB, four", |round| &round.four_large_uploads);
        row("login", |round| &round.login);
        row("tenant creation", |round| &round.tenant_creation);
        table
    }

    fn floors(&self) -> Table {
        let mut table = table(&["without the product", "median"]);
        let mut row = |name: &str, of: fn(&Round) -> f64| {
            table.add_row([name.to_owned(), short(self.median(of))]);
        };
        row("documents found in the database, /s", |round| round.database_per_second);
        row("MD5 and SHA-256 in one thread, MB/s", |round| round.hashing_bytes_per_second / 1e6);
        row("100 MB written and synced, MB/s", |round| round.writing_bytes_per_second / 1e6);
        row("4 KiB synced, ms", |round| round.sync_ms);
        row("Argon2id hash, ms", |round| round.argon2id_ms);
        table
    }
}
