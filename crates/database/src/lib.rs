//! Storage of rows: SQLite and PostgreSQL behind one [`Connection`] and one [`Tx`], the main database, and a database for
//! every tenant.
//!
//! The types make some mistakes impossible: a transaction of the main database can't be passed where one of a tenant is
//! wanted ([`Main`] and [`Tenant`] are types), a connection never changes its database, and outside a transaction nothing can be
//! written.
//!
//! # Which module may call which
//!
//! From the bottom up; a module calls only those before it, and the inner modules of a folder are private to it.
//!
//! | module | contains | calls |
//! | --- | --- | --- |
//! | `error`, `value`, `statement`, `url` | what all others speak of | each at most those before it |
//! | `schema` | the migrations, and which of them a database needs | `error` |
//! | `sqlite`, `postgres` | an engine each: pools, connections, applying migrations, creating tenants' databases | the above, not each other |
//! | `engine` | the two engines behind one face | `sqlite`, `postgres` |
//! | `connection` | [`Connection`] and [`Tx`] | `engine` |
//! | `database` | [`Database`], the main database's and a tenant's | `connection`, `engine` |
//! | `directory` | [`TenantDatabases`]: the servers, and handles on their databases | `database`, `engine` |
//! | `moves` | [`Transfer`]: copying a tenant's database to another server | `directory` |

mod connection;
mod database;
mod directory;
mod engine;
mod error;
mod moves;
mod postgres;
mod schema;
mod sqlite;
mod statement;
mod url;
mod value;

pub use connection::{Connection, Main, MainTx, Scope, Tenant, TenantTx, Tx};
pub use database::{Database, MainDatabase, TenantDatabase};
pub use directory::TenantDatabases;
pub use error::{Constraint, Error, Result};
pub use moves::{TableSum, Transfer};
pub use postgres::{Connections, PostgresLimits};
pub use schema::{Migrated, main_schema_version, tenant_schema_digest, tenant_schema_version};
pub use sqlite::SqliteThreads;
pub use statement::{Outcome, Statement};
pub use url::{DatabaseUrl, PostgresUrl, UrlProblem};
pub use value::{FromValue, Row, Value};
