//! Retry delays: exponential backoff with jitter.

use std::time::Duration;

use domain::random_bytes;

/// A delay that doubles with every failure up to `max`. Half of it is random, so that tasks that failed together don't retry
/// together.
pub(crate) fn backoff(failures: u32, min: Duration, max: Duration) -> Duration {
    let delay = min.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(max);
    let [random] = random_bytes();
    delay.mul_f64(0.5 + f64::from(random) / 510.)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(1));
        for (failures, expected) in [(0, 100), (1, 100), (2, 200), (3, 400), (4, 800), (5, 1_000), (500, 1_000)] {
            let delay = backoff(failures, min, max);
            let expected = Duration::from_millis(expected);
            assert!(delay <= expected && delay >= expected / 2, "{failures}: {delay:?}");
        }
    }
}
