//! Copies of measurements: [`ThreadSnapshot`] of one load thread, [`Snapshot`] of a runner.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use loadtest_core::metrics::Metrics;

use crate::{
    measure::{duration_histogram::DurationHistogram, recorder::TaskRecorder},
    prepare::plan::PreparedPlan,
};

/// Everything that a runner has measured so far.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Metrics of all load threads.
    pub metrics: Metrics,
    /// One error message per task and kind of error.
    pub examples: BTreeMap<(String, String), String>,
}

/// A copy of the measurements of one load thread. The engine's thread converts it to metrics.
#[derive(Debug)]
pub(crate) struct ThreadSnapshot {
    /// One recorder per task, in the plan's order.
    pub(crate) tasks: Vec<TaskRecorder>,
    pub(crate) schedule_lag: DurationHistogram,
    pub(crate) event_loop_lag: DurationHistogram,
    pub(crate) active_users: u64,
    pub(crate) peak_users: u64,
    pub(crate) user_seconds: f64,
    /// CPU time of the thread during its load.
    pub(crate) busy: Duration,
    /// The end of the copy.
    pub(crate) taken_at: Instant,
}

impl ThreadSnapshot {
    /// Converts the snapshot to metrics. This takes milliseconds, so a load thread must not call
    /// it.
    pub(crate) fn to_metrics(&self, prepared: &PreparedPlan) -> Metrics {
        let tasks = prepared.tasks.iter().zip(&self.tasks);
        Metrics {
            runners: BTreeMap::new(),
            cpu_times: BTreeMap::new(),
            tasks: tasks.map(|(task, copy)| (task.name.clone(), copy.to_metrics())).collect(),
            schedule_lag: self.schedule_lag.to_latency_histogram(),
            event_loop_lag: self.event_loop_lag.to_latency_histogram(),
            users: self.active_users,
            users_peak: self.peak_users,
            user_seconds: self.user_seconds,
            // The engine sets these.
            elapsed_seconds: 0.0,
            busy_seconds: 0.0,
            throttled_seconds: 0.0,
            memory_bytes: 0.0,
            memory_ratio: 0.0,
            refused_orders: 0.0,
        }
    }

    /// Returns one error message per task and kind of error, without values of Secrets.
    pub(crate) fn error_examples(
        &self,
        prepared: &PreparedPlan,
    ) -> BTreeMap<(String, String), String> {
        let tasks = prepared.tasks.iter().zip(&self.tasks);
        tasks
            .flat_map(|(task, copy)| {
                copy.error_examples().map(|(kind, text)| {
                    ((task.name.clone(), kind.to_string()), prepared.secrets.hide(text))
                })
            })
            .collect()
    }
}
