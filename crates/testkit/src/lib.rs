//! The test kit: an app on real databases and a real socket, and personas who use it.
//!
//! ```text
//! let app = TestApp::new().await;
//! let alice = app.user("alice").await;
//! let acme = alice.creates_tenant("Acme").await;
//! alice.uploads(&acme, "hello.txt", b"hello").await.expect(201);
//! ```
//!
//! Every app has databases of its own: SQLite files or, if `TEST_DATABASE_URL` is set, databases on that PostgreSQL server. Its
//! objects are files or, if `TEST_S3_ENDPOINT_URL` is set, in a bucket of that S3 store. Dropping the app checks the
//! [`invariants`].
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that can't go on fails")]

mod app;
mod databases;
mod forge;
pub mod invariants;
mod kafka;
mod objects;
mod persona;
mod proxy;

pub use app::{Builder, SECRET, TestApp};
pub use databases::TestDatabases;
pub use forge::{Forge, base64url, forge};
pub use kafka::{Delivered, TestKafka};
pub use objects::TestObjects;
pub use persona::{PASSWORD, Persona, Reply};
pub use proxy::{Answer, Behaviour, FaultyProxy, Traffic};
