//! What happens with events.

use std::time::Duration;

use super::{ConfigError, Settings, values, variables};

/// The longest that events may be kept: a year.
const LONGEST_RETENTION: u64 = 366 * 24 * 60 * 60;

/// What happens with events.
#[derive(Clone, Debug)]
pub struct Events {
    /// How long they are kept after they were published.
    pub retention: Duration,
}

impl Events {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        Ok(Self { retention: settings.get(&variables::EVENT_RETENTION, values::seconds(LONGEST_RETENTION))? })
    }
}
