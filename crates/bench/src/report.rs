//! What was found, for people and for programs.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    LARGE,
    round::{Measurement, Round},
};

/// All figures of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) engine: &'static str,
    pub(crate) cores: usize,
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    pub(crate) rounds: Vec<Round>,
    /// From the start of the process to the first answer, on the data of the run.
    pub(crate) start_ms: Vec<f64>,
    /// Resident memory of a server that was started five seconds ago and asked nothing.
    pub(crate) idle_memory_mib: f64,
}

/// A figure that does not depend on how fast the machine is, or that has a bound whatever the machine.
#[derive(Serialize)]
pub(crate) struct Finding {
    what: &'static str,
    value: f64,
    bound: Option<Bound>,
    kept: bool,
}

/// What a finding should be.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Finding {
    fn new(what: &'static str, value: f64, bound: Option<Bound>) -> Self {
        let kept = match bound {
            None => true,
            Some(Bound::AtLeast(least)) => value >= least,
            Some(Bound::AtMost(most)) => value <= most,
        };
        Self { what, value, bound, kept }
    }
}

impl Report {
    /// The ratios within each round (their medians), and what has a bound of its own.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let ratio = |of: fn(&Round) -> f64| self.median(of);
        let on = |engine, bound| (self.engine == engine).then_some(bound);
        let large_upload = |round: &Round| round.large_upload.per_second * LARGE as f64;
        vec![
            Finding::new(
                "document GET / bare HTTP server",
                ratio(|round| round.document_get.per_second / round.bare_http.per_second),
                on("SQLite", Bound::AtLeast(0.3)),
            ),
            Finding::new(
                "document GET / database alone",
                ratio(|round| round.document_get.per_second / round.database_per_second),
                on("PostgreSQL", Bound::AtLeast(0.4)),
            ),
            Finding::new(
                "document GET p99 in a login flood / unloaded",
                ratio(|round| round.document_get_in_login_flood.p99_ms / round.document_get.p99_ms),
                Some(Bound::AtMost(2.0)),
            ),
            Finding::new(
                "large upload / slower of hashing and writing",
                self.median(|round| large_upload(round) / round.hashing_bytes_per_second.min(round.writing_bytes_per_second)),
                Some(Bound::AtLeast(0.7)),
            ),
            Finding::new(
                "four large uploads at once / one",
                ratio(|round| round.four_large_uploads.per_second / round.large_upload.per_second),
                None,
            ),
            Finding::new("small uploads per sync of the disk", ratio(|round| round.small_upload.per_second * round.sync_ms / 1e3), None),
            Finding::new("logins per Argon2id hash", ratio(|round| round.login.per_second * round.argon2id_ms / 1e3), None),
            Finding::new("memory gained from the first to the last round, MiB", self.memory_gained(), None),
            Finding::new("start to the first answer, median, ms", median(self.start_ms.iter().copied()), Some(Bound::AtMost(300.0))),
            Finding::new("start to the first answer, worst, ms", self.start_ms.iter().copied().fold(0.0, f64::max), None),
            Finding::new("memory when idle, MiB", self.idle_memory_mib, Some(Bound::AtMost(40.0))),
        ]
    }

    fn memory_gained(&self) -> f64 {
        let after = |round: Option<&Round>| round.map_or(0.0, |round| round.memory_mib);
        after(self.rounds.last()) - after(self.rounds.first())
    }

    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    /// All figures and findings, as JSON.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            findings: Vec<Finding>,
        }
        serde_json::to_string_pretty(&Whole { report: self, findings: self.findings() })
    }

    fn scenarios(&self) -> Table {
        let mut table = new_table(&["", "/s", "p50 ms", "p99 ms", "server CPU ms", "peak memory MiB", "failed"]);
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
        let mut table = new_table(&["without the product", "median"]);
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, cores, connections, seconds, rounds, .. } = self;
        writeln!(f, "{engine}, {cores} cores, {connections} connections; medians of {} rounds of {seconds} s each", rounds.len())?;
        let mut findings = new_table(&["ratios and bounds", "found", "bound", ""]);
        for Finding { what, value, bound, kept } in self.findings() {
            let bound = bound.map_or_else(String::new, |bound| bound.to_string());
            findings.add_row([what.to_owned(), short(value), bound, if kept { "" } else { "MISSED" }.to_owned()]);
        }
        writeln!(f, "{}\n{}\n{findings}", self.scenarios(), self.floors())
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three digits that matter.
fn short(value: f64) -> String {
    let decimals = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else if value.abs() >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}

/// The middle one; of an even number, the greater of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
