//! How much work goes into hashing passwords at once.

use std::{num::NonZero, thread};

use super::{ConfigError, Settings, values, variables};

/// How much work goes into hashing passwords at once.
#[derive(Clone, Debug)]
pub struct Passwords {
    /// How many threads hash.
    pub threads: usize,
    /// How many passwords may wait for one of them.
    pub queue: usize,
}

impl Passwords {
    pub(super) fn read(settings: &mut Settings) -> Result<Self, ConfigError> {
        let half_of_the_cores = || thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        Ok(Self {
            threads: settings.get_or(&variables::PASSWORD_HASH_THREADS, values::number(1..=1_024), half_of_the_cores)?,
            queue: settings.get(&variables::PASSWORD_HASH_QUEUE, values::number(0..=100_000))?,
        })
    }
}
