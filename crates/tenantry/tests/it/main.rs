//! The program as its operators run it: a process, with signals, crashes, full disks and services that go away.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test that can't go on fails")]
#![allow(clippy::disallowed_methods, reason = "what a test writes by itself, it tells nobody of")]

mod bad_days;
mod command_line;
mod event_bus;
mod events;
mod failpoints;
mod kill;
mod load;
mod logs;
mod metrics;
mod migrations;
mod moves;
mod placement;
mod process;
mod shutdown;
mod silence;
mod spares;
mod tenants;
mod tus_client;
mod uploads;
mod versions;
