//! Limits of password hashing.

use std::{num::NonZero, thread};

use super::{ConfigError, Settings, values, variables};

/// Limits of password hashing.
#[derive(Clone, Debug)]
pub struct Passwords {
    /// The number of threads that hash.
    pub threads: usize,
    /// The maximum number of passwords that wait for a thread.
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
