//! A test over time: its windows, its stages, and the thresholds that abort it. Pure.
//!
//! Metrics are cumulative, so what happened between two snapshots is exactly their difference. The
//! caller records snapshots of the merged metrics; their times are seconds since the runners'
//! start.

use super::{
    abort::{AbortTimer, apply_abort},
    stages::Stages,
    verdict::{judge, judge_interval},
    windows::{JudgedWindow, WindowStarts, is_worse, unobserved_row},
};
use crate::{
    metrics::Metrics,
    plan::ValidTest,
    resource::{Aborted, StageRow, Threshold, ThresholdRow},
};

/// The results of a test so far.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Time of the last snapshot, in seconds.
    last_seconds: f64,
    window_starts: WindowStarts,
    /// The state of each threshold.
    thresholds: Vec<ThresholdState>,
    stages: Stages,
}

#[derive(Clone, Debug, Default)]
struct ThresholdState {
    /// The worst window so far.
    worst: Option<JudgedWindow>,
    abort_timer: AbortTimer,
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
            ThresholdState { worst, abort_timer: AbortTimer::default() }
        };
        Self {
            thresholds: test.thresholds.iter().map(state).collect(),
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
        self.thresholds.resize_with(test.thresholds.len(), ThresholdState::default);
        let mut first_abort = None;
        for (index, threshold) in test.thresholds.iter().enumerate() {
            let abort = self.judge_now(index, threshold, metrics, unobserved);
            first_abort = first_abort.or(abort);
        }
        self.stages.record_snapshot(test, metrics);
        self.window_starts.keep_snapshot(test, metrics);
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
            Some(window) => self.window_starts.start_of(now, window),
            None => threshold.abort.map(|_| Metrics::default()),
        };
        let state = self.thresholds.get_mut(index)?;
        if threshold.window.is_some_and(|window| unobserved > window.as_secs_f64()) {
            state.abort_timer.reset();
        }
        let (row, value) = judge_interval(threshold, &metrics.since(&start?), metrics);
        let aborted = state.abort_timer.observe(threshold, &row, now);
        if threshold.window.is_some() {
            let window = (row, value);
            if state.worst.as_ref().is_none_or(|worst| is_worse(threshold, &window, worst)) {
                state.worst = Some(window);
            }
        }
        aborted
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
            let worst = self.thresholds.get(index).and_then(|state| state.worst.as_ref());
            let mut row = match (threshold.window, worst) {
                (None, _) => judge(threshold, metrics),
                (Some(_), Some((row, _))) => row.clone(),
                (Some(window), None) => unobserved_row(threshold, window),
            };
            if let Some(aborted) = aborted.filter(|aborted| aborted.key == row.key) {
                apply_abort(&mut row, aborted, threshold);
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

#[cfg(test)]
mod tests;
