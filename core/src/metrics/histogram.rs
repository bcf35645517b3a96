//! Latency distributions as sparse buckets of Prometheus native histograms.
//!
//! Schema 8: bucket *i* holds values in (2^((i−1)/256), 2^(i/256)] seconds. A bucket is 0.27 %
//! wide, and its geometric middle is at most 0.136 % from any value in it. The module `merge` adds
//! histograms.

mod bucket;
mod data;

pub(super) use self::bucket::Bucket;
pub use self::data::HistogramData;
#[cfg(feature = "crd")]
pub(crate) use self::data::{is_zero, round_seconds};
use super::statistic::Statistic;
use crate::values::Duration;

/// The native histogram schema of every latency.
pub const SCHEMA: i32 = 8;
const BUCKETS_PER_DOUBLING: f64 = 256.0;
/// The index of the last bucket, and its negative of the first one: all durations between 2^−64 s and
/// 2^64 s have a bucket of their own.
pub(super) const MAX_BUCKET: i32 = 16_384;

/// A distribution of durations in buckets 0.27 % wide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatencyHistogram {
    /// Each bucket with samples, in ascending order of the index.
    pub(super) buckets: Vec<Bucket>,
    /// Samples that are zero.
    pub(super) zero: u64,
    /// All samples.
    pub(super) count: u64,
    pub(super) sum_seconds: f64,
}

/// Why an exposed histogram can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistogramError {
    /// The histogram has another resolution.
    #[error("histogram has schema {found}, expected {SCHEMA}")]
    Schema {
        /// The schema of the histogram.
        found: i32,
    },
    /// Spans and deltas don't match, or a bucket's count is negative or too large.
    #[error("histogram buckets are malformed")]
    Buckets,
}

/// The geometric middle of a bucket.
fn middle_of(bucket: i32) -> Duration {
    Duration::from_secs_f64(((f64::from(bucket) - 0.5) / BUCKETS_PER_DOUBLING).exp2())
}

/// The nearest rank of the quantile at `p`, a fraction of one, among `count` samples: 1 is the smallest.
pub(crate) fn rank_of(p: f64, count: u64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank lies between 1 and the count"
    )]
    // `p * count` may be slightly above a whole number in binary: 0.999 * 1000 must be rank 999.
    let rank = (p * count as f64 * (1.0 - 1e-12)).ceil() as u64;
    rank.clamp(1, count.max(1))
}

impl LatencyHistogram {
    /// A distribution without samples.
    pub(super) const EMPTY: Self =
        Self { buckets: Vec::new(), zero: 0, count: 0, sum_seconds: 0.0 };

    /// The index of the bucket that holds a duration in seconds; `None` for zero.
    pub fn bucket_of(seconds: f64) -> Option<i32> {
        #[expect(clippy::cast_possible_truncation, reason = "log2 of an f64 is within ±1100")]
        let index = || (seconds.log2() * BUCKETS_PER_DOUBLING).ceil() as i32;
        (seconds > 0.0).then(|| index().clamp(-MAX_BUCKET, MAX_BUCKET))
    }

    /// Builds a distribution from the counts of buckets in ascending order of their indices, the number of samples that
    /// are zero, and the sum of all samples in seconds. Buckets without samples are left out.
    pub fn of_counts(
        all: impl Iterator<Item = (i32, u64)> + Clone,
        zero: u64,
        sum_seconds: f64,
    ) -> Self {
        let filled = all.filter(|(_, count)| *count > 0);
        let mut buckets = Vec::with_capacity(filled.clone().count());
        buckets.extend(filled.map(|(index, count)| Bucket::new(index, count)));
        let count = buckets.iter().fold(zero, |sum, bucket| sum.saturating_add(bucket.count()));
        Self { buckets, zero, count, sum_seconds }
    }

    /// Adds `count` samples of one duration in seconds.
    pub fn record(&mut self, seconds: f64, count: u64) {
        match Self::bucket_of(seconds) {
            Some(bucket) => self.add_to_bucket(bucket, count),
            None => self.zero += count,
        }
        self.count += count;
        self.sum_seconds += seconds * count as f64;
    }

