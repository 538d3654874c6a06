//! Migrations of tenants' databases.

use crate::{TenantId, TextProblem, Timestamp};

/// The last attempt to migrate a tenant's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationAttempt {
    /// Whose database.
    pub tenant_id: TenantId,
    /// The schema's version that it was to have.
    pub wanted_version: i64,
    /// The schema's version that it had.
    pub from_version: i64,
    /// How it ended.
    pub outcome: MigrationOutcome,
    /// What went wrong, when something did.
    pub error: Option<String>,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// How an attempt to migrate a database ended. Whatever went wrong, the database is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// It has the schema that it was to have.
    Migrated,
    /// The migration does not work on this database. Nobody is let in until somebody has looked at it.
    Failed,
    /// The database was down, or others held it for too long. Work in it goes on.
    Postponed,
}

impl MigrationOutcome {
    /// The outcome's stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Migrated => "migrated",
            Self::Failed => "failed",
            Self::Postponed => "postponed",
        }
    }

    /// The outcome with this stored name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Migrated, Self::Failed, Self::Postponed].into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// How far a wave of migrations reaches: over so many tenants, or so many of a hundred, counted from the first wave on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wave {
    /// Over so many.
    Tenants(usize),
    /// Over so many of a hundred: 1 to 100.
    Percent(u8),
}

impl Wave {
    /// Parses `20` or `20%`.
    ///
    /// # Errors
    /// When it is neither, or reaches over none.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        let problem = "must be a number of tenants like 20, or a percentage like 20%";
        let wave = match text.trim().strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent),
            None => text.trim().parse().ok().filter(|tenants| *tenants > 0).map(Self::Tenants),
        };
        wave.ok_or(problem)
    }

    /// Over how many of so many tenants it reaches. A part of a tenant is a tenant.
    #[must_use]
    pub fn reach(self, total: usize) -> usize {
        match self {
            Self::Tenants(tenants) => tenants.min(total),
            Self::Percent(percent) => total.saturating_mul(usize::from(percent)).div_ceil(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_numbers_or_percentages() {
        assert_eq!((Wave::parse("1"), Wave::parse(" 10% ")), (Ok(Wave::Tenants(1)), Ok(Wave::Percent(10))));
        for text in ["", "0", "0%", "101%", "-1", "1.5", "%", "ten"] {
            assert!(Wave::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wave_reaches_over_whole_tenants_and_not_over_more_than_there_are() {
        let reach = |text, total| Wave::parse(text).unwrap().reach(total);
        assert_eq!([reach("1%", 1), reach("1%", 100), reach("1%", 101), reach("100%", 7)], [1, 1, 2, 7]);
        assert_eq!([reach("3", 2), reach("3", 300), reach("50%", 0)], [2, 3, 0]);
    }
}
