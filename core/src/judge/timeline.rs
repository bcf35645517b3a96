//! A test over time: its windows, its stages, and the thresholds that abort it. Pure.
//!
//! Metrics are cumulative, so what happened between two snapshots is exactly their difference. The
//! caller records snapshots of the merged metrics; their times are seconds since the runners'
//! start.

use std::collections::BTreeMap;

use super::{
    abort::{AbortTimer, apply_abort},
    stages::Stages,
    verdict::{holds_without_lost, judge, judge_interval, make_rate_inconclusive},
    windows::{JudgedWindow, WindowStarts, is_worse, max_gap, unobserved_row},
};
use crate::{
    metrics::Metrics,
    plan::ValidTest,
    resource::{Aborted, StageRow, Threshold, ThresholdRow, Verdict},
    values::Duration,
};

/// The results of a test so far.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Time of the last snapshot, in seconds.
    last_seconds: f64,
    /// Time of the last snapshot of all runners that are not lost, in seconds.
    last_whole_seconds: f64,
    /// Until when another process has judged the windows, in seconds.
    judged_seconds: f64,
    /// Sum of the times that no snapshot covers, in seconds.
    unobserved_seconds: f64,
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
    /// True when some window was not observed.
    has_gap: bool,
    /// True when some window of a rate was not judged, because a runner was lost.
    has_unjudged_rate: bool,
}

/// Which runners a snapshot covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All runners.
    All,
    /// All that are not lost. The load is lighter than planned, so a rate is only judged if it is high enough all the same.
    WithoutLost,
    /// Some runners that are not lost did not respond.
    Partial,
}

/// Maximum time between two snapshots that counts as observed, in seconds.
const MAX_SNAPSHOT_GAP: f64 = 5.0;

impl Timeline {
    /// The timeline of a test that another process has judged before: its finished stages, and the
    /// rows of its thresholds at a time in seconds.
    pub fn from_status(
        test: &ValidTest,
        stages: Vec<StageRow>,
        rows: &[ThresholdRow],
        seconds: f64,
    ) -> Self {
        let state = |threshold: &Threshold| {
            let key = threshold.key();
            let row = rows.iter().find(|row| row.key == key && threshold.window.is_some());
            let worst = row.and_then(|row| {
                let value = row.observed.as_ref().and_then(|text| text.parse().ok());
                (value.is_some() || row.samples > 0).then(|| (row.clone(), value))
            });
            ThresholdState { worst, ..ThresholdState::default() }
        };
        Self {
            thresholds: test.thresholds.iter().map(state).collect(),
            stages: Stages::from_status(stages),
            last_seconds: seconds,
            last_whole_seconds: seconds,
            judged_seconds: seconds,
            ..Self::default()
        }
    }

    /// Prepares for snapshots from this time on, which another process may have judged. Windows that end
    /// later can then start at them.
    pub fn look_back_to(&mut self, seconds: f64) {
        self.last_seconds = self.last_seconds.min(seconds);
        self.last_whole_seconds = self.last_whole_seconds.min(seconds);
    }

    /// The metrics at the start of the current stage; `None` for the first stage, and when there was no
    /// snapshot then.
    pub fn stage_start(&self) -> Option<Metrics> {
        self.stages.current_start()
    }

    /// Goes on with a stage that began under another process.
    pub fn resume_stage(&mut self, test: &ValidTest, start: &Metrics) {
        self.stages.resume(test, start);
    }

    /// The time until which windows and stages are judged, by this process or an earlier one.
    pub fn judged(&self) -> Duration {
        Duration::from_secs_f64(self.last_seconds.max(self.judged_seconds))
    }

    /// The time of the test that no snapshot covers.
    pub fn unobserved(&self) -> Duration {
        Duration::from_secs_f64(self.unobserved_seconds)
    }

    /// Records a snapshot of the merged metrics of all runners. Returns the threshold that aborts
    /// the test, when one does.
    pub fn record_snapshot(&mut self, test: &ValidTest, metrics: &Metrics) -> Option<Aborted> {
        self.record_snapshot_of(test, metrics, Coverage::All)
    }

    /// Records a snapshot of the merged metrics of the runners that responded. Returns the threshold
    /// that aborts the test, when one does: abort protects the target, so it is judged on whoever
    /// responds.
    pub fn record_snapshot_of(
        &mut self,
        test: &ValidTest,
        metrics: &Metrics,
        coverage: Coverage,
    ) -> Option<Aborted> {
        let now = metrics.elapsed_seconds;
        // The time stands still after the load, while the last metrics come in.
        if now <= 0.0 || now < self.last_seconds {
            return None;
        }
        let unobserved = now - self.last_seconds;
        self.last_seconds = now;
        let unseen = now - self.last_whole_seconds;
        if coverage != Coverage::Partial {
            self.last_whole_seconds = now;
            if unseen > MAX_SNAPSHOT_GAP {
                self.unobserved_seconds += unseen;
            }
        }
        self.thresholds.resize_with(test.thresholds.len(), ThresholdState::default);
        let intervals = self.intervals_until(test, metrics);
        let mut first_abort = None;
        for (index, threshold) in test.thresholds.iter().enumerate() {
            let interval = intervals.get(&threshold.window).and_then(Option::as_ref);
            let abort = self.judge_now(index, threshold, metrics, interval, unobserved, coverage);
            first_abort = first_abort.or(abort);
            if let (Some(window), Some(state)) = (threshold.window, self.thresholds.get_mut(index))
            {
                state.has_gap |= unseen > max_gap(window);
            }
        }
        if coverage != Coverage::Partial {
            self.stages.record_snapshot(test, metrics, coverage == Coverage::WithoutLost);
        }
        self.window_starts.keep_snapshot(test, metrics);
        first_abort
    }

