//! A latency histogram as JSON documents hold it.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{HistogramError, LatencyHistogram, SCHEMA};

/// Samples in buckets, as in a Prometheus native histogram of schema 8: the bucket with index *i*
/// holds the samples above 2^((i−1)/256) and up to 2^(i/256) seconds. A percentile is the geometric
/// middle of its bucket, at most 0.14 % away from every sample in it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct HistogramData {
    /// Number of samples.
    pub count: u64,
    /// Sum of the samples, in seconds.
    pub sum: f64,
    /// Number of samples that are zero.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zero: u64,
    /// Runs of consecutive buckets: the number of buckets left out before the run, and the length of
    /// the run. The first number of the first run is the index of its first bucket.
    pub spans: Vec<(i32, u32)>,
    /// Number of samples in each bucket of the runs, in the order of the buckets.
    pub counts: Vec<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Rounds to whole nanoseconds, which are shorter in JSON. Numbers come from runner pods, which are not
/// trusted: JSON has no infinity.
pub(crate) fn round_seconds(seconds: f64) -> f64 {
    let rounded = (seconds * 1e9).round() / 1e9;
    if rounded.is_finite() { rounded } else { seconds.clamp(-f64::MAX, f64::MAX) }
}

impl HistogramData {
    /// The samples of a histogram.
    pub fn of(histogram: &LatencyHistogram) -> Self {
        let (spans, deltas) = histogram.spans_and_deltas();
        let mut level = 0_i64;
        let counts = deltas.iter().map(|delta| {
            level += delta;
            u64::try_from(level).unwrap_or(0)
        });
        Self {
            count: histogram.count(),
            sum: round_seconds(histogram.sum_seconds()),
            zero: histogram.zero_count(),
            counts: counts.collect(),
            spans,
        }
    }

    /// The histogram of the samples.
    ///
    /// # Errors
    /// When the runs of buckets and the counts don't match, as in a file that was changed.
    pub fn to_histogram(&self) -> Result<LatencyHistogram, HistogramError> {
        let mut previous = 0_i64;
        let deltas: Result<Vec<i64>, _> = self
            .counts
            .iter()
            .map(|count| {
                let count = i64::try_from(*count).map_err(|_| HistogramError::Buckets)?;
                Ok(count - std::mem::replace(&mut previous, count))
            })
            .collect();
        let spans = self.spans.iter().copied();
        LatencyHistogram::from_parts(SCHEMA, self.zero, self.sum, spans, &deltas?)
    }

    /// The same samples in wider buckets: each stands in the middle one of `width` buckets.
    ///
    /// # Errors
    /// When the data is malformed; see [`Self::to_histogram`].
    pub fn with_wider_buckets(&self, width: i32) -> Result<Self, HistogramError> {
        let width = width.max(1);
        let mut wide = Self { spans: Vec::new(), counts: Vec::new(), ..self.clone() };
        let mut counts = self.counts.iter();
        let (mut index, mut end) = (0_i32, 0_i32);
        for (gap, length) in &self.spans {
            index = index.checked_add(*gap).ok_or(HistogramError::Buckets)?;
            for _ in 0..*length {
                let count = counts.next().ok_or(HistogramError::Buckets)?;
                let middle =
                    index.div_euclid(width).saturating_mul(width).saturating_add(width / 2);
                match wide.counts.last_mut() {
                    Some(last) if middle.checked_add(1) == Some(end) => {
                        *last = last.saturating_add(*count);
                    }
                    _ => {
                        let gap = middle.checked_sub(end).ok_or(HistogramError::Buckets)?;
                        wide.spans.push((gap, 1));
                        wide.counts.push(*count);
                        end = middle.checked_add(1).ok_or(HistogramError::Buckets)?;
                    }
                }
                index = index.checked_add(1).ok_or(HistogramError::Buckets)?;
            }
        }
        Ok(wide)
    }

    /// Adds the samples of another interval.
    ///
    /// # Errors
    /// When one of the two is malformed; see [`Self::to_histogram`].
    pub fn merge(&mut self, other: &Self) -> Result<(), HistogramError> {
        let mut sum = self.to_histogram()?;
        sum.merge(&other.to_histogram()?);
        *self = Self::of(&sum);
        Ok(())
    }
}

impl Serialize for LatencyHistogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        HistogramData::of(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LatencyHistogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        HistogramData::deserialize(deserializer)?.to_histogram().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram_of(samples: &[f64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        samples.iter().for_each(|sample| histogram.record(*sample, 1));
        histogram
    }

    #[test]
    fn malformed_data_is_refused() {
        let data = HistogramData::of(&histogram_of(&[0.1, 0.2]));
        let broken = HistogramData { counts: vec![1], ..data.clone() };
        assert_eq!(broken.to_histogram(), Err(HistogramError::Buckets));
        for count in [u64::MAX, 1 << 48] {
            let huge = HistogramData { counts: vec![count, 1], ..data.clone() };
            assert_eq!(huge.to_histogram(), Err(HistogramError::Buckets), "{count}");
        }
        // The second run would begin before the first bucket that there is.
        let far = HistogramData { spans: vec![(9, 1), (i32::MIN, 1)], counts: vec![1; 2], ..data };
        assert_eq!(far.with_wider_buckets(16), Err(HistogramError::Buckets));
    }

    #[test]
    fn wider_buckets_keep_every_sample() {
        let samples: Vec<f64> = (1..=1000).map(|n| f64::from(n) * 0.001).collect();
        let data = HistogramData::of(&histogram_of(&samples));
        let wide = data.with_wider_buckets(16).unwrap();
        let (exact, found) = (data.to_histogram().unwrap(), wide.to_histogram().unwrap());
        assert_eq!(found.count(), 1000);
        assert!(wide.counts.len() * 5 < data.counts.len(), "{}", wide.counts.len());
        for p in [0.01, 0.5, 0.95, 1.0] {
            let seconds = |h: &LatencyHistogram| h.quantile(p).unwrap().as_secs_f64();
            assert!((seconds(&found) / seconds(&exact) - 1.0).abs() < 0.025, "{p}");
        }
    }

    proptest! {
        #[test]
        fn data_and_histogram_are_inverse(
            samples in prop::collection::vec(0.0_f64..60.0, 0..200),
            more in prop::collection::vec(0.0_f64..60.0, 0..200),
        ) {
            let mut data = HistogramData::of(&histogram_of(&samples));
            data.merge(&HistogramData::of(&histogram_of(&more))).unwrap();
            let mut whole = histogram_of(&samples);
            whole.merge(&histogram_of(&more));
            prop_assert_eq!(&data.counts, &HistogramData::of(&whole).counts);
            for p in [0.0, 0.5, 0.99, 1.0] {
                prop_assert_eq!(data.to_histogram().unwrap().quantile(p), whole.quantile(p));
            }
        }
    }
}
