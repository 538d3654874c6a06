//! The subcommands: what an operator can ask for. Each is a thin door into the services.

pub mod audit;
pub mod check;
pub mod events;
pub mod gc;
pub mod init;
pub mod migrate;
mod problem;
pub mod serve;
pub mod tenants;
pub mod users;
pub mod verify;
pub mod worker;

use std::io::{ErrorKind, Write};

use comfy_table::{Table, presets::NOTHING};
use serde_json::Value;

/// Prints a line of a command's answer. Ends the program when it can't, but for a reader who has seen enough, like `head`.
pub(crate) fn say(line: impl std::fmt::Display) {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("tenantry: the answer can't be written: {error}"));
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Prints what was wrong.
#[expect(clippy::print_stderr, reason = "there may be no log yet")]
pub fn complain(text: &str) {
    eprintln!("{text}");
}

/// A table without lines, to be filled.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

/// Prints a command's answer for programs.
pub(crate) fn say_json(value: &Value) {
    say(format_args!("{value:#}"));
}
