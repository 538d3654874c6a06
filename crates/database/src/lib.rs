//! Where data lives: SQLite and PostgreSQL behind one [`Connection`] and one [`Tx`], the main database, and a database for
//! every tenant.
//!
//! What can't be done here by construction: a transaction of the main database can't be passed where one of a tenant is
//! wanted ([`Main`] and [`Tenant`] are types), a connection never changes its database, and outside a transaction nothing
//! can be written.

mod connection;
mod directory;
mod error;
mod main_database;
mod migrations;
mod moves;
mod postgres;
mod sqlite;
mod url;
mod value;

pub use connection::{Connection, Main, MainTx, Outcome, Scope, Statement, Tenant, TenantTx, Tx};
pub use directory::{TenantDatabase, TenantDatabases};
pub use error::{Constraint, Error, Result};
pub use main_database::MainDatabase;
pub use migrations::{Migrated, main_schema_version, tenant_schema_digest, tenant_schema_version};
pub use moves::{TableSum, Transfer};
pub use postgres::{Connections, PostgresLimits, PostgresServer};
pub use sqlite::SqliteThreads;
pub use url::{DatabaseUrl, PostgresUrl, UrlProblem};
pub use value::{FromValue, Row, Value};
