//! The progress of a migration on standard error: a bar on a terminal, lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use services::MigrationStep;

use crate::commands::eprint;

/// The interval of lines with the progress.
const INTERVAL: Duration = Duration::from_secs(10);

/// The progress of a migration.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Whether to print lines: standard error is no terminal, and the command does not print JSON.
    in_lines: bool,
    next_line: Mutex<Instant>,
}

impl Progress {
    /// Starts to show the progress of this number of tenants; `quiet` prints no lines.
    pub(super) fn new(tenants: usize, quiet: bool) -> Self {
        let bar = ProgressBar::new(tenants as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} tenants, {per_sec}, {eta} left{msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, in_lines: !quiet && !stderr().is_terminal(), next_line: Mutex::new(Instant::now() + INTERVAL) }
    }

    /// Shows a step.
    pub(super) fn report(&self, step: MigrationStep<'_>) {
        match step {
            MigrationStep::Wave { number, of, tenants } if of > 1 => {
                self.bar.set_message(format!(", wave {number} of {of}"));
                self.line(&format!("wave {number} of {of}: {tenants} tenants"));
            }
            MigrationStep::Wave { .. } => {}
            MigrationStep::Again(tenants) => self.line(&format!("retrying {tenants} tenants that were unavailable or busy")),
            MigrationStep::Settled(tenant, problem) => {
                self.bar.inc(1);
                if let Some(problem) = problem {
                    self.line(&format!("{}: {}", tenant.location.database, problem.with_causes()));
                }
                self.line_if_due();
            }
        }
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        if self.in_lines { eprint(text) } else { self.bar.println(text) }
    }

    fn line_if_due(&self) {
        let mut next_line = self.next_line.lock();
        if self.in_lines && *next_line <= Instant::now() {
            *next_line = Instant::now() + INTERVAL;
            let (done, all, rate) = (self.bar.position(), self.bar.length().unwrap_or_default(), self.bar.per_sec());
            eprint(&format!("{done} of {all} tenants, {rate:.1}/s, {} left", HumanDuration(self.bar.eta())));
        }
    }
}
