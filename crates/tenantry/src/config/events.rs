//! The retention of events.

use std::time::Duration;

use super::{ConfigError, Settings, values, variables};

/// A year.
const MAX_RETENTION: u64 = 366 * 24 * 60 * 60;

/// The retention of events.
#[derive(Clone, Debug)]
pub struct Events {
    /// How long events are kept after they were published.
    pub retention: Duration,
}

impl Events {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        Ok(Self { retention: settings.get(&variables::EVENT_RETENTION, values::seconds(MAX_RETENTION))? })
    }
}
