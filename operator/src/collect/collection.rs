//! Everything that the runners of one run have told: their sum, and what follows from it over time. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use k8s_openapi::jiff::Timestamp;
use loadtest_core::{
    judge::{Coverage, Timeline},
    metrics::{HistoryStep, Metrics, RunnerMetrics, RunnerState, encode_steps},
    resource::{Aborted, LoadTestStatus},
    result::{GoneRunner, GoneRunners, SeriesRecorder},
};

use super::{
    part::RunnerPart,
    targets::{StartedPods, Targets},
};
use crate::observe::skew::StartEstimates;

/// Answers over a longer time than this are replayed, in seconds: after a restart, or when runners could
/// not be reached for a while.
const REPLAY_AFTER: f64 = 3.5;
/// Time between two snapshots of a replay, in seconds.
const REPLAY_STEP: f64 = 2.0;

/// The answer of one runner.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Index of the runner.
    pub(crate) index: u32,
    /// Time of the request.
    pub(crate) sent_at: Instant,
    /// Time of the answer.
    pub(crate) received_at: Instant,
    /// The new steps of the runner.
    pub(crate) steps: Vec<HistoryStep>,
    /// The same steps, encoded.
    pub(crate) bytes: bytes::Bytes,
}

/// Everything that the runners of one run have told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collection {
    /// Sum over all runners, without the measurements of single runners.
    sum: Metrics,
    /// The runners that may answer again, by index.
    parts: BTreeMap<u32, RunnerPart>,
    /// The runners that never will.
    gone: GoneRunners,
    /// Indices of the runners that answered last time.
    answered: BTreeSet<u32>,
    /// Time of the last answer of each runner.
    last_seen: BTreeMap<u32, Timestamp>,
    /// UIDs of the pods whose logs need no further search for last metrics.
    logs_read: BTreeSet<String>,
    /// When the end of a pod was first seen, by its UID.
    ended_at: BTreeMap<String, Timestamp>,
    /// Message about a runner that speaks another version of the contract.
    contract_mismatch: Option<String>,
    /// Estimated start times of the runners.
    start_estimates: StartEstimates,
    /// Windows, stages and abort timers.
    timeline: Option<Timeline>,
    /// The run over time.
    series: Option<SeriesRecorder>,
    /// Threshold with a critical bound that ends the test.
    aborted: Option<Aborted>,
}

impl Collection {
    /// Goes on from what an earlier process has stored: runners that are gone, those that may answer
    /// again, and the run over time.
    pub(crate) fn restored(
        gone: GoneRunners,
        runners: Vec<RunnerMetrics>,
        series: SeriesRecorder,
    ) -> Self {
        let mut restored =
            Self { sum: gone.metrics.clone(), gone, series: Some(series), ..Self::default() };
        restored.sum.runners.clear();
        for runner in runners {
            let index = runner.identity.index;
            if !restored.gone.runners.contains_key(&index) {
                restored.replace(index, runner);
            }
        }
        restored.update_numbers();
        restored
    }

    /// Returns the sum over all runners, with the measurements of each runner under its name.
    pub(crate) fn merged(&self, name_of: impl Fn(u32) -> String) -> Metrics {
        let mut merged = self.sum.clone();
        merged.runners.clone_from(&self.gone.metrics.runners);
        let parts = self.parts.iter();
        merged.runners.extend(parts.map(|(index, part)| (name_of(*index), part.generator())));
        merged
    }

    /// Returns the state of a runner in its last answer.
    pub(crate) fn runner_state(&self, index: u32) -> Option<RunnerState> {
        let gone = self.gone.runners.get(&index).map(|runner| runner.state);
        gone.or_else(|| self.parts.get(&index).map(RunnerPart::state))
    }

    /// Returns the number of the last step of a runner; zero if it never answered.
    pub(crate) fn last_step(&self, index: u32) -> u64 {
        self.parts.get(&index).map_or(0, RunnerPart::last_step)
    }

    /// Returns true if any runner has answered.
    pub(crate) fn has_answers(&self) -> bool {
        !self.parts.is_empty() || !self.gone.runners.is_empty()
    }

