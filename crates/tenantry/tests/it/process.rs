//! The program as a process, with a home of its own.

mod command;
mod home;
mod server;

use std::time::Duration;

pub(crate) use self::{
    command::{CommandOutput, on_terminal},
    home::Home,
    server::{Server, client},
};

/// The maximum time of any wait. Generous, since a test must not fail because the machine is busy.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(40);
