//! Users, sessions and tokens.

mod sessions;
mod tokens;
mod users;
