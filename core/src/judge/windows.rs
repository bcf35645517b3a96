//! Rolling windows: the snapshots at which they start, and which window is the worst. Pure.

use std::{cmp::Ordering, collections::VecDeque};

use super::{
    stages::BOUNDARY_TOLERANCE,
    verdict::{has_too_few_samples, judge},
};
use crate::{
    metrics::{Metric, Metrics, PackedMetrics},
    plan::ValidTest,
    resource::{Threshold, ThresholdRow, Verdict},
    values::{Duration, Quantity, compare_quantities},
};

/// Snapshots kept per window. A window may start too early by 1/50 of its length.
const SNAPSHOTS_PER_WINDOW: f64 = 50.0;
/// Maximum age of a window's first snapshot at the start of the window, in seconds and as a share
/// of the window. With an older snapshot, the window is not judged.
const MAX_WINDOW_GAP: f64 = 5.0;
const MAX_WINDOW_GAP_SHARE: f64 = 0.2;

/// Maximum time between two snapshots at which every window of this length is observed, in seconds.
pub(super) fn max_gap(window: Duration) -> f64 {
    MAX_WINDOW_GAP.max(window.as_secs_f64() * MAX_WINDOW_GAP_SHARE)
}

/// A judged window: its row, and its value as a number.
pub(super) type JudgedWindow = (ThresholdRow, Option<Quantity>);

/// The snapshots at which windows may still start, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct WindowStarts {
    pub(super) snapshots: VecDeque<PackedMetrics>,
}

impl WindowStarts {
    /// The metrics at the start of the window that ends now; `None` when there is no snapshot near
    /// its start.
    pub(super) fn start_of(&self, now: f64, window: Duration) -> Option<Metrics> {
        let start = now - window.as_secs_f64() + BOUNDARY_TOLERANCE;
        let snapshot = self.snapshots.iter().rev().find(|s| s.elapsed_seconds() <= start);
        // At the start of the test, all metrics are zero.
        let gap = start - snapshot.map_or(0.0, PackedMetrics::elapsed_seconds);
        let observed = (0.0..=max_gap(window)).contains(&gap);
        observed.then(|| snapshot.map(PackedMetrics::unpack).unwrap_or_default())
    }

    /// Keeps a snapshot, and drops those that no window needs any more.
    pub(super) fn keep_snapshot(&mut self, test: &ValidTest, metrics: &Metrics) {
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
        all.push_back(PackedMetrics::of(&metrics.with_latencies(is_needed)));
        let mut previous: Option<f64> = None;
        while let Some(snapshot) = all.pop_front() {
            let next = all.front().map(PackedMetrics::elapsed_seconds);
            // The previous snapshot, or the test's start, serves every window that starts before
            // the next one.
            let is_redundant = next.is_some_and(|next| {
                max_distance(now - next)
                    .is_none_or(|distance| next - previous.unwrap_or(0.0) <= distance)
            });
            if !is_redundant {
                previous = Some(snapshot.elapsed_seconds());
                self.snapshots.push_back(snapshot);
            }
        }
    }
}

/// True when a window is worse than the worst so far. A window with too few samples counts least;
/// a window that is Inconclusive for another reason may have been worse than any other.
pub(super) fn is_worse(
    threshold: &Threshold,
    (row, value): &JudgedWindow,
    (worst_row, worst_value): &JudgedWindow,
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

/// The row of a threshold without a complete window.
pub(super) fn unobserved_row(threshold: &Threshold, window: Duration) -> ThresholdRow {
    let mut row = judge(threshold, &Metrics::default(), 1.0);
    row.advice =
        Some(format!("no window of {window} was complete: run longer, or choose a shorter window"));
    row
}
