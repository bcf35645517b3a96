//! The catalogue of the numbers of a whole runner.

use super::field::{Field, field};
use crate::metrics::{histogram::LatencyHistogram, run_metrics::Metrics};

/// How the values of several runners become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Their sum.
    Sum,
    /// The largest one.
    Max,
}

/// The meaning of a value in the difference of two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// The later value less the earlier one.
    Difference,
    /// The later value.
    Latest,
}

/// A row of the catalogue: one number of a whole runner.
#[derive(Debug)]
pub(crate) struct RunnerInfo {
    /// The Prometheus family. A name that ends in `_total` is a counter, any other a gauge.
    pub family: &'static str,
    /// The meaning of the number.
    pub description: &'static str,
    /// How runners are merged.
    pub merge: Merge,
    /// The value in a difference.
    pub since: Since,
    /// The field with the number.
    pub field: Field<Metrics, f64>,
}

/// Converts a count that the exposition carries as a float.
fn to_count(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate; a count is neither negative nor that large"
    )]
    {
        value.max(0.0).round() as u64
    }
}

/// Every number of a whole runner.
pub(crate) const RUNNER: [RunnerInfo; 9] = [
    RunnerInfo {
        family: "loadtest_elapsed_seconds",
        description: "Seconds of load since the runner's start, without graceful stop",
        merge: Merge::Max,
        since: Since::Difference,
        field: field!(elapsed_seconds),
    },
    RunnerInfo {
        family: "loadtest_users",
        description: "Users running now",
        merge: Merge::Sum,
        since: Since::Latest,
        field: Field { get: |m| m.users as f64, set: |m, users| m.users = to_count(users) },
    },
    RunnerInfo {
        family: "loadtest_users_peak",
        description: "Maximum of users that ran at once",
        merge: Merge::Sum,
        since: Since::Latest,
        field: Field {
            get: |m| m.users_peak as f64,
            set: |m, users| m.users_peak = to_count(users),
        },
    },
    RunnerInfo {
        family: "loadtest_user_seconds_total",
        description: "User-seconds of load, without graceful stop",
        merge: Merge::Sum,
        since: Since::Difference,
        field: field!(user_seconds),
    },
    RunnerInfo {
        family: "loadtest_busiest_thread_cpu_seconds_total",
        description: "Seconds of load that the busiest load thread was on a CPU",
        merge: Merge::Max,
        since: Since::Difference,
        field: field!(busy_seconds),
    },
    RunnerInfo {
        family: "loadtest_cpu_throttled_seconds_total",
        description: "Seconds that a CPU limit kept the runner from running",
        merge: Merge::Max,
        since: Since::Difference,
        field: field!(throttled_seconds),
    },
    RunnerInfo {
        family: "loadtest_runner_memory_bytes",
        description: "Maximum of resident memory",
        merge: Merge::Max,
        since: Since::Latest,
        field: field!(memory_bytes),
    },
    RunnerInfo {
        family: "loadtest_runner_memory_ratio",
        description: "Maximum share of the memory limit in use, without files that the kernel can drop; 0 without a limit",
        merge: Merge::Max,
        since: Since::Latest,
        field: field!(memory_ratio),
    },
    RunnerInfo {
        family: "loadtest_refused_orders_total",
        description: "Refused orders to start, stop or exit: without the token of the run, or of an operator that no longer leads",
        merge: Merge::Sum,
        since: Since::Difference,
        field: field!(refused_orders),
    },
];

/// A row of the catalogue: how late a runner was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LagInfo {
    /// The Prometheus histogram, in seconds.
    pub family: &'static str,
    /// The event that was late.
    pub description: &'static str,
    /// Reads the distribution.
    pub get: fn(&Metrics) -> &LatencyHistogram,
    /// Borrows the distribution to write it.
    pub get_mut: fn(&mut Metrics) -> &mut LatencyHistogram,
}

/// Every kind of lag.
pub(crate) const LAGS: [LagInfo; 2] = [
    LagInfo {
        family: "loadtest_schedule_lag_seconds",
        description: "Delay between the planned and the real start of a user's action",
        get: |metrics| &metrics.schedule_lag,
        get_mut: |metrics| &mut metrics.schedule_lag,
    },
    LagInfo {
        family: "loadtest_event_loop_lag_seconds",
        description: "Delay between a timer of a load thread and the moment the thread ran it",
        get: |metrics| &metrics.event_loop_lag,
        get_mut: |metrics| &mut metrics.event_loop_lag,
    },
];
