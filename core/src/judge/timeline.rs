//! A test over time: rolling windows, finished stages, and thresholds that abort. Pure.
//!
//! Metrics are cumulative, so what happened between two snapshots is exactly their difference. The
//! caller records snapshots of the merged metrics; their times are seconds since the runners'
//! start.

use std::{cmp::Ordering, collections::VecDeque};

use super::{
    stages::{BOUNDARY_TOLERANCE, Stages},
    verdict::{has_too_few_samples, judge, judge_interval},
};
use crate::{
    metrics::{Metric, Metrics},
    plan::ValidTest,
    resource::{Aborted, StageRow, Threshold, ThresholdRow, Verdict},
    values::{Duration, Quantity, compare_quantities},
};

/// Snapshots kept per window. A window may start too early by 1/50 of its length.
const SNAPSHOTS_PER_WINDOW: f64 = 50.0;
/// Maximum age of a window's first snapshot at the start of the window, in seconds and as a share
/// of the window. With an older snapshot, the window is not judged.
const MAX_WINDOW_GAP: f64 = 5.0;
const MAX_WINDOW_GAP_SHARE: f64 = 0.2;

/// The results of a test so far.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Time of the last snapshot, in seconds.
    last_seconds: f64,
    /// The snapshots at which windows may still start, oldest first.
    snapshots: VecDeque<Metrics>,
    /// The state of each threshold.
    windows: Vec<WindowState>,
    stages: Stages,
}

#[derive(Clone, Debug, Default)]
struct WindowState {
    /// The worst window so far, with its value as a number.
    worst: Option<(ThresholdRow, Option<Quantity>)>,
    /// Since when the critical bound has been met without a break, in seconds.
    critical_since: Option<f64>,
}

impl Timeline {
    /// The timeline of a test that another process has judged before: its finished stages, and the
    /// rows of its thresholds.
    pub fn from_status(test: &ValidTest, stages: Vec<StageRow>, rows: &[ThresholdRow]) -> Self {
        let state = |threshold: &Threshold| {
            let key = threshold.key();
            let row = rows.iter().find(|row| row.key == key && threshold.window.is_some());
            let worst = row.and_then(|row| {
                let value = row.observed.as_ref().and_then(|text| text.parse().ok());
                (value.is_some() || row.samples > 0).then(|| (row.clone(), value))
            });
            WindowState { worst, critical_since: None }
        };
        Self {
            windows: test.thresholds.iter().map(state).collect(),
            stages: Stages::from_status(stages),
            ..Self::default()
        }
    }

    /// Records a snapshot of the merged metrics. Returns the threshold that aborts the test, when
    /// one does.
    pub fn record_snapshot(&mut self, test: &ValidTest, metrics: &Metrics) -> Option<Aborted> {
        let now = metrics.elapsed_seconds;
        // The time stands still after the load, while the last metrics come in.
        if now <= 0.0 || now < self.last_seconds {
            return None;
        }
        let unobserved = now - self.last_seconds;
        self.last_seconds = now;
        self.windows.resize_with(test.thresholds.len(), WindowState::default);
        let mut first_abort = None;
        for (index, threshold) in test.thresholds.iter().enumerate() {
            let abort = self.judge_now(index, threshold, metrics, unobserved);
            first_abort = first_abort.or(abort);
        }
        self.stages.record_snapshot(test, metrics);
        self.keep_snapshot(test, metrics);
        first_abort
    }

    /// Judges one threshold before the end of the test, if it has a window or can abort. The last
    /// snapshot is `unobserved` seconds old.
    fn judge_now(
        &mut self,
        index: usize,
        threshold: &Threshold,
        metrics: &Metrics,
        unobserved: f64,
    ) -> Option<Aborted> {
        let now = metrics.elapsed_seconds;
        let start = match threshold.window {
            Some(window) => self.window_start(now, window),
            None => threshold.abort.map(|_| Metrics::default()),
        };
        let state = self.windows.get_mut(index)?;
        if threshold.window.is_some_and(|window| unobserved > window.as_secs_f64()) {
            // It is unknown whether the critical bound was met in the meantime.
            state.critical_since = None;
        }
        let (row, value) = judge_interval(threshold, &metrics.since(&start?), metrics);
        let is_critical = row.verdict == Verdict::Critical;
        let since = *state.critical_since.get_or_insert(now);
        state.critical_since = is_critical.then_some(since);
        let abort = threshold.abort.filter(|abort| {
            is_critical
                && now >= abort.after.as_secs_f64()
                && now - since >= abort.lasting.as_secs_f64()
        });
        let aborted = abort.map(|_| Aborted {
            key: threshold.key(),
            observed: row.observed.clone().unwrap_or_default(),
            bound: row.bound,
            // Tenths of a second, as in the progress.
            elapsed: Duration::from_secs_f64((now * 10.0).floor() / 10.0),
            samples: row.samples,
        });
        if threshold.window.is_some() {
            let window = (row, value);
            if state.worst.as_ref().is_none_or(|worst| is_worse(threshold, &window, worst)) {
                state.worst = Some(window);
            }
        }
        aborted
    }

