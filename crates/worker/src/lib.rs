//! What happens after the answer: events go from the outboxes to the [`Bus`] by the [`Relay`], and whoever takes them from there
//! has [`handle`] do what follows of them: one call of the services for each.
//!
//! An event is published at least once, in the order of its key: a tenant's events, or those that concern none. A duplicate is
//! recognised by its id.

mod backoff;
mod bus;
mod handlers;
mod in_process;
mod relay;

pub use bus::{Bus, Published};
pub use handlers::handle;
pub use in_process::InProcess;
pub use relay::Relay;
