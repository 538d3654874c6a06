//! Users, sessions and tokens.

mod limits;
mod sessions;
mod tokens;
mod users;
