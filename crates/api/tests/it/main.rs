//! The API from the client's view, over real sockets and real databases.

mod accounts;
mod authorization;
mod documents;
mod events;
mod openapi;
mod tenants;
