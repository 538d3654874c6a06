//! Migrations of tenant databases.

use crate::{TenantId, TextProblem, Timestamp};

/// The latest attempt to migrate a tenant's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationAttempt {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The target schema version.
    pub wanted_version: i64,
    /// The schema version before the attempt.
    pub from_version: i64,
    /// How it ended.
    pub outcome: MigrationOutcome,
    /// The error, if the attempt failed.
    pub error: Option<String>,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// The outcome of a migration attempt. If it did not succeed, the database is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// The database has the target schema.
    Migrated,
    /// The migration fails on this database. The tenant stays quarantined until an operator intervenes.
    Failed,
    /// The database was down or locked for too long. The tenant stays available.
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

/// The cumulative size of a migration wave: a number or a percentage of tenants, those of earlier waves included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wave {
    /// A number of tenants.
    Tenants(usize),
    /// A percentage of all tenants, 1 to 100.
    Percent(u8),
}

impl Wave {
    /// Parses `20` or `20%`.
    ///
    /// # Errors
    /// When the text is neither, or the wave would include no tenant.
    pub fn parse(text: &str) -> Result<Self, TextProblem> {
        let problem = "must be a number of tenants like 20, or a percentage like 20%";
        let wave = match text.trim().strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent),
            None => text.trim().parse().ok().filter(|tenants| *tenants > 0).map(Self::Tenants),
        };
        wave.ok_or(problem)
    }

    /// The number of tenants, out of `total`, that the wave includes. A percentage rounds up.
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
    fn a_wave_rounds_up_and_never_exceeds_the_number_of_tenants() {
        let reach = |text, total| Wave::parse(text).unwrap().reach(total);
        assert_eq!([reach("1%", 1), reach("1%", 100), reach("1%", 101), reach("100%", 7)], [1, 1, 2, 7]);
        assert_eq!([reach("3", 2), reach("3", 300), reach("50%", 0)], [2, 3, 0]);
    }
}
