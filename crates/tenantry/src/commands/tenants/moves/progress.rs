//! The progress of a move on standard error: a spinner on a terminal, lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use services::MoveStep;

use crate::commands::eprint;

/// The progress of a move.
pub(super) struct Progress {
    spinner: ProgressBar,
    /// Whether to print lines: standard error is no terminal, and the command does not print JSON.
    in_lines: bool,
}

impl Progress {
    /// Starts to show progress; `quiet` prints no lines.
    pub(super) fn new(quiet: bool) -> Self {
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(200));
        Self { spinner, in_lines: !quiet && !stderr().is_terminal() }
    }

    /// Shows a step.
    pub(super) fn report(&self, step: MoveStep) {
        let text = match step {
            MoveStep::Created => "created the target database; copying".to_owned(),
            // Too frequent for lines.
            MoveStep::Copied(0) => return,
            MoveStep::Copied(rows) => return self.spinner.set_message(format!("{rows} rows copied")),
            MoveStep::Paused => "writes are paused".to_owned(),
            MoveStep::Compared(rows) => format!("copied {rows} changed rows; both databases are identical"),
            MoveStep::Switched => "switched to the target database; writes resume once every instance knows".to_owned(),
        };
        self.spinner.set_message(text.clone());
        if self.in_lines {
            eprint(&text);
        }
    }

    /// Removes the spinner.
    pub(super) fn end(&self) {
        self.spinner.finish_and_clear();
    }
}
