//! How long to wait before something is tried again.

use std::time::Duration;

use domain::random_bytes;

/// A pause that doubles with every failure up to a bound, half of it random, so that those who failed together don't come back
/// together.
pub(crate) fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    let pause = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(longest);
    let [random] = random_bytes();
    pause.mul_f64(0.5 + f64::from(random) / 510.)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        for (failures, most) in [(0, 100), (1, 100), (2, 200), (3, 400), (4, 800), (5, 1_000), (500, 1_000)] {
            let pause = backoff(failures, first, longest);
            let most = Duration::from_millis(most);
            assert!(pause <= most && pause >= most / 2, "{failures}: {pause:?}");
        }
    }
}