    /// Adds samples to the bucket with an index.
    fn add_to_bucket(&mut self, index: i32, count: u64) {
        match self.buckets.binary_search_by_key(&index, |bucket| bucket.index()) {
            Ok(at) => {
                if let Some(bucket) = self.buckets.get_mut(at) {
                    bucket.add(count);
                }
            }
            Err(at) => self.buckets.insert(at, Bucket::new(index, count)),
        }
    }

    /// The values in ascending order, with their numbers of samples: zero, then the geometric middle of
    /// each bucket.
    pub fn values(&self) -> impl Iterator<Item = (Duration, u64)> {
        let zero = (self.zero > 0).then_some((Duration::ZERO, self.zero));
        let buckets = self.buckets.iter().map(|b| (middle_of(b.index()), b.count()));
        zero.into_iter().chain(buckets)
    }

    /// The number of samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all samples, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_seconds
    }

    /// The number of samples that are zero.
    pub fn zero_count(&self) -> u64 {
        self.zero
    }

    /// The nearest-rank quantile at `p`, a fraction of one; `None` without samples.
    pub fn quantile(&self, p: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = rank_of(p, self.count);
        let mut seen = self.zero;
        if rank <= seen {
            return Some(Duration::ZERO);
        }
        let reached = self.buckets.iter().find(|bucket| {
            seen = seen.saturating_add(bucket.count());
            rank <= seen
        });
        // Counts of buckets saturate, so a sum of implausible ones may be too small.
        reached.or(self.buckets.last()).map(|bucket| middle_of(bucket.index()))
    }

    /// The arithmetic mean; `None` without samples.
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_secs_f64(self.sum_seconds / self.count as f64))
    }

    /// One statistic; `None` without samples.
    pub fn statistic(&self, statistic: Statistic) -> Option<Duration> {
        match statistic {
            Statistic::Min => self.quantile(0.0),
            Statistic::Mean => self.mean(),
            Statistic::Quantile(p) => self.quantile(p),
            Statistic::Max => self.quantile(1.0),
        }
    }

    /// The cumulative number of samples at or below each bound in seconds, for classic buckets.
    ///
    /// A bucket that spans a bound counts as above it, so no sample is reported as too fast.
    pub fn cumulative_counts(&self, bounds: &[f64]) -> Vec<u64> {
        let mut totals = Vec::with_capacity(bounds.len());
        let mut buckets = self.buckets.iter().peekable();
        let mut seen = self.zero;
        for bound in bounds {
            while let Some(bucket) = buckets.next_if(|bucket| {
                let end = (f64::from(bucket.index()) / BUCKETS_PER_DOUBLING).exp2();
                end <= bound * (1.0 + 1e-9)
            }) {
                seen = seen.saturating_add(bucket.count());
            }
            totals.push(seen);
        }
        totals
    }

    /// Spans (offset, length) and count deltas, as the Prometheus exposition encodes buckets.
    pub fn spans_and_deltas(&self) -> (Vec<(i32, u32)>, Vec<i64>) {
        let mut spans: Vec<(i32, u32)> = Vec::new();
        let mut deltas = Vec::with_capacity(self.buckets.len());
        let mut expected = 0_i32;
        let mut previous = 0_i64;
        for bucket in &self.buckets {
            let index = bucket.index();
            match spans.last_mut() {
                Some((_, length)) if index == expected => *length += 1,
                _ => spans.push((index - expected, 1)),
            }
            expected = index + 1;
            let count = bucket.count().cast_signed();
            deltas.push(count - previous);
            previous = count;
        }
        (spans, deltas)
    }

    /// The inverse of [`Self::spans_and_deltas`].
    ///
    /// # Errors
    /// When the schema is not [`SCHEMA`], or when spans and deltas don't match.
    pub fn from_parts(
        schema: i32,
        zero: u64,
        sum_seconds: f64,
        spans: impl IntoIterator<Item = (i32, u32)>,
        deltas: &[i64],
    ) -> Result<Self, HistogramError> {
        if schema != SCHEMA {
            return Err(HistogramError::Schema { found: schema });
        }
        let mut buckets: Vec<Bucket> = Vec::with_capacity(deltas.len());
        let mut deltas = deltas.iter();
        let (mut at, mut level, mut count) = (0_i32, 0_i64, zero);
        for (offset, length) in spans {
            at = at.checked_add(offset).ok_or(HistogramError::Buckets)?;
            if !(-MAX_BUCKET..=MAX_BUCKET).contains(&at) {
                return Err(HistogramError::Buckets);
            }
            for _ in 0..length {
                let delta = deltas.next().ok_or(HistogramError::Buckets)?;
                level = level.checked_add(*delta).ok_or(HistogramError::Buckets)?;
                let n = u64::try_from(level).map_err(|_| HistogramError::Buckets)?;
                count = count.checked_add(n).ok_or(HistogramError::Buckets)?;
                if n > Bucket::MAX_COUNT || buckets.last().is_some_and(|last| last.index() >= at) {
                    return Err(HistogramError::Buckets);
                }
                if n > 0 {
                    buckets.push(Bucket::new(at, n));
                }
                at = at.checked_add(1).ok_or(HistogramError::Buckets)?;
            }
        }
        if deltas.next().is_some() {
            return Err(HistogramError::Buckets);
        }
        // Without a sample there is no sum, whatever an exposition says.
        Ok(Self { buckets, zero, count, sum_seconds: if count == 0 { 0.0 } else { sum_seconds } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(samples: &[f64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        samples.iter().for_each(|s| histogram.record(*s, 1));
        histogram
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is at most the number of samples"
    )]
    fn exact(samples: &[f64], p: f64) -> f64 {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = ((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
        sorted[rank - 1]
    }

    #[test]
    fn quantile_of_a_whole_rank_is_exact() {
        // 99.9 / 100 is slightly above 0.999 in binary.
        let nines = 99.9 / 100.0;
        for thousands in 1..=200_u64 {
            let mut histogram = LatencyHistogram::default();
            histogram.record(1.0, 999 * thousands);
            histogram.record(60.0, thousands);
            for (p, slow) in [(0.999, false), (nines, false), (0.9991, true), (1.0, true)] {
                let found = histogram.quantile(p).unwrap() > Duration::from_secs(2);
                assert_eq!(found, slow, "{p} of {thousands},000");
            }
        }
    }

    #[test]
    fn empty_histogram_has_no_quantile_and_no_mean() {
        assert_eq!(LatencyHistogram::default().quantile(0.5), None);
        assert_eq!(LatencyHistogram::default().mean(), None);
    }

    #[test]
    fn malformed_buckets_are_refused() {
        let parts = |spans: &[(i32, u32)], deltas: &[i64]| {
            LatencyHistogram::from_parts(8, 0, 0.0, spans.iter().copied(), deltas)
        };
        assert_eq!(parts(&[(0, 2)], &[1]), Err(HistogramError::Buckets));
        assert_eq!(parts(&[(0, 1)], &[1, 1]), Err(HistogramError::Buckets));
        assert_eq!(parts(&[(0, 1)], &[-1]), Err(HistogramError::Buckets));
        assert_eq!(parts(&[(i32::MAX, 2)], &[1, 0]), Err(HistogramError::Buckets));
        assert!(LatencyHistogram::from_parts(3, 0, 0.0, [], &[]).is_err());
        let without_samples = LatencyHistogram::from_parts(8, 0, 27.2, [], &[]);
        assert_eq!(without_samples, Ok(LatencyHistogram::default()));
    }

    #[test]
    fn classic_buckets_never_count_a_sample_as_too_fast() {
        let histogram = of(&[0.1, 0.2, 0.2, 5.0]);
        assert_eq!(histogram.cumulative_counts(&[0.05, 0.15, 0.25, 10.0]), [0, 1, 3, 4]);
    }

    proptest! {
        #[test]
        fn every_quantile_is_within_0_2_percent(
            samples in prop::collection::vec(1e-5_f64..60.0, 1..400),
            p in 0.0_f64..=1.0,
        ) {
            let found = of(&samples).quantile(p).unwrap().as_secs_f64();
            let error = (found / exact(&samples, p) - 1.0).abs();
            prop_assert!(error <= 0.002, "{error}");
        }

        #[test]
        fn encoding_and_decoding_are_inverse(
            samples in prop::collection::vec(0.0_f64..60.0, 0..200),
        ) {
            let histogram = of(&samples);
            let (spans, deltas) = histogram.spans_and_deltas();
            let read = LatencyHistogram::from_parts(
                SCHEMA, histogram.zero_count(), histogram.sum_seconds(), spans, &deltas,
            );
            prop_assert_eq!(read, Ok(histogram));
        }
    }
}