    /// Returns the runners that will never answer again.
    pub(crate) const fn gone(&self) -> &GoneRunners {
        &self.gone
    }

    /// Returns the runners that may answer again, if all of them together take at most this many bytes.
    pub(crate) fn alive(&self, max_bytes: usize) -> Vec<RunnerMetrics> {
        if self.parts.values().map(RunnerPart::size).sum::<usize>() > max_bytes {
            return Vec::new();
        }
        self.parts.values().filter_map(|part| part.snapshot().ok()).collect()
    }

    /// Returns the time of the last answer of a runner.
    pub(crate) fn last_seen(&self, index: u32) -> Option<Timestamp> {
        self.last_seen.get(&index).copied()
    }

    /// Returns the seconds of load that the runners reported last time, if any answered.
    pub(crate) fn reported_elapsed(&self) -> Option<f64> {
        let answered = self.answered.iter().filter_map(|index| self.parts.get(index));
        answered.map(|part| part.numbers().elapsed_seconds).reduce(f64::max)
    }

    /// Returns the estimated start times of the runners.
    pub(crate) const fn start_estimates(&self) -> &StartEstimates {
        &self.start_estimates
    }

    /// Returns windows, stages and abort timers; `None` before the first answer.
    pub(crate) const fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// Returns the run over time; `None` before the first answer.
    pub(crate) const fn series(&self) -> Option<&SeriesRecorder> {
        self.series.as_ref()
    }

    /// Returns the threshold with a critical bound that ends the test.
    pub(crate) const fn aborted(&self) -> Option<&Aborted> {
        self.aborted.as_ref()
    }

    /// Returns true if the last answer of a runner is its last one for ever.
    pub(crate) fn is_final(&self, index: u32) -> bool {
        self.runner_state(index).is_some_and(RunnerState::is_final)
    }

    /// Returns true if a started runner is gone without a final answer, or if its final answer covers only
    /// a part of its load. The log of a pod that has ended may still hold its last metrics.
    pub(crate) fn is_lost(&self, pods: StartedPods<'_>, index: u32) -> bool {
        if self.is_final(index) || self.gone.runners.contains_key(&index) {
            return !self.runner_state(index).is_some_and(RunnerState::is_complete);
        }
        pods.get(index).is_none_or(|runner| {
            runner.termination.is_some() && self.logs_read.contains(&runner.uid)
        })
    }

    /// Returns true if a started runner will never answer again.
    pub(crate) fn is_gone(&self, pods: StartedPods<'_>, index: u32) -> bool {
        let has_ended = || pods.get(index).is_none_or(|runner| runner.termination.is_some());
        self.is_lost(pods, index) || (self.is_final(index) && has_ended())
    }

    /// Describes a lost runner: its index, pod and node, and how it ended.
    pub(crate) fn describe_loss(&self, pods: StartedPods<'_>, index: u32) -> String {
        let gone = self.gone.runners.get(&index);
        gone.and_then(|runner| runner.loss.clone()).unwrap_or_else(|| pods.describe_loss(index))
    }

    /// Puts the runners that will never answer again aside.
    pub(crate) fn settle_gone(&mut self, pods: StartedPods<'_>) {
        for index in pods.indices() {
            if self.gone.runners.contains_key(&index) || !self.is_gone(pods, index) {
                continue;
            }
            let is_lost = self.is_lost(pods, index);
            let part = self.parts.remove(&index);
            let name = pods.name(index);
            if let Some(Ok(snapshot)) = part.as_ref().map(RunnerPart::snapshot) {
                self.gone.metrics.merge_runner(&name, &snapshot.metrics);
            }
            let runner = GoneRunner {
                name,
                pod_uid: pods.uid(index).to_owned(),
                state: part.map(|part| part.state()).unwrap_or_default(),
                loss: is_lost.then(|| pods.describe_loss(index)),
            };
            self.gone.runners.insert(index, runner);
            self.answered.remove(&index);
        }
    }

