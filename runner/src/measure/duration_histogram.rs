//! An HDR histogram of durations. One load thread owns it: recording takes no lock.

use std::time::Duration;

use hdrhistogram::Histogram;
use loadtest_core::metrics::LatencyHistogram;

/// Durations in nanoseconds, with three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct DurationHistogram {
    counts: Histogram<u64>,
    sum_nanos: u128,
}

impl Default for DurationHistogram {
    fn default() -> Self {
        // The crate accepts three digits. The histogram grows with the largest value.
        #[expect(clippy::expect_used, reason = "a constant the crate documents as valid")]
        let counts = Histogram::new(3).expect("three digits are valid");
        Self { counts, sum_nanos: 0 }
    }
}

impl DurationHistogram {
    pub(crate) fn record(&mut self, nanos: u64) {
        self.record_many(nanos, 1);
    }

    /// Records the same duration several times.
    pub(crate) fn record_many(&mut self, nanos: u64, count: u64) {
        // A histogram that resizes itself refuses no value.
        if self.counts.record_n(nanos, count).is_ok() {
            self.sum_nanos += u128::from(nanos) * u128::from(count);
        }
    }

    /// Converts the samples to native buckets. Each sample counts as the middle of its HDR bucket.
    ///
    /// Yields the CPU first: the scheduler does not preempt a thread within its slice of some
    /// milliseconds, not even for a load thread on the same core.
    pub(crate) fn to_latency_histogram(&self) -> LatencyHistogram {
        std::thread::yield_now();
        let mut native = LatencyHistogram::default();
        for step in self.counts.iter_recorded() {
            let middle = self.counts.median_equivalent(step.value_iterated_to());
            native.record(middle as f64 / 1e9, step.count_at_value());
        }
        native.set_sum(self.sum_nanos as f64 / 1e9);
        native
    }
}

/// Returns a duration in nanoseconds, at most `u64::MAX`.
pub(crate) fn nanos_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The status promises quantiles within 0.2 % of the exact value. Both roundings, to HDR
        /// buckets and to native buckets, are included.
        #[test]
        fn quantiles_survive_both_roundings(
            samples in prop::collection::vec(10_000_u64..60_000_000_000, 1..300),
            p in 0.0_f64..=1.0,
        ) {
            let mut histogram = DurationHistogram::default();
            samples.iter().for_each(|nanos| histogram.record(*nanos));
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            // The smallest sample with a share of at least p at or below it.
            let at_or_below = |i: usize| (i + 1) as f64 >= p * sorted.len() as f64;
            let exact = sorted[(0..sorted.len()).find(|i| at_or_below(*i)).unwrap()] as f64 / 1e9;
            let found = histogram.to_latency_histogram().quantile(p).unwrap().as_secs_f64();
            prop_assert!((found / exact - 1.0).abs() <= 0.002, "{found} for {exact}");
        }
    }
}
