//! The subcommands: what an operator can ask for. Each is a thin door into the services.

pub mod check;
pub mod gc;
pub mod init;
pub mod migrate;
pub mod serve;
pub mod users;

use serde_json::Value;

/// Prints a line of a command's answer.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn say(line: impl std::fmt::Display) {
    println!("{line}");
}

/// Prints a command's answer for programs.
pub(crate) fn say_json(value: &Value) {
    say(format_args!("{value:#}"));
}
