//! Latency distributions in a result: figures for reading, and the histogram for computing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    metrics::{HistogramData, LatencyHistogram},
    values::Duration,
};

/// A latency distribution. All times are in seconds.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct Distribution {
    /// Number of samples.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Shortest sample.
    pub min: f64,
    /// 50th percentile.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Longest sample.
    pub max: f64,
    /// All samples, from which every other percentile can be computed.
    pub histogram: HistogramData,
}

impl Distribution {
    /// The distribution of a histogram; `None` without samples.
    pub fn of(histogram: &LatencyHistogram) -> Option<Self> {
        let quantile = |p| histogram.quantile(p).map(Duration::as_secs_f64);
        Some(Self {
            count: histogram.count(),
            mean: histogram.mean()?.as_secs_f64(),
            min: quantile(0.0)?,
            p50: quantile(0.5)?,
            p90: quantile(0.9)?,
            p95: quantile(0.95)?,
            p99: quantile(0.99)?,
            p999: quantile(0.999)?,
            max: quantile(1.0)?,
            histogram: HistogramData::of(histogram),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_without_samples_is_none() {
        assert_eq!(Distribution::of(&LatencyHistogram::default()), None);
    }
}
