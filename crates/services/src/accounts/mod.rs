//! Accounts: users, their passwords and their sessions.

pub(crate) mod login_throttle;
pub(crate) mod passwords;
pub(crate) mod sessions;
pub(crate) mod tokens;
pub(crate) mod users;
