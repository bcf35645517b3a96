//! The last minutes of a runner as numbered steps.
//!
//! A reader that knows the number of its last step gets only what has changed since. A reader that comes
//! for the first time, or after a long time, gets everything: first a step with all that happened up to
//! some moment, then what was added after it, step by step.

use std::{collections::VecDeque, fmt, time::Duration};

use super::{
    decode::decode_steps,
    encode::encode_step,
    packed::PackedMetrics,
    run_metrics::{Identity, RunnerMetrics, RunnerState},
    step::{HistoryStep, MAX_STEPS},
};

/// How far the single steps reach back. Older ones are merged into one step.
const REACH: Duration = Duration::from_mins(2);
/// Maximum size of the encoded single steps in bytes. A bucket takes at least one byte, so a reader can
/// hold them. The steps of very many tasks reach back less.
const MAX_BYTES: usize = 1 << 20;

/// A step in the format of the exposition.
#[derive(Clone, Debug)]
struct EncodedStep {
    end: Duration,
    number: u64,
    bytes: Box<[u8]>,
}

/// A snapshot of a runner in little memory.
#[derive(Clone, Debug)]
struct PackedSnapshot {
    identity: Identity,
    state: RunnerState,
    metrics: PackedMetrics,
}

impl PackedSnapshot {
    fn of(snapshot: &RunnerMetrics) -> Self {
        let RunnerMetrics { identity, state, metrics } = snapshot;
        Self { identity: identity.clone(), state: *state, metrics: PackedMetrics::of(metrics) }
    }

    fn unpack(&self) -> RunnerMetrics {
        let (identity, state) = (self.identity.clone(), self.state);
        RunnerMetrics { identity, state, metrics: self.metrics.unpack() }
    }
}

/// The steps of a runner.
#[derive(Clone, Debug)]
pub struct RunnerHistory {
    /// Number of the last step before the single ones.
    base_number: u64,
    /// Everything up to that step.
    base: PackedSnapshot,
    /// The single steps.
    steps: VecDeque<EncodedStep>,
    /// Size of the single steps in bytes.
    size: usize,
    /// The latest snapshot.
    latest: PackedSnapshot,
    /// Number of the first step with final numbers.
    final_step: Option<u64>,
    /// See [`super::ExpositionOptions`].
    after_each_histogram: Option<fn()>,
}

impl RunnerHistory {
    /// Creates the history of a runner that has done nothing yet. `after_each_histogram` is as in
    /// [`super::ExpositionOptions`].
    pub fn new(identity: Identity, after_each_histogram: Option<fn()>) -> Self {
        let latest = PackedSnapshot::of(&RunnerMetrics { identity, ..RunnerMetrics::default() });
        Self {
            base_number: 1,
            base: latest.clone(),
            steps: VecDeque::new(),
            size: 0,
            latest,
            final_step: None,
            after_each_histogram,
        }
    }

    /// Adds a step up to a snapshot, if anything has changed. `now` is a time on any clock that only
    /// goes forward.
    ///
    /// # Errors
    /// When the encoder refuses a value. The next step then holds what this one would have held.
    pub fn record(&mut self, snapshot: &RunnerMetrics, now: Duration) -> fmt::Result {
        let Some(runner) = self.changes_until(snapshot) else { return Ok(()) };
        let number = self.last_number() + 1;
        let step = HistoryStep { number, is_cumulative: false, runner };
        let bytes = encode_step(step, self.after_each_histogram)?.into_boxed_slice();
        self.latest = PackedSnapshot::of(snapshot);
        if self.latest.state.is_final() {
            self.final_step.get_or_insert(number);
        }
        self.size += bytes.len();
        self.steps.push_back(EncodedStep { end: now, number, bytes });
        self.shorten(now);
        Ok(())
    }

    /// Returns what has changed between the latest snapshot and another one, if anything has.
    fn changes_until(&self, snapshot: &RunnerMetrics) -> Option<RunnerMetrics> {
        let latest = self.latest.unpack();
        (*snapshot != latest).then(|| RunnerMetrics {
            identity: snapshot.identity.clone(),
            state: snapshot.state,
            metrics: snapshot.metrics.changes_since(&latest.metrics),
        })
    }

    /// Adds the oldest single steps to the base, as many as are too many.
    fn shorten(&mut self, now: Duration) {
        let mut base = None;
        while let Some(first) = self.steps.front()
            && (now.saturating_sub(first.end) > REACH
                || self.steps.len() > MAX_STEPS
                || self.size > MAX_BYTES)
            && let Some(first) = self.steps.pop_front()
        {
            self.size -= first.bytes.len();
            let base = base.get_or_insert_with(|| self.base_step());
            // This process has encoded the step, so it can be decoded.
            for step in decode_steps(&first.bytes).unwrap_or_default() {
                base.extend(step);
            }
        }
        if let Some(HistoryStep { number, runner, .. }) = base {
            (self.base_number, self.base) = (number, PackedSnapshot::of(&runner));
        }
    }

