//! A histogram of durations for the hot path. One load thread owns it: recording takes no lock.

use loadtest_core::metrics::LatencyHistogram;

/// The counts grow by a quarter of a doubling, in buckets.
const GROWTH: i32 = 64;

/// Durations in the buckets of [`LatencyHistogram`]. Unlike there, each bucket between the smallest and the largest
/// sample has a count, so that recording is fast.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurationHistogram {
    /// Index of the bucket of the first count.
    first: i32,
    counts: Vec<u64>,
    /// Samples that are zero.
    zero: u64,
    sum_nanos: u128,
}

impl DurationHistogram {
    pub(crate) fn record(&mut self, nanos: u64) {
        self.record_many(nanos, 1);
    }

    /// Records the same duration several times.
    pub(crate) fn record_many(&mut self, nanos: u64, count: u64) {
        self.sum_nanos += u128::from(nanos) * u128::from(count);
        let Some(bucket) = LatencyHistogram::bucket_of(nanos as f64 / 1e9) else {
            self.zero += count;
            return;
        };
        if let Some(sum) = self.count_mut(bucket) {
            *sum += count;
            return;
        }
        self.include(bucket);
        if let Some(sum) = self.count_mut(bucket) {
            *sum += count;
        }
    }

    fn count_mut(&mut self, bucket: i32) -> Option<&mut u64> {
        let at = usize::try_from(bucket.checked_sub(self.first)?).ok()?;
        self.counts.get_mut(at)
    }

    /// Makes room for a bucket.
    fn include(&mut self, bucket: i32) {
        let start = bucket.div_euclid(GROWTH) * GROWTH;
        let end = start.saturating_add(GROWTH);
        let length = i32::try_from(self.counts.len()).unwrap_or(i32::MAX);
        let (first, last) = if length == 0 {
            (start, end)
        } else {
            (start.min(self.first), end.max(self.first.saturating_add(length)))
        };
        let size_of = |from: i32, to: i32| usize::try_from(to - from).unwrap_or_default();
        let mut counts = Vec::with_capacity(size_of(first, last));
        if length > 0 {
            counts.resize(size_of(first, self.first), 0);
        }
        counts.extend_from_slice(&self.counts);
        counts.resize(size_of(first, last), 0);
        (self.first, self.counts) = (first, counts);
    }

    /// Converts the samples to sparse buckets.
    ///
    /// Yields the CPU first: the scheduler does not preempt a thread within its slice of some
    /// milliseconds, not even for a load thread on the same core.
    pub(crate) fn to_latency_histogram(&self) -> LatencyHistogram {
        std::thread::yield_now();
        let buckets = (self.first..).zip(self.counts.iter().copied());
        LatencyHistogram::of_counts(buckets, self.zero, self.sum_nanos as f64 / 1e9)
    }
}

/// Returns a duration in nanoseconds, at most `u64::MAX`.
pub(crate) fn nanos_of(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The status promises quantiles within 0.2 % of the exact value.
        #[test]
        fn quantiles_are_nearly_exact(
            samples in prop::collection::vec(1_u64..60_000_000_000, 1..300),
            p in 0.0_f64..=1.0,
        ) {
            let mut histogram = DurationHistogram::default();
            samples.iter().for_each(|nanos| histogram.record(*nanos));
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            // The smallest sample with a share of at least p at or below it.
            let at_or_below = |i: usize| (i + 1) as f64 >= p * sorted.len() as f64;
            let exact = sorted[(0..sorted.len()).find(|i| at_or_below(*i)).unwrap()] as f64 / 1e9;
            let native = histogram.to_latency_histogram();
            prop_assert_eq!(native.count(), samples.len() as u64);
            let found = native.quantile(p).unwrap().as_secs_f64();
            // A duration has whole nanoseconds.
            prop_assert!((found - exact).abs() <= exact * 0.0014 + 1e-9, "{found} for {exact}");
        }

        #[test]
        fn buckets_are_those_of_a_latency_histogram(
            samples in prop::collection::vec((0_u64..u64::MAX, 0_u64..5), 0..50),
        ) {
            let (mut dense, mut sparse) = (DurationHistogram::default(), LatencyHistogram::default());
            for (nanos, count) in samples.iter().filter(|(_, count)| *count > 0) {
                dense.record_many(*nanos, *count);
                sparse.record(*nanos as f64 / 1e9, *count);
            }
            let native = dense.to_latency_histogram();
            let sum = native.sum_seconds();
            prop_assert!((sum - sparse.sum_seconds()).abs() <= 1e-9 * sum);
            prop_assert_eq!(native.spans_and_deltas(), sparse.spans_and_deltas());
            let counts = |histogram: &LatencyHistogram| (histogram.count(), histogram.zero_count());
            prop_assert_eq!(counts(&native), counts(&sparse));
        }
    }

    #[test]
    fn latencies_up_to_four_seconds_take_little_memory() {
        let mut histogram = DurationHistogram::default();
        [1_000_000, 4_000_000_000, 0].into_iter().for_each(|nanos| histogram.record(nanos));
        assert!(histogram.counts.capacity() < 3300, "{}", histogram.counts.capacity());
        assert_eq!(histogram.to_latency_histogram().count(), 3);
    }
}