    /// Ends the test by a threshold.
    #[cfg(test)]
    pub(crate) fn set_aborted(&mut self, aborted: Aborted) {
        self.aborted = Some(aborted);
    }

    /// Returns true if the log of a pod that has ended needs no further search for last metrics.
    pub(crate) fn is_log_read(&self, pod_uid: &str) -> bool {
        self.logs_read.contains(pod_uid)
    }

    /// Notes the end of a pod. Returns the time when it was first seen.
    pub(crate) fn note_end(&mut self, pod_uid: &str, now: Timestamp) -> Timestamp {
        *self.ended_at.entry(pod_uid.to_owned()).or_insert(now)
    }

    /// Notes that the log of a pod that has ended needs no further search for last metrics.
    pub(crate) fn note_log_read(&mut self, pod_uid: &str) {
        self.logs_read.insert(pod_uid.to_owned());
    }

    /// Notes that a runner speaks another version of the contract.
    pub(crate) fn note_contract_mismatch(&mut self, message: String) {
        self.contract_mismatch = Some(message);
    }

    /// Returns the message about a runner that speaks another version of the contract.
    pub(crate) fn contract_mismatch(&self) -> Option<&str> {
        self.contract_mismatch.as_deref()
    }

    /// Replaces everything that a runner has told, for example by the last metrics in its log.
    pub(crate) fn replace(&mut self, index: u32, runner: RunnerMetrics) {
        let step = HistoryStep { number: self.last_step(index), is_whole: true, runner };
        let Ok(bytes) = encode_steps(vec![step.clone()], None) else { return };
        self.forget(index);
        self.keep(index, &step, bytes.into());
        self.add(index, &step);
        self.update_numbers();
    }

    /// Adds the answers of one round. A round without answers changes nothing.
    pub(crate) fn apply(&mut self, answers: Vec<Answer>, run: &Targets, now: Timestamp) {
        self.answered.clear();
        let mut steps = Vec::new();
        let mut replaced = BTreeMap::new();
        for Answer { index, sent_at, received_at, steps: found, bytes } in answers {
            let Some((first, last)) = found.first().zip(found.last()) else {
                // Nothing has changed since the last answer.
                self.note_answer(index, now);
                continue;
            };
            let follows = first.number == self.last_step(index) + 1 && first.number > 1;
            if !first.is_whole && !follows {
                continue;
            }
            let elapsed = last.runner.metrics.elapsed_seconds;
            // `elapsed` stops when the load ends, so a later value does not show the start.
            if last.runner.state == RunnerState::Running
                && elapsed > 0.0
                && elapsed < run.load.as_secs_f64()
            {
                self.start_estimates.add_sample(index, sent_at, received_at, elapsed);
            }
            self.note_answer(index, now);
            if first.is_whole {
                self.forget(index);
                replaced.insert(index, first.runner.metrics.elapsed_seconds);
            }
            self.keep(index, first, bytes);
            steps.extend(found.into_iter().map(|step| (index, step)));
        }
        if self.answered.is_empty() {
            return;
        }
        for task in &run.valid.scenario.tasks {
            self.sum.tasks.entry(task.name.clone()).or_default();
        }
        // From this time on, all runners that answered have told everything that came before.
        let known = self.heard_parts().filter(|(index, _)| !replaced.contains_key(index));
        let known = known.map(|(_, part)| part.numbers().elapsed_seconds);
        let from = known.chain(replaced.values().copied()).fold(0.0, f64::max);
        self.replay(steps, from, run);
        for index in &self.answered {
            if let Some(part) = self.parts.get_mut(index) {
                part.compact();
            }
        }
    }

    /// Notes the time of an answer.
    pub(crate) fn note_answer(&mut self, index: u32, now: Timestamp) {
        self.answered.insert(index);
        self.last_seen.insert(index, now);
    }

