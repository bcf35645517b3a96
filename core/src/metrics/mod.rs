//! The metrics of runners: the catalogue, the numbers, and their exposition.
//!
//! Runners expose these metrics to Prometheus. The operator, the CLI and any Prometheus read the
//! same exposition. All numbers are cumulative, so a later scrape contains an earlier one, and the
//! difference of two snapshots is exactly what happened in between.

pub mod catalog;
#[cfg(feature = "control")]
mod decode;
pub mod document;
#[cfg(feature = "control")]
mod encode;
mod histogram;
mod task;

use std::collections::BTreeMap;

pub use catalog::{LatencyMetric, Metric, TaskScope, Unit, names};
#[cfg(feature = "control")]
pub use decode::{ExpositionError, decode};
#[cfg(feature = "control")]
pub use encode::{ExpositionOptions, Format, encode};
pub use histogram::{HistogramError, LatencyHistogram, SCHEMA};
pub use task::{Latencies, Outcome, TaskMetrics, Tokens};

use catalog::{LAGS, Merge, RUNNER, Since};

/// The metrics of one runner, or of several runners merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The metrics of each task, by the task's name.
    pub tasks: BTreeMap<String, TaskMetrics>,
    /// Delay between the planned and the real start of users' actions.
    pub schedule_lag: LatencyHistogram,
    /// Delay between timers of load threads and the moment they ran. A long delay means that a
    /// load thread was kept from running, whatever its users did.
    pub event_loop_lag: LatencyHistogram,
    /// Users running now.
    pub users: f64,
    /// Maximum of users that ran at once; of several runners, the sum of their maxima.
    pub users_peak: f64,
    /// User-seconds of load.
    pub user_seconds: f64,
    /// Seconds of load since the start, without graceful stop; of several runners, the longest.
    pub elapsed_seconds: f64,
    /// Seconds of load that the busiest load thread was on a CPU; of several runners, the most.
    pub busy_seconds: f64,
    /// Seconds that a CPU limit kept a runner from running; of several runners, the most.
    pub throttled_seconds: f64,
    /// Maximum of resident memory in bytes; of several runners, the largest.
    pub memory_bytes: f64,
    /// Maximum share of the memory limit in use, zero without a limit; of several runners, the
    /// largest.
    pub memory_ratio: f64,
}

impl Metrics {
    /// Adds the metrics of another runner.
    pub fn merge(&mut self, other: &Self) {
        for (name, task) in &other.tasks {
            self.tasks.entry(name.clone()).or_default().merge(task);
        }
        for lag in &LAGS {
            (lag.get_mut)(self).merge((lag.get)(other));
        }
        for info in &RUNNER {
            let (mine, theirs) = ((info.field.get)(self), (info.field.get)(other));
            let merged = match info.merge {
                Merge::Sum => mine + theirs,
                Merge::Max => mine.max(theirs),
            };
            (info.field.set)(self, merged);
        }
    }

    /// The metrics since `earlier`, an older snapshot of the same metrics. Users and memory keep
    /// their latest values.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let none = TaskMetrics::default();
        let mut difference = Self {
            tasks: self
                .tasks
                .iter()
                .map(|(name, task)| {
                    (name.clone(), task.since(earlier.tasks.get(name).unwrap_or(&none)))
                })
                .collect(),
            ..Self::default()
        };
        for lag in &LAGS {
            *(lag.get_mut)(&mut difference) = (lag.get)(self).since((lag.get)(earlier));
        }
        for info in &RUNNER {
            let (now, before) = ((info.field.get)(self), (info.field.get)(earlier));
            let value = match info.since {
                Since::Difference => (now - before).max(0.0),
                Since::Latest => now,
            };
            (info.field.set)(&mut difference, value);
        }
        difference
    }

    /// A copy without the latencies that `keep` refuses. Long tests hold many snapshots, and
    /// latencies are nearly all of their size.
    #[must_use]
    pub fn with_latencies(&self, keep: impl Fn(LatencyMetric) -> bool) -> Self {
        let reduced =
            |(name, task): (&String, &TaskMetrics)| (name.clone(), task.with_latencies(&keep));
        let mut copy = Self { tasks: self.tasks.iter().map(reduced).collect(), ..Self::default() };
        for lag in &LAGS {
            (lag.get_mut)(&mut copy).clone_from((lag.get)(self));
        }
        for info in &RUNNER {
            (info.field.set)(&mut copy, (info.field.get)(self));
        }
        copy
    }

    /// The share of the load's time that the busiest load thread was on a CPU.
    pub fn busiest_thread_share(&self) -> f64 {
        if self.elapsed_seconds > 0.0 { self.busy_seconds / self.elapsed_seconds } else { 0.0 }
    }

    /// All tasks merged into one.
    pub fn all_tasks(&self) -> TaskMetrics {
        self.tasks.values().fold(TaskMetrics::default(), |mut total, task| {
            total.merge(task);
            total
        })
    }
}

/// Identifies the runner of an exposition. The operator discards an exposition of any other
/// runner, because pod IPs are reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// UID of the `LoadTest`.
    pub run_uid: String,
    /// The runner's index in its Job.
    pub index: u32,
    /// UID of the pod.
    pub pod_uid: String,
}

/// How far a runner has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunnerState {
    /// The runner has no start order yet.
    #[default]
    Waiting,
    /// The runner has a start order, or makes load.
    Running,
    /// The load is over and the metrics are final.
    Done,
    /// The runner was told to exit; its metrics are final.
    Released,
    /// The runner ended before its load did, killed or by a fault of its own. Its metrics are
    /// final, and those of less load than planned.
    CutShort,
}

impl RunnerState {
    /// Every state, in the order of [`Self::value`].
    pub const ALL: [Self; 5] =
        [Self::Waiting, Self::Running, Self::Done, Self::Released, Self::CutShort];

    /// The value of the gauge [`names::RUNNER_STATE`].
    pub const fn value(self) -> i64 {
        self as i64
    }

    /// True when the metrics won't change any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Released | Self::CutShort)
    }

    /// True when the runner made its share of the load to the end.
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Done | Self::Released)
    }
}

/// The content of one exposition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunnerMetrics {
    /// The runner that exposes the metrics.
    pub identity: Identity,
    /// How far that runner has come.
    pub state: RunnerState,
    /// What it measured.
    pub metrics: Metrics,
}
