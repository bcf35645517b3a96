//! The catalogue: every metric of a runner, declared once.
//!
//! Encoding, decoding, merging, differences, windows, thresholds, status rows and the table in
//! `docs/metrics.md` all follow from these tables. To add a latency, add a variant to
//! [`LatencyMetric`] and a row to [`LATENCIES`], then record it in the runner.

mod counters;
mod field;
mod labelled;
mod latencies;
mod metric;
mod runner;
mod scope;

pub(super) use counters::COUNTERS;
pub(super) use labelled::LABELLED;
pub use latencies::{JudgedLatency, LATENCIES, LatencyInfo, LatencyMetric};
pub use metric::{Metric, Unit};
pub(super) use runner::{LAGS, Merge, RUNNER, Since};
pub use scope::TaskScope;

/// Prometheus families that have no row in a table below.
pub mod names {
    /// Info gauge that identifies a runner: labels `run`, `index`, `pod_uid`, `contract`.
    pub const RUNNER_INFO: &str = "loadtest_runner_info";
    /// Gauge with the number of a step of a runner's history; `whole` is `true` or `false`. It is in no
    /// exposition for Prometheus.
    pub const HISTORY_STEP: &str = "loadtest_history_step";
    /// Histogram of latencies of requests that were sent late, by task and `metric`.
    pub const LATE: &str = "loadtest_late_seconds";
    /// Gauge of [`crate::metrics::RunnerState`].
    pub const RUNNER_STATE: &str = "loadtest_runner_state";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_share_family_and_label() {
        let mut keys: Vec<_> = LATENCIES.iter().map(|info| (info.family, info.label)).collect();
        keys.extend(COUNTERS.iter().map(|info| (info.family, info.label)));
        keys.extend(LABELLED.iter().map(|info| (info.family, None)));
        keys.extend(RUNNER.iter().map(|info| (info.family, None)));
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