    /// Notes that there are no more snapshots. The time after the last one of all runners stays unobserved.
    pub fn end(&mut self, test: &ValidTest) {
        let unseen = self.last_seconds - self.last_whole_seconds;
        self.last_whole_seconds = self.last_seconds;
        if unseen > MAX_SNAPSHOT_GAP {
            self.unobserved_seconds += unseen;
        }
        for (threshold, state) in test.thresholds.iter().zip(&mut self.thresholds) {
            state.has_gap |= threshold.window.is_some_and(|window| unseen > max_gap(window));
        }
    }

    /// The metrics of each interval that ends now and has a threshold, by the length of its window. The interval
    /// without a window is the test so far. A window has no metrics if its start was not observed.
    fn intervals_until(
        &self,
        test: &ValidTest,
        metrics: &Metrics,
    ) -> BTreeMap<Option<Duration>, Option<Metrics>> {
        let mut intervals = BTreeMap::new();
        for threshold in &test.thresholds {
            if threshold.window.is_none() && threshold.abort.is_none() {
                continue;
            }
            // Thresholds often have the same window.
            intervals.entry(threshold.window).or_insert_with(|| {
                let start = match threshold.window {
                    Some(window) => self.window_starts.start_of(metrics.elapsed_seconds, window)?,
                    None => Metrics::default(),
                };
                Some(metrics.since(&start))
            });
        }
        intervals
    }

    /// Judges one threshold before the end of the test, if it has a window or can abort. `interval` is its entry in
    /// [`Self::intervals_until`]. The last snapshot is `unobserved` seconds old.
    fn judge_now(
        &mut self,
        index: usize,
        threshold: &Threshold,
        metrics: &Metrics,
        interval: Option<&Metrics>,
        unobserved: f64,
        coverage: Coverage,
    ) -> Option<Aborted> {
        let now = metrics.elapsed_seconds;
        if coverage == Coverage::Partial && threshold.metric.is_rate() {
            return None;
        }
        let judged_seconds = self.judged_seconds;
        let state = self.thresholds.get_mut(index)?;
        if threshold.window.is_some_and(|window| unobserved > window.as_secs_f64()) {
            state.abort_timer.reset();
        }
        let Some(interval) = interval else {
            // A test that is younger than its window has no window yet. Another process has judged the windows until
            // `judged_seconds`.
            let is_missing = |window: Duration| {
                now > judged_seconds && now > window.as_secs_f64() + max_gap(window)
            };
            state.has_gap |= threshold.window.is_some_and(is_missing);
            return None;
        };
        let (row, value) = judge_interval(threshold, interval, metrics);
        if coverage == Coverage::WithoutLost && !holds_without_lost(threshold, &row) {
            state.has_unjudged_rate |= threshold.window.is_some();
            return None;
        }
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
            let state = self.thresholds.get(index);
            let worst = state.and_then(|state| state.worst.as_ref());
            let mut row = match (threshold.window, worst) {
                (None, _) => judge(threshold, metrics, coverage_of(test, metrics)),
                (Some(_), Some((row, _))) => row.clone(),
                (Some(window), None) => unobserved_row(threshold, window),
            };
            if threshold.window.is_some() && state.is_some_and(|state| state.has_gap) {
                mark_unobserved(&mut row);
            }
            if state.is_some_and(|state| state.has_unjudged_rate) && may_become_inconclusive(&row) {
                make_rate_inconclusive(&mut row);
            }
            if let Some(aborted) = aborted.filter(|aborted| aborted.key == row.key) {
                apply_abort(&mut row, aborted, threshold, metrics);
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

/// The achieved load as a share of the planned load, from 0 to 1. The clocks of runners differ a
/// little.
pub fn coverage_of(test: &ValidTest, metrics: &Metrics) -> f64 {
    let done = if test.load.is_open() {
        metrics.all_tasks().requests.iter().fold(0_u64, |sum, n| sum.saturating_add(*n)) as f64
    } else {
        metrics.user_seconds
    };
    (done / test.load.planned_work().max(1e-9)).min(1.0)
}

/// True when a window that was not judged may change a row of windows: a row that has already failed stays as it is.
fn may_become_inconclusive(row: &ThresholdRow) -> bool {
    let verdict = row.verdict.known().unwrap_or(Verdict::Inconclusive);
    verdict.severity() < Verdict::Inconclusive.severity()
}

/// Makes a row of windows Inconclusive, because some window was not observed and may have been
/// worse.
fn mark_unobserved(row: &mut ThresholdRow) {
    if may_become_inconclusive(row) {
        row.verdict = Verdict::Inconclusive.into();
        row.advice = Some(
            "some windows were not observed, and one of them may have been worse: the operator was restarted or could not reach the runners"
                .to_owned(),
        );
    }
}

#[cfg(test)]
mod tests;
