//! Accounts: users, their sessions, and the log of changes of access rights.

pub mod access_changes;
pub mod login_throttles;
pub mod sessions;
pub mod users;
