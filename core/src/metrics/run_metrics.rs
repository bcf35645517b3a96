//! The metrics of a run: of one runner, or of several runners merged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{histogram::LatencyHistogram, task::TaskMetrics};

/// The metrics of one runner, or of several runners merged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// The metrics of each task, by the task's name.
    pub tasks: BTreeMap<String, TaskMetrics>,
    /// Delay between the planned and the real start of users' actions.
    pub schedule_lag: LatencyHistogram,
    /// Delay between timers of load threads and the moment they ran. A long delay means that a
    /// load thread was kept from running, whatever its users did.
    pub event_loop_lag: LatencyHistogram,
    /// Users running now.
    pub users: u64,
    /// Maximum of users that ran at once; of several runners, the sum of their maxima.
    pub users_peak: u64,
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
    /// Orders without the token of the run.
    pub refused_orders: f64,
    /// How each runner did as a load generator, by its name. Filled by
    /// [`Self::merge_runner`].
    pub runners: BTreeMap<String, GeneratorMetrics>,
    /// CPU times of each runner, by its index. Only in snapshots of several runners that are judged over time: with these,
    /// [`Self::since`] finds the runner that was held up the most in an interval. Not stored.
    #[serde(skip)]
    pub cpu_times: BTreeMap<u32, CpuTimes>,
}

/// CPU times of one runner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTimes {
    /// See [`Metrics::busy_seconds`].
    pub busy_seconds: f64,
    /// See [`Metrics::throttled_seconds`].
    pub throttled_seconds: f64,
}

/// The measurements that show whether one runner was able to make its load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GeneratorMetrics {
    /// Completed requests of all tasks.
    pub requests: u64,
    /// See [`Metrics::schedule_lag`].
    pub schedule_lag: LatencyHistogram,
    /// See [`Metrics::event_loop_lag`].
    pub event_loop_lag: LatencyHistogram,
    /// See [`Metrics::user_seconds`].
    pub user_seconds: f64,
    /// See [`Metrics::elapsed_seconds`].
    pub elapsed_seconds: f64,
    /// See [`Metrics::busy_seconds`].
    pub busy_seconds: f64,
    /// See [`Metrics::throttled_seconds`].
    pub throttled_seconds: f64,
    /// See [`Metrics::memory_ratio`].
    pub memory_ratio: f64,
}

impl GeneratorMetrics {
    /// The share of the load's time that the busiest load thread was on a CPU.
    pub fn busiest_thread_share(&self) -> f64 {
        if self.elapsed_seconds > 0.0 { self.busy_seconds / self.elapsed_seconds } else { 0.0 }
    }
}

impl Metrics {
    /// Completed requests of all tasks.
    pub fn completed_requests(&self) -> u64 {
        let tasks = self.tasks.values();
        tasks.fold(0, |sum, task| sum.saturating_add(task.completed_requests()))
    }

    /// The CPU times: of one runner, or the largest ones of several.
    pub const fn own_cpu_times(&self) -> CpuTimes {
        CpuTimes { busy_seconds: self.busy_seconds, throttled_seconds: self.throttled_seconds }
    }

    /// The measurements of the load generator: of all runners merged.
    pub fn generator(&self) -> GeneratorMetrics {
        GeneratorMetrics {
            requests: self.completed_requests(),
            schedule_lag: self.schedule_lag.clone(),
            event_loop_lag: self.event_loop_lag.clone(),
            user_seconds: self.user_seconds,
            elapsed_seconds: self.elapsed_seconds,
            busy_seconds: self.busy_seconds,
            throttled_seconds: self.throttled_seconds,
            memory_ratio: self.memory_ratio,
        }
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// UID of the `LoadTest`.
    pub run_uid: String,
    /// The runner's index in its Job.
    pub index: u32,
    /// UID of the pod.
    pub pod_uid: String,
}

/// How far a runner has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The value of the gauge `loadtest_runner_state`.
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunnerMetrics {
    /// The runner that exposes the metrics.
    pub identity: Identity,
    /// How far that runner has come.
    pub state: RunnerState,
    /// The measurements.
    pub metrics: Metrics,
}
