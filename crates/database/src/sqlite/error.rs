//! SQLite's errors, in the terms of both engines.

use rusqlite::{ErrorCode, ffi};

use crate::error::{Constraint, Error, WRITE_BLOCKED};

/// Classifies an error.
pub(crate) fn from_rusqlite(error: rusqlite::Error) -> Error {
    let rusqlite::Error::SqliteFailure(failure, message) = &error else { return Error::internal(error) };
    match failure.code {
        ErrorCode::ConstraintViolation => match violation(failure.extended_code, message.as_deref().unwrap_or_default()) {
            Some(violation) => violation,
            // Most likely a value of another type than the column's: a bug, on PostgreSQL too.
            None => Error::internal(error),
        },
        ErrorCode::OperationInterrupted => Error::Busy("a statement took too long"),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy("another process holds the database"),
        ErrorCode::CannotOpen
        | ErrorCode::DiskFull
        | ErrorCode::SystemIoFailure
        | ErrorCode::ReadOnly
        | ErrorCode::PermissionDenied
        | ErrorCode::OutOfMemory => Error::unavailable(error),
        _ => Error::internal(error),
    }
}

/// The constraint that a statement violated. SQLite reports only its columns: see [`Constraint`].
fn violation(extended_code: i32, message: &str) -> Option<Error> {
    let constraint = match extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE => Constraint::Unique(unique_name(message)),
        ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => Constraint::Unique(primary_key_name(message)),
        ffi::SQLITE_CONSTRAINT_TRIGGER if message == WRITE_BLOCKED => return Some(Error::unavailable(WRITE_BLOCKED)),
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY | ffi::SQLITE_CONSTRAINT_TRIGGER => Constraint::ForeignKey,
        ffi::SQLITE_CONSTRAINT_CHECK | ffi::SQLITE_CONSTRAINT_NOTNULL => Constraint::Check,
        _ => return None,
    };
    Some(Error::Violated(constraint))
}

/// `UNIQUE constraint failed: files.sha256, files.file_size` → `files_sha256_file_size_key`.
fn unique_name(message: &str) -> String {
    let columns = message.rsplit(": ").next().unwrap_or_default();
    let table = columns.split('.').next().unwrap_or_default();
    let names = columns.split(", ").filter_map(|column| column.split('.').nth(1));
    names.fold(table.to_owned(), |name, column| name + "_" + column) + "_key"
}

/// `UNIQUE constraint failed: uploads.object_key` → `uploads_pkey`.
fn primary_key_name(message: &str) -> String {
    let table = message.rsplit(": ").next().and_then(|columns| columns.split('.').next());
    format!("{}_pkey", table.unwrap_or_default())
}
