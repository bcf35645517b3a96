//! A run over time: the numbers and the histograms of each interval.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::packed::{QUICK, compress};
pub use self::{
    packed::PackedSeries,
    recorder::{PointList, SeriesRecorder},
};
use crate::metrics::{
    HistogramData, HistogramError, LatencyMetric, Outcome, SIZE_LIMIT, TaskMetrics, is_zero,
    round_seconds,
};

mod packed;
mod recorder;

/// Maximum number of points of a series. A series that is full doubles its step.
const MAX_POINTS: usize = 720;
/// Maximum number of counts in all histograms of a series: a few MB of memory.
const MAX_COUNTS: usize = 400_000;
/// The first step of a series, in seconds.
const FIRST_STEP: f64 = 1.0;

/// A run over time. The intervals of the points follow each other without a gap, and the sum of all
/// points is exactly the whole run.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// Usual length of an interval, in seconds.
    pub step_seconds: f64,
    /// The intervals, in their order.
    pub points: Vec<Point>,
}

/// One interval of a run. Times are in seconds from the start of the load.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Start of the interval.
    pub start: f64,
    /// End of the interval. The last interval also holds the requests that ended in the graceful
    /// stop.
    pub end: f64,
    /// Number of users that ran at the end of the interval; at the end of the load, the number before
    /// they ended.
    pub users: u64,
    /// Number of users that the spec asks for, on average over the interval; only in a closed model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_users: Option<f64>,
    /// Arrivals per second that the spec asks for, on average over the interval; only in an open
    /// model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_rate: Option<f64>,
    /// Seconds that the busiest load thread was on a CPU.
    pub busy_seconds: f64,
    /// Seconds that a CPU limit kept a runner from running.
    #[serde(default)]
    pub throttled_seconds: f64,
    /// Delay between the planned and the real start of users' actions.
    pub schedule_lag: HistogramData,
    /// The numbers of each task that had any.
    pub tasks: BTreeMap<String, TaskPoint>,
}

/// The numbers of one task in one interval.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskPoint {
    /// Completed requests, failed ones included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requests: u64,
    /// Failed requests, timeouts included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u64,
    /// Requests that timed out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeouts: u64,
    /// Requests that were in flight when the graceful stop ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interrupted: u64,
    /// Arrivals that were not sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Successful requests that ended while load was on: the base of throughput.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub successes_in_load: u64,
    /// Generated tokens that came while load was on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens_in_load: u64,
    /// Bytes written to sockets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sent_bytes: u64,
    /// Bytes read from sockets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub received_bytes: u64,
    /// Errors by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    /// The samples of each latency that had any, by the names that thresholds use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latencies: BTreeMap<String, HistogramData>,
}

impl TaskPoint {
    fn of(task: &TaskMetrics) -> Self {
        let mut latencies = BTreeMap::new();
        for (metric, judged) in LatencyMetric::all_judged() {
            let samples = task.latencies.samples(metric);
            if samples.count() > 0 {
                latencies.insert(judged.name.to_owned(), HistogramData::of(&samples));
            }
        }
        let errors = task.errors.iter().filter(|(_, count)| **count > 0);
        Self {
            requests: task.completed_requests(),
            failures: task.failed_requests(),
            timeouts: task.requests_with(Outcome::Timeout),
            interrupted: task.requests_with(Outcome::Interrupted),
            dropped: task.dropped,
            successes_in_load: task.successes_in_load,
            tokens_in_load: task.tokens_in_load,
            sent_bytes: task.sent_bytes,
            received_bytes: task.received_bytes,
            errors: errors.map(|(kind, count)| (kind.clone(), *count)).collect(),
            latencies,
        }
    }

    /// The numerator and the denominator of `errorRate`; see
    /// [`TaskMetrics::errors_and_dropped`] and [`TaskMetrics::judged_requests`].
    pub(super) fn errors_and_judged(&self) -> (f64, f64) {
        let too_large = self.errors.get(SIZE_LIMIT).copied().unwrap_or(0);
        let without = |count: u64| count.saturating_add(self.dropped).saturating_sub(too_large);
        (without(self.failures) as f64, without(self.requests) as f64)
    }

    /// The samples of a latency; `None` if there are none.
    pub fn latency(&self, metric: LatencyMetric) -> Option<&HistogramData> {
        self.latencies.get(metric.info().judged?.name)
    }

    /// Adds the numbers of the same task in another interval.
    pub(super) fn merge(&mut self, other: &Self) -> Result<(), HistogramError> {
        // A file that was changed may hold any number.
        let add = |mine: &mut u64, theirs: u64| *mine = mine.saturating_add(theirs);
        add(&mut self.requests, other.requests);
        add(&mut self.failures, other.failures);
        add(&mut self.timeouts, other.timeouts);
        add(&mut self.interrupted, other.interrupted);
        add(&mut self.dropped, other.dropped);
        add(&mut self.successes_in_load, other.successes_in_load);
        add(&mut self.tokens_in_load, other.tokens_in_load);
        add(&mut self.sent_bytes, other.sent_bytes);
        add(&mut self.received_bytes, other.received_bytes);
        for (kind, count) in &other.errors {
            add(self.errors.entry(kind.clone()).or_default(), *count);
        }
        for (metric, samples) in &other.latencies {
            self.latencies.entry(metric.clone()).or_default().merge(samples)?;
        }
        Ok(())
    }
}

impl Point {
    /// Length of the interval in seconds.
    pub fn seconds(&self) -> f64 {
        self.end - self.start
    }

    /// Adds the next interval to this one.
    fn merge(&mut self, next: &Self) -> Result<(), HistogramError> {
        let (mine, theirs) = (self.seconds(), next.seconds());
        let mean = |a: Option<f64>, b: Option<f64>| {
            let whole = mine + theirs;
            let (a, b) = (a?, b?);
            Some(if whole > 0.0 { (a * mine + b * theirs) / whole } else { b })
        };
        self.planned_users = mean(self.planned_users, next.planned_users);
        self.planned_rate = mean(self.planned_rate, next.planned_rate);
        self.end = next.end;
        self.users = next.users;
        self.busy_seconds = round_seconds(self.busy_seconds + next.busy_seconds);
        self.throttled_seconds = round_seconds(self.throttled_seconds + next.throttled_seconds);
        self.schedule_lag.merge(&next.schedule_lag)?;
        for (name, task) in &next.tasks {
            self.tasks.entry(name.clone()).or_default().merge(task)?;
        }
        Ok(())
    }

    /// Number of counts in the histograms of the point.
    fn histogram_size(&self) -> usize {
        let latencies = self.tasks.values().flat_map(|task| task.latencies.values());
        let latencies: usize = latencies.map(|samples| samples.counts.len()).sum();
        latencies + self.schedule_lag.counts.len()
    }
}

/// Returns true if a series with so many points, and so many counts in their histograms, needs a longer step.
const fn is_full(points: usize, counts: usize) -> bool {
    points > 1 && (points > MAX_POINTS || counts > MAX_COUNTS)
}

impl Series {
    /// Halves the number of points: merges each point with the next one and doubles the step. No
    /// number is lost, only the time at which it was measured is less exact.
    ///
    /// # Errors
    /// When a histogram is malformed, as in a file that was changed.
    pub fn halve(&mut self) -> Result<(), HistogramError> {
        let points = std::mem::take(&mut self.points);
        for (index, point) in points.into_iter().enumerate() {
            match self.points.last_mut() {
                Some(last) if index % 2 == 1 => last.merge(&point)?,
                _ => self.points.push(point),
            }
        }
        self.step_seconds *= 2.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
