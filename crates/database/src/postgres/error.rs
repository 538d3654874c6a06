//! PostgreSQL's errors, in the terms of both engines.

use std::io;

use tokio_postgres::error::{DbError, SqlState};

use crate::error::{Constraint, Error};

/// Why a statement has to be prepared again.
pub(super) const SCHEMA_CHANGED: &str = "the schema has just changed";

/// Connection exceptions, refused logins, insufficient resources, operator intervention, system errors.
const UNAVAILABLE: [&str; 5] = ["08", "28", "53", "57", "58"];

/// Classifies an error, by its SQLSTATE.
pub(crate) fn from_postgres(error: tokio_postgres::Error) -> Error {
    let Some(reported) = error.as_db_error() else {
        // Without a report from the server the connection failed, unless a value did not fit its column.
        let is_local = std::error::Error::source(&error).is_some_and(|source| source.downcast_ref::<io::Error>().is_none());
        return if is_local && !error.is_closed() { Error::internal(error) } else { Error::unavailable(error) };
    };
    let constraint = || reported.constraint().unwrap_or_default().to_owned();
    match reported.code() {
        &SqlState::UNIQUE_VIOLATION => Error::Violated(Constraint::Unique(constraint())),
        &SqlState::FOREIGN_KEY_VIOLATION | &SqlState::RESTRICT_VIOLATION => Error::Violated(Constraint::ForeignKey),
        &SqlState::CHECK_VIOLATION | &SqlState::NOT_NULL_VIOLATION => Error::Violated(Constraint::Check),
        &SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE => Error::Busy("deadlock"),
        &SqlState::OBJECT_IN_USE => Error::Busy("the database is in use"),
        &SqlState::LOCK_NOT_AVAILABLE => Error::Busy("waiting for a lock took too long"),
        &SqlState::QUERY_CANCELED => Error::Busy("a statement took too long"),
        &SqlState::FEATURE_NOT_SUPPORTED if is_stale_plan(reported) => Error::Busy(SCHEMA_CHANGED),
        // A server that was made a standby, or is not yet promoted.
        &SqlState::READ_ONLY_SQL_TRANSACTION => Error::unavailable(error),
        // A missing database or permission is for the operator to fix.
        &SqlState::INVALID_CATALOG_NAME | &SqlState::INSUFFICIENT_PRIVILEGE => Error::unavailable(error),
        code if UNAVAILABLE.iter().any(|class| code.code().starts_with(class)) => Error::unavailable(error),
        _ => Error::internal(error),
    }
}

/// Whether a migration changed the columns of a prepared statement ("cached plan must not change result type").
pub(super) fn is_stale_plan(reported: &DbError) -> bool {
    reported.code() == &SqlState::FEATURE_NOT_SUPPORTED && reported.routine() == Some("RevalidateCachedQuery")
}
