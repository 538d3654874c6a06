//! The API as its users see it, over real sockets and real databases.

mod accounts;
mod authorization;
mod documents;
mod events;
mod tenants;
