//! The parts of the `tenantry` program: its configuration, its log and its commands.

pub mod assembly;
pub mod commands;
pub mod config;
pub mod events;
pub mod logging;
