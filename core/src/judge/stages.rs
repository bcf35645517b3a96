//! Stages of a load: a row for each finished stage, and the breaking point. Pure.

use super::{
    summary::summarize,
    verdict::{holds_without_lost, judge_interval, make_rate_inconclusive, worst_verdict},
};
use crate::{
    load::StageLoad,
    metrics::{Metrics, PackedMetrics, TaskMetrics},
    plan::ValidTest,
    resource::{Aborted, BreakingPoint, StageRow, Threshold, ThresholdRow, Verdict},
};

/// A snapshot this many seconds before a boundary counts as taken at the boundary.
pub(super) const BOUNDARY_TOLERANCE: f64 = 0.001;
/// Maximum delay of the first snapshot after a stage, in seconds and as a share of the stage. A
/// later snapshot contains requests of the next stage, so the stage is Inconclusive.
const MAX_DELAY: f64 = 2.5;
const MAX_DELAY_SHARE: f64 = 0.05;

/// The stages of a test so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Stages {
    rows: Vec<StageRow>,
    /// The metrics at the start of the current stage; `None` when there was no snapshot then.
    current_start: Option<PackedMetrics>,
    /// The metrics at the start of the last finished stage.
    last_start: Option<PackedMetrics>,
    /// True when a runner was lost before the last finished stage ended.
    has_lost: bool,
}

impl Stages {
    /// The stages that another process has judged before.
    pub(super) fn from_status(rows: Vec<StageRow>) -> Self {
        Self { rows, ..Self::default() }
    }

    /// The metrics at the start of the current stage, if there was a snapshot then.
    pub(super) fn current_start(&self) -> Option<Metrics> {
        self.current_start.as_ref().map(PackedMetrics::unpack)
    }

    /// Goes on with a stage whose start another process has seen. A start that is not that of the current
    /// stage is left out.
    pub(super) fn resume(&mut self, test: &ValidTest, start: &Metrics) {
        let stages = test.load.stages();
        let previous = self.rows.len().checked_sub(1).and_then(|index| stages.get(index));
        let is_current = previous.is_some_and(|previous| {
            let delay = start.elapsed_seconds - previous.end.as_secs_f64();
            (-BOUNDARY_TOLERANCE..=max_delay_after(previous)).contains(&delay)
        });
        self.current_start = is_current.then(|| PackedMetrics::of(start));
    }

    /// The finished stages.
    pub(super) fn rows(&self) -> &[StageRow] {
        &self.rows
    }

    /// Judges the stages that have ended since the last snapshot. With `has_lost`, the snapshot lacks runners that were
    /// lost, so rates are too low.
    pub(super) fn record_snapshot(&mut self, test: &ValidTest, metrics: &Metrics, has_lost: bool) {
        let now = metrics.elapsed_seconds;
        let ended: Vec<StageLoad> = test
            .load
            .stages()
            .into_iter()
            .take_while(|stage| stage.end.as_secs_f64() <= now + BOUNDARY_TOLERANCE)
            .collect();
        while let Some(stage) = ended.get(self.rows.len()) {
            let in_time = now - stage.end.as_secs_f64() <= max_delay_after(stage);
            let is_first = self.rows.is_empty();
            let start = self.current_start.take().or_else(|| is_first.then(PackedMetrics::default));
            let start = start.filter(|_| in_time);
            self.has_lost = has_lost;
            let row = start
                .as_ref()
                .map(|start| judge_stage(test, stage, &start.unpack(), metrics, has_lost));
            self.rows.push(row.unwrap_or_else(|| unobserved_stage(stage)));
            self.last_start = start;
            // The next stage starts now, unless it has ended too.
            let next_is_current = in_time && self.rows.len() == ended.len();
            self.current_start = next_is_current.then(|| PackedMetrics::of(metrics));
        }
        // The rows of earlier stages came from another process.
        if let (None, Some(previous)) = (&self.current_start, ended.last())
            && self.rows.len() == ended.len()
            && now - previous.end.as_secs_f64() <= max_delay_after(previous)
        {
            self.current_start = Some(PackedMetrics::of(metrics));
        }
    }