    /// The metrics at the start of the window that ends now; `None` when there is no snapshot near
    /// its start.
    fn window_start(&self, now: f64, window: Duration) -> Option<Metrics> {
        let start = now - window.as_secs_f64() + BOUNDARY_TOLERANCE;
        let snapshot = self.snapshots.iter().rev().find(|s| s.elapsed_seconds <= start);
        // At the start of the test, all metrics are zero.
        let gap = start - snapshot.map_or(0.0, |snapshot| snapshot.elapsed_seconds);
        let max_gap = MAX_WINDOW_GAP.max(window.as_secs_f64() * MAX_WINDOW_GAP_SHARE);
        let observed = (0.0..=max_gap).contains(&gap);
        observed.then(|| snapshot.cloned().unwrap_or_default())
    }

    /// Keeps a snapshot, and drops those that no window needs any more.
    fn keep_snapshot(&mut self, test: &ValidTest, metrics: &Metrics) {
        let windows = test.thresholds.iter().filter_map(|threshold| threshold.window);
        let windows: Vec<f64> = windows.map(Duration::as_secs_f64).collect();
        if windows.is_empty() {
            return;
        }
        // Maximum distance of two snapshots of an age. Only windows that are longer than the age
        // still need them, and longer windows tolerate larger distances.
        let max_distance = |age: f64| {
            let longer = windows.iter().copied().filter(|window| *window >= age);
            longer.reduce(f64::min).map(|shortest| shortest / SNAPSHOTS_PER_WINDOW)
        };
        let now = metrics.elapsed_seconds;
        let mut all = std::mem::take(&mut self.snapshots);
        let is_needed = |latency| {
            test.thresholds.iter().any(|threshold| {
                threshold.window.is_some() && threshold.metric == Metric::Latency(latency)
            })
        };
        all.push_back(metrics.with_latencies(is_needed));
        let mut previous: Option<f64> = None;
        while let Some(snapshot) = all.pop_front() {
            let next = all.front().map(|next| next.elapsed_seconds);
            // The previous snapshot, or the test's start, serves every window that starts before
            // the next one.
            let is_redundant = next.is_some_and(|next| {
                max_distance(now - next)
                    .is_none_or(|distance| next - previous.unwrap_or(0.0) <= distance)
            });
            if !is_redundant {
                previous = Some(snapshot.elapsed_seconds);
                self.snapshots.push_back(snapshot);
            }
        }
    }

    /// The rows of all thresholds at the end of a test: each judged by the whole test, or by its
    /// worst window.
    pub fn rows_at_end(
        &self,
        test: &ValidTest,
        metrics: &Metrics,
        aborted: Option<&Aborted>,
    ) -> Vec<ThresholdRow> {
        let row = |(index, threshold): (usize, &Threshold)| {
            let worst = self.windows.get(index).and_then(|state| state.worst.as_ref());
            let mut row = match (threshold.window, worst) {
                (None, _) => judge(threshold, metrics),
                (Some(_), Some((row, _))) => row.clone(),
                (Some(window), None) => unobserved_row(threshold, window),
            };
            // The row that aborted the test stays Critical, whatever the last requests showed.
            if let Some(aborted) = aborted.filter(|aborted| aborted.key == row.key) {
                row.verdict = Verdict::Critical.into();
                row.observed = Some(aborted.observed.clone());
                row.bound = aborted.bound;
                row.samples = aborted.samples;
                row.advice = Some(threshold.metric.advice().to_owned());
            }
            row
        };
        test.thresholds.iter().enumerate().map(row).collect()
    }

    /// The finished stages.
    pub fn stages(&self) -> &[StageRow] {
        self.stages.rows()
    }

    /// The finished stages at the end of a test. The last one includes the requests that ended in
    /// the graceful stop.
    pub fn stages_at_end(&self, test: &ValidTest, metrics: &Metrics) -> Vec<StageRow> {
        self.stages.rows_at_end(test, metrics)
    }
}

/// True when a window is worse than the worst so far. A window with too few samples counts least;
/// a window that is Inconclusive for another reason may have been worse than any other.
fn is_worse(
    threshold: &Threshold,
    (row, value): &(ThresholdRow, Option<Quantity>),
    (worst_row, worst_value): &(ThresholdRow, Option<Quantity>),
) -> bool {
    let rank = |row: &ThresholdRow| match row.verdict.known().unwrap_or(Verdict::Inconclusive) {
        Verdict::Inconclusive if has_too_few_samples(threshold, row) => 0,
        verdict => verdict.severity(),
    };
    match rank(row).cmp(&rank(worst_row)) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => {
            let order = value.zip(*worst_value).and_then(|(a, b)| compare_quantities(a, b));
            let is_upper = threshold.target.comparison.is_upper();
            order == Some(if is_upper { Ordering::Greater } else { Ordering::Less })
        }
    }
}

fn unobserved_row(threshold: &Threshold, window: Duration) -> ThresholdRow {
    let mut row = judge(threshold, &Metrics::default());
    row.advice =
        Some(format!("no window of {window} was complete: run longer, or choose a shorter window"));
    row
}

#[cfg(test)]
mod tests;
