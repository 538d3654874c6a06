//! The subcommands. Each parses its arguments, calls the services, and prints the result.

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

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::Value;

/// Prints a line on standard output. Exits when that fails, unless the reader has closed the pipe, as `head` does.
pub(crate) fn print(line: impl std::fmt::Display) {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprint(&format!("tenantry: cannot write to standard output: {error}"));
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Prints JSON on standard output.
pub(crate) fn print_json(value: &Value) {
    print(format_args!("{value:#}"));
}

/// Prints a line on standard error.
#[expect(clippy::print_stderr, reason = "commands report errors and progress on standard error, before and beside the log")]
pub fn eprint(line: &str) {
    eprintln!("{line}");
}

/// An empty table without borders.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

/// Aligns columns of numbers to the right.
pub(crate) fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// `yes` or `no`.
pub(crate) fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
