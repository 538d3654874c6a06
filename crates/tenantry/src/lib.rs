//! What the `tenantry` program is assembled from: its configuration, its log, and its commands.

pub mod assembly;
pub mod commands;
pub mod config;
pub mod events;
pub mod logging;
