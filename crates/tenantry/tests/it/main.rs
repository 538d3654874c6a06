//! The program as its operators run it: as a process, with signals, crashes, full disks and outages of services.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test that cannot continue fails")]
#![allow(clippy::disallowed_methods, reason = "the writes of tests record no events")]

mod command_line;
mod crashes;
mod event_bus;
mod events;
mod kills;
mod load;
mod logs;
mod metrics;
mod migrations;
mod moves;
mod outages;
mod placement;
mod process;
mod scene;
mod shutdown;
mod tenants;
mod tus_client;
mod unresponsive_servers;
mod uploads;
mod versions;
mod warm_pool;