    /// Adds steps in the order of their time, and looks at the sum in between.
    fn replay(&mut self, mut steps: Vec<(u32, HistoryStep)>, from: f64, run: &Targets) {
        let elapsed_of = |step: &(u32, HistoryStep)| step.1.runner.metrics.elapsed_seconds;
        steps.sort_by(|a, b| elapsed_of(a).total_cmp(&elapsed_of(b)));
        let end = steps.last().map_or(from, elapsed_of);
        let mut next = if end - from > REPLAY_AFTER { from } else { f64::INFINITY };
        self.prepare(from, run);
        for step in steps {
            if elapsed_of(&step) > next {
                self.look(run);
                next = elapsed_of(&step) + REPLAY_STEP - 0.1;
            }
            self.add(step.0, &step.1);
        }
        self.look(run);
    }

    /// Creates timeline and series. After a restart, they go on from the status; the history of the
    /// runners fills what is missing since.
    fn prepare(&mut self, from: f64, run: &Targets) {
        if self.timeline.is_none() {
            let LoadTestStatus { stages, thresholds, progress, .. } = &run.status;
            let judged = progress.as_ref().map_or(0.0, |progress| progress.elapsed.as_secs_f64());
            let seconds = judged.min(from);
            let timeline = Timeline::from_status(&run.valid, stages.clone(), thresholds, seconds);
            self.timeline = Some(timeline);
        }
        self.series.get_or_insert_with(|| SeriesRecorder::new(&run.valid.load));
    }

    /// Takes a snapshot of the sum for timeline and series.
    ///
    /// A runner without an answer seems to do nothing now and too much later, so the timeline is told
    /// whether some are missing. The abort of a test is judged anyway: it protects the target.
    fn look(&mut self, run: &Targets) {
        self.update_numbers();
        let is_current = |index: &u32| {
            let is_complete = self.runner_state(*index).is_some_and(RunnerState::is_complete);
            is_complete || self.answered.contains(index)
        };
        let pods = run.pods();
        let mut coverage = Coverage::All;
        for index in pods.indices().filter(|index| !is_current(index)) {
            if !self.is_lost(pods, index) {
                coverage = Coverage::Partial;
                break;
            }
            coverage = Coverage::WithoutLost;
        }
        if let Some(series) = &mut self.series {
            series.record(&self.sum);
        }
        let Some(timeline) = &mut self.timeline else { return };
        let aborted = timeline.record_snapshot_of(&run.valid, &self.sum, coverage);
        // Load that has ended or is being stopped can't be aborted.
        if self.sum.elapsed_seconds < run.load.as_secs_f64() {
            self.aborted = aborted;
        }
    }

    /// Keeps an encoded answer that begins with this step.
    fn keep(&mut self, index: u32, first: &HistoryStep, bytes: bytes::Bytes) {
        self.parts.entry(index).or_default().keep(bytes, first.is_whole);
    }

    /// Takes everything that a runner has told out of the sum, because the runner tells it again.
    fn forget(&mut self, index: u32) {
        if let Some(Ok(earlier)) = self.parts.remove(&index).map(|part| part.snapshot()) {
            self.sum = self.sum.changes_since(&earlier.metrics);
        }
    }

    /// Returns the runners that this process has heard.
    fn heard_parts(&self) -> impl Iterator<Item = (&u32, &RunnerPart)> {
        self.parts.iter().filter(|(index, _)| self.last_seen.contains_key(index))
    }

    fn add(&mut self, index: u32, step: &HistoryStep) {
        self.sum.merge_samples(&step.runner.metrics);
        self.parts.entry(index).or_default().add(step);
    }

    /// Updates the numbers of whole runners in the sum, such as users and elapsed time.
    fn update_numbers(&mut self) {
        let mut numbers = Metrics::default();
        numbers.copy_runner_numbers(&self.gone.metrics);
        for part in self.parts.values() {
            numbers.merge_runner_numbers(part.numbers());
        }
        // During a replay, the runners that answer are behind those that don't.
        let heard = self.heard_parts().map(|(_, part)| part.numbers().elapsed_seconds);
        if let Some(elapsed) = heard.reduce(f64::max) {
            numbers.elapsed_seconds = elapsed;
        }
        self.sum.copy_runner_numbers(&numbers);
    }
}

#[cfg(test)]
mod tests;
