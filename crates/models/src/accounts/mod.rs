//! Accounts: users, their sessions, and the log of what changed of both.

pub mod access_changes;
pub mod sessions;
pub mod users;
