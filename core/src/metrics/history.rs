//! The last minutes of a runner as numbered steps. Pure.
//!
//! A reader that knows the number of its last step gets only what has changed since. A reader that comes
//! for the first time, or after a long time, gets everything: first a step with all that happened up to
//! some moment, then what was added after it, step by step.

use std::{collections::VecDeque, time::Duration};

use super::run_metrics::{Identity, Metrics, RunnerMetrics, RunnerState};

/// How far the single steps reach back. What is older is in one step.
const REACH: Duration = Duration::from_mins(2);
/// Maximum number of single steps.
pub(super) const MAX_STEPS: usize = 250;

/// A part of a run of one runner.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryStep {
    /// Number of the step. It grows by one from step to step.
    pub number: u64,
    /// True if the step holds everything up to its end, and false if it holds what was added since the
    /// step before.
    pub is_whole: bool,
    /// The runner at the end of the step. Counts and samples are those of the step; the numbers of the
    /// whole runner, such as its elapsed time, are their values at the end.
    pub runner: RunnerMetrics,
}

/// The steps of a runner.
#[derive(Clone, Debug)]
pub struct RunnerHistory {
    /// Everything up to the first single step.
    base: HistoryStep,
    /// The single steps, each with the time of its end.
    steps: VecDeque<(Duration, HistoryStep)>,
    /// The latest snapshot.
    latest: RunnerMetrics,
}

impl RunnerHistory {
    /// Creates the history of a runner that has done nothing yet.
    pub fn new(identity: Identity) -> Self {
        let latest = RunnerMetrics { identity, ..RunnerMetrics::default() };
        let base = HistoryStep { number: 1, is_whole: true, runner: latest.clone() };
        Self { base, steps: VecDeque::new(), latest }
    }

    /// Adds a step up to a snapshot, if anything has changed. `now` is a time on any clock that only
    /// goes forward.
    pub fn record(&mut self, snapshot: RunnerMetrics, now: Duration) {
        if snapshot == self.latest {
            return;
        }
        let changes = snapshot.metrics.changes_since(&self.latest.metrics);
        let step = HistoryStep {
            number: self.last_number() + 1,
            is_whole: false,
            runner: RunnerMetrics { metrics: changes, ..snapshot.clone() },
        };
        self.latest = snapshot;
        self.steps.push_back((now, step));
        while let Some((end, _)) = self.steps.front()
            && (now.saturating_sub(*end) > REACH || self.steps.len() > MAX_STEPS)
            && let Some((_, step)) = self.steps.pop_front()
        {
            self.base.add(step);
        }
    }

    /// Returns the time of the last step.
    pub fn recorded_at(&self) -> Option<Duration> {
        self.steps.back().map(|(end, _)| *end)
    }

    /// Returns the state of the runner at the last step.
    pub fn state(&self) -> RunnerState {
        self.latest.state
    }

    fn last_number(&self) -> u64 {
        self.steps.back().map_or(self.base.number, |(_, step)| step.number)
    }

    /// Returns what a reader lacks that has read everything up to a step; zero for a reader that has
    /// read nothing.
    pub fn after(&self, number: u64) -> Vec<HistoryStep> {
        let is_known = (self.base.number..=self.last_number()).contains(&number);
        let base = (!is_known).then(|| self.base.clone());
        let missing = self.steps.iter().map(|(_, step)| step);
        let missing = missing.filter(|step| !is_known || step.number > number).cloned();
        base.into_iter().chain(missing).collect()
    }
}

impl HistoryStep {
    /// Extends this step by the next one.
    fn add(&mut self, next: Self) {
        let Self { number, is_whole: _, runner } = next;
        let RunnerMetrics { identity, state, metrics } = runner;
        self.number = number;
        self.runner.identity = identity;
        self.runner.state = state;
        self.runner.metrics.add_changes(&metrics);
    }
}

/// Puts steps together to the latest snapshot of a runner. `earlier` is the snapshot of a reader before
/// them; a whole step replaces it.
pub fn apply_steps(earlier: &mut Metrics, steps: &[HistoryStep]) {
    for step in steps {
        if step.is_whole {
            earlier.clone_from(&step.runner.metrics);
        } else {
            earlier.add_changes(&step.runner.metrics);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{LatencyMetric, Outcome};

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A runner after some seconds of load: ten requests in each, slower and slower.
    fn snapshot_at(second: u32) -> RunnerMetrics {
        let mut runner = RunnerMetrics { state: RunnerState::Running, ..RunnerMetrics::default() };
        runner.metrics.elapsed_seconds = f64::from(second);
        runner.metrics.users = u64::from(second % 3);
        let task = runner.metrics.tasks.entry("health".into()).or_default();
        for n in 0..second {
            task.requests[Outcome::Success.index()] += 10;
            let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
            samples.record(0.01 + f64::from(n) / 1000.0, 10);
        }
        runner
    }

    fn history_until(last: u32) -> RunnerHistory {
        let mut history = RunnerHistory::new(Identity::default());
        for second in 1..=last {
            history.record(snapshot_at(second), seconds(second.into()));
        }
        history
    }

    /// The metrics without rounding errors in the sums of samples.
    fn counts(metrics: &Metrics) -> (u64, f64, Vec<(crate::values::Duration, u64)>) {
        let task = &metrics.tasks["health"];
        let samples = task.latencies.get(LatencyMetric::ResponseTime, Outcome::Success);
        (task.completed_requests(), metrics.elapsed_seconds, samples.values().collect())
    }

    #[test]
    fn every_reader_ends_with_the_latest_snapshot() {
        let history = history_until(300);
        let expected = counts(&snapshot_at(300).metrics);
        // One reader comes for the first time, one was away for a while, one for too long.
        for last in [0, 100, 200, 290] {
            let mut reader = snapshot_at(last).metrics;
            // Step 1 is the state before the first snapshot.
            let number = if last == 0 { 0 } else { u64::from(last) + 1 };
            apply_steps(&mut reader, &history.after(number));
            assert_eq!(counts(&reader), expected, "read until {last} s");
        }
    }

    #[test]
    fn the_last_two_minutes_are_single_steps() {
        let history = history_until(300);
        let steps = history.after(0);
        assert!(steps[0].is_whole && steps[1..].iter().all(|step| !step.is_whole));
        assert_eq!(steps.len(), 122);
        assert!((steps[0].runner.metrics.elapsed_seconds - 179.0).abs() < 1e-9);
        let numbers: Vec<u64> = steps.iter().map(|step| step.number).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert!(steps[1..].iter().all(|s| s.runner.metrics.tasks["health"].requests[0] == 10));
    }

    #[test]
    fn a_reader_gets_only_what_is_new() {
        let mut history = history_until(10);
        assert_eq!(history.after(11), []);
        history.record(snapshot_at(10), seconds(11));
        assert_eq!(history.after(11), [], "nothing has changed");
        history.record(snapshot_at(11), seconds(12));
        assert_eq!(history.after(11).len(), 1);
        // A number that this history never had.
        assert!(history.after(99)[0].is_whole);
    }

    #[test]
    fn frequent_readers_do_not_make_it_grow() {
        let mut history = RunnerHistory::new(Identity::default());
        for n in 1..=1000_u32 {
            history.record(snapshot_at(n), Duration::from_millis(u64::from(n)));
        }
        assert_eq!(history.after(0).len(), MAX_STEPS + 1);
    }
}
