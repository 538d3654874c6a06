//! Users, their sessions and their tokens.

mod sessions;
mod tokens;
mod users;