    /// The finished stages at the end of a test: the last one is judged again with the requests
    /// that ended in the graceful stop.
    pub(super) fn rows_at_end(&self, test: &ValidTest, metrics: &Metrics) -> Vec<StageRow> {
        let mut rows = self.rows.clone();
        let stages = test.load.stages();
        if rows.len() == stages.len()
            && let (Some(row), Some(stage), Some(start)) =
                (rows.last_mut(), stages.last(), &self.last_start)
        {
            *row = judge_stage(test, stage, &start.unpack(), metrics, self.has_lost);
        }
        rows
    }
}

/// The maximum delay of the first snapshot after a stage, in seconds.
fn max_delay_after(stage: &StageLoad) -> f64 {
    MAX_DELAY.max(stage.duration.as_secs_f64() * MAX_DELAY_SHARE)
}

/// The row of a stage that ended without a snapshot near its end.
fn unobserved_stage(stage: &StageLoad) -> StageRow {
    let nothing = summarize(&TaskMetrics::default(), 0.0);
    StageRow {
        load: stage.label.clone(),
        requests: 0,
        error_rate: nothing.error_rate,
        throughput: nothing.throughput,
        p95: None,
        verdict: Verdict::Inconclusive.into(),
        missed: None,
        observed: None,
    }
}

fn judge_stage(
    test: &ValidTest,
    stage: &StageLoad,
    start: &Metrics,
    now: &Metrics,
    has_lost: bool,
) -> StageRow {
    let metrics = now.since(start);
    let judge_row = |threshold: &Threshold| {
        let mut row = judge_interval(threshold, &metrics, now).0;
        if has_lost && !holds_without_lost(threshold, &row) {
            make_rate_inconclusive(&mut row);
        }
        row
    };
    let rows: Vec<ThresholdRow> = test.thresholds.iter().map(judge_row).collect();
    let is_missed = |row: &&ThresholdRow| {
        [Verdict::Warning, Verdict::Fail, Verdict::Critical].iter().any(|v| row.verdict == *v)
    };
    let missed = rows.iter().find(is_missed);
    let summary = summarize(&metrics.all_tasks(), metrics.elapsed_seconds);
    StageRow {
        load: stage.label.clone(),
        requests: summary.requests,
        error_rate: summary.error_rate,
        throughput: summary.throughput,
        p95: summary.p95,
        verdict: worst_verdict(&rows).into(),
        missed: missed.map(|row| row.key.to_string()),
        observed: missed.and_then(|row| row.observed.clone()),
    }
}

/// The load at which a target was missed first; `None` when the load does not grow from stage to
/// stage, or when the test has no thresholds.
pub fn breaking_point(
    test: &ValidTest,
    rows: &[StageRow],
    aborted: Option<&Aborted>,
) -> Option<BreakingPoint> {
    let stages = test.load.stages();
    let grows = stages.len() > 1 && stages.windows(2).all(|pair| pair[0].level < pair[1].level);
    if !grows || test.thresholds.is_empty() {
        return None;
    }
    let load_of = |index: usize| stages.get(index).map(|stage| stage.label.clone());
    let failed = rows.iter().position(|row| row.missed.is_some());
    let below = &rows[..failed.unwrap_or(rows.len())];
    let passed = below.iter().rposition(|row| row.verdict == Verdict::Pass);
    let next = passed.map_or(0, |passed| passed + 1);
    let last_passed = passed.and_then(load_of);
    if let Some((index, row)) = failed.and_then(|index| Some((index, rows.get(index)?))) {
        return Some(BreakingPoint {
            last_passed,
            undecided: load_of(next).filter(|_| next < index),
            first_failed: Some(row.load.clone()),
            threshold: row.missed.clone(),
            observed: row.observed.clone(),
        });
    }
    // An abort ends a stage, so that the stage has no row.
    if let Some(aborted) = aborted {
        let index = stages.iter().position(|stage| stage.end > aborted.elapsed);
        let index = index.unwrap_or(stages.len() - 1);
        return Some(BreakingPoint {
            last_passed,
            undecided: load_of(next).filter(|_| next < index),
            first_failed: load_of(index),
            threshold: Some(aborted.key.to_string()),
            observed: Some(aborted.observed.clone()),
        });
    }
    Some(BreakingPoint { last_passed, undecided: load_of(next), ..BreakingPoint::default() })
}
