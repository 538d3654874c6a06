//! Why a database operation failed, in the same terms for both engines.

use domain::{Dependency, error_chain};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The result of a database operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a write to a write-blocked database fails with.
pub(crate) const WRITE_BLOCKED: &str = "the tenant's database has moved to another server";

/// Why a database operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A constraint of the schema forbids it.
    #[error("constraint violated: {0:?}")]
    Violated(Constraint),
    /// The database can't be reached, or refused because of its own state. A later attempt may work.
    #[error("database unavailable")]
    Unavailable(#[source] Cause),
    /// Another transaction held what it needs for longer than it may wait. A later attempt may work.
    #[error("database busy: {0}")]
    Busy(&'static str),
    /// A bug in this program or a damaged database.
    #[error("database error")]
    Internal(#[source] Cause),
}

/// A constraint, by its name in the schema. SQLite does not report names, so they follow one convention:
/// `{table}_{columns joined by _}_key` for unique ones, `{table}_pkey` for primary keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// A unique index or a primary key.
    Unique(String),
    /// A foreign key.
    ForeignKey,
    /// A check or a not-null column.
    Check,
}

impl Error {
    pub(crate) fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    pub(crate) fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable(cause.into())
    }

    /// A copy for a further caller that waited for the same outcome. Its cause is the text of the original's causes.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let causes = error_chain(self).skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ");
        match self {
            Self::Violated(constraint) => Self::Violated(constraint.clone()),
            Self::Unavailable(_) => Self::unavailable(causes),
            Self::Busy(why) => Self::Busy(why),
            Self::Internal(_) => Self::internal(causes),
        }
    }

    /// Whether the unique constraint of this name forbids it.
    #[must_use]
    pub fn violates(&self, unique: &str) -> bool {
        matches!(self, Self::Violated(Constraint::Unique(name)) if name == unique)
    }

    /// Whether a check or a not-null column forbids it.
    #[must_use]
    pub fn violates_check(&self) -> bool {
        matches!(self, Self::Violated(Constraint::Check))
    }

    /// Whether a foreign key forbids it.
    #[must_use]
    pub fn violates_foreign_key(&self) -> bool {
        matches!(self, Self::Violated(Constraint::ForeignKey))
    }
}

impl From<Error> for domain::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable(source) => Self::Unavailable { dependency: Dependency::Database, source },
            Error::Busy(_) => Self::Unavailable { dependency: Dependency::Database, source: Box::new(error) },
            Error::Violated(_) | Error::Internal(_) => Self::Internal(Box::new(error)),
        }
    }
}
