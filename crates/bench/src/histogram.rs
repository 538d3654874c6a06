//! A histogram of latencies with buckets that are less than one per cent wide.

use std::time::Duration;

/// Buckets for each doubling of the latency.
const STEPS: usize = 128;
/// Enough for every number of nanoseconds that fits into 64 bits.
const BUCKETS: usize = 58 * STEPS;

/// The number of occurrences of each latency.
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, latency: Duration) {
        self.counts[bucket(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX))] += 1;
        self.total += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.total += other.total;
    }

    /// The number of recorded latencies.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The latency that `percent` of all latencies do not exceed; zero when there are none.
    pub(crate) fn percentile(&self, percent: u64) -> Duration {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        Duration::from_nanos(reached.map_or(0, longest_in))
    }
}

/// The bucket of a latency: one per nanosecond below [`STEPS`] nanoseconds, then [`STEPS`] per doubling.
fn bucket(nanos: u64) -> usize {
    let doublings = (nanos / STEPS as u64).checked_ilog2().map_or(0, |log| log as usize);
    let step = usize::try_from(nanos >> doublings).unwrap_or(usize::MAX);
    doublings * STEPS + step
}

/// The longest latency in a bucket.
fn longest_in(bucket: usize) -> u64 {
    if bucket < 2 * STEPS {
        return bucket as u64;
    }
    let doublings = bucket / STEPS - 1;
    let step = (bucket - doublings * STEPS) as u64;
    ((step + 1) << doublings).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_no_gap_and_no_overlap() {
        for at in 0..BUCKETS - 1 {
            let longest = longest_in(at);
            assert_eq!((bucket(longest), bucket(longest + 1)), (at, at + 1));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(longest_in(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn percentiles_match_the_sorted_latencies() {
        let (mut odd, mut even) = (Histogram::default(), Histogram::default());
        for millis in (1..=1000).step_by(2) {
            odd.record(Duration::from_millis(millis));
            even.record(Duration::from_millis(millis + 1));
        }
        odd.merge(&even);
        assert_eq!(odd.total(), 1000);
        for (percent, expected) in [(50, 0.5), (99, 0.99), (100, 1.0)] {
            let found = odd.percentile(percent).as_secs_f64();
            assert!((expected..expected * 1.01).contains(&found), "{percent}: {found}");
        }
        assert_eq!(Histogram::default().percentile(99), Duration::ZERO);
    }
}