    /// Everything up to the first single step.
    fn base_step(&self) -> HistoryStep {
        HistoryStep { number: self.base_number, is_cumulative: true, runner: self.base.unpack() }
    }

    /// Returns the time of the last step.
    pub fn recorded_at(&self) -> Option<Duration> {
        self.steps.back().map(|step| step.end)
    }

    /// Returns the state of the runner at the last step.
    pub const fn state(&self) -> RunnerState {
        self.latest.state
    }

    /// Returns true if a reader of everything up to a step has all numbers of a runner whose load is over.
    pub fn is_complete_at(&self, step: u64) -> bool {
        self.final_step.is_some_and(|last| step >= last)
    }

    fn last_number(&self) -> u64 {
        self.steps.back().map_or(self.base_number, |step| step.number)
    }

    /// Returns what a reader lacks that has read everything up to a step, encoded; zero is for a reader
    /// that has read nothing.
    ///
    /// # Errors
    /// When the encoder refuses a value.
    pub fn encode_after(&self, number: u64) -> Result<Vec<u8>, fmt::Error> {
        let is_known = (self.base_number..=self.last_number()).contains(&number);
        let mut bytes = Vec::new();
        if !is_known {
            bytes = encode_step(self.base_step(), self.after_each_histogram)?;
        }
        for step in self.steps.iter().filter(|step| !is_known || step.number > number) {
            bytes.extend_from_slice(&step.bytes);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{LatencyMetric, Metrics, Outcome, apply_steps};

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
        let mut history = RunnerHistory::new(Identity::default(), None);
        for second in 1..=last {
            history.record(&snapshot_at(second), seconds(second.into())).unwrap();
        }
        history
    }

    fn steps_after(history: &RunnerHistory, number: u64) -> Vec<HistoryStep> {
        decode_steps(&history.encode_after(number).unwrap()).unwrap()
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
            apply_steps(&mut reader, &steps_after(&history, number));
            assert_eq!(counts(&reader), expected, "read until {last} s");
        }
    }

    #[test]
    fn the_last_two_minutes_are_single_steps() {
        let steps = steps_after(&history_until(300), 0);
        assert!(steps[0].is_cumulative && steps[1..].iter().all(|step| !step.is_cumulative));
        assert_eq!(steps.len(), 122);
        assert!((steps[0].runner.metrics.elapsed_seconds - 179.0).abs() < 1e-9);
        let numbers: Vec<u64> = steps.iter().map(|step| step.number).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert!(steps[1..].iter().all(|s| s.runner.metrics.tasks["health"].requests[0] == 10));
    }

    #[test]
    fn a_reader_gets_only_what_is_new() {
        let mut history = history_until(10);
        assert_eq!(steps_after(&history, 11), []);
        history.record(&snapshot_at(10), seconds(11)).unwrap();
        assert_eq!(steps_after(&history, 11), [], "nothing has changed");
        history.record(&snapshot_at(11), seconds(12)).unwrap();
        assert_eq!(steps_after(&history, 11).len(), 1);
        // A number that this history never had.
        assert!(steps_after(&history, 99)[0].is_cumulative);
    }

    #[test]
    fn frequent_readers_do_not_make_it_grow() {
        let mut history = RunnerHistory::new(Identity::default(), None);
        for n in 1..=1000_u32 {
            history.record(&snapshot_at(n), Duration::from_millis(u64::from(n))).unwrap();
        }
        assert_eq!(steps_after(&history, 0).len(), MAX_STEPS + 1);
    }

    #[test]
    fn large_steps_do_not_make_it_grow() {
        let mut history = RunnerHistory::new(Identity::default(), None);
        let mut runner = RunnerMetrics::default();
        for n in 1..=60_u64 {
            // Each of 20 tasks has samples in 5,000 buckets.
            for name in 0..20 {
                let task = runner.metrics.tasks.entry(format!("task-{name}")).or_default();
                let samples = task.latencies.get_mut(LatencyMetric::ResponseTime, Outcome::Success);
                for bucket in 0..5000 {
                    samples.record((f64::from(bucket) / 250.0).exp2() / 1e6, n);
                }
            }
            history.record(&runner, seconds(n)).unwrap();
        }
        assert!(history.size <= MAX_BYTES, "{} bytes", history.size);
        let mut reader = Metrics::default();
        apply_steps(&mut reader, &steps_after(&history, 0));
        let count = |metrics: &Metrics| {
            let task = &metrics.tasks["task-7"];
            task.latencies.get(LatencyMetric::ResponseTime, Outcome::Success).count()
        };
        assert_eq!(count(&reader), count(&runner.metrics));
    }
}
