//! Everything that the runners of one run have told: their sum, and what follows from it over time. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use bytes::Bytes;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{
    judge::{Coverage, Timeline},
    metrics::{HistoryStep, Metrics, RunnerMetrics, RunnerNumbers, RunnerState},
    plan::ValidTest,
    resource::{Aborted, LoadTestStatus},
    result::{GoneRunner, GoneRunners, SeriesRecorder},
};

use super::{
    part::RunnerPart,
    slots::Slots,
    targets::{StartedPods, Targets},
};
use crate::observe::skew::StartEstimates;

/// How long a look at the sum waits for runners that have not answered yet.
const HOLD: SignedDuration = SignedDuration::from_secs(4);
/// Maximum time that a runner may report beyond the length of the load, in seconds.
const MAX_EXCESS: f64 = 60.0;

/// The answer of one runner.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Index of the runner.
    pub(crate) index: u32,
    /// Time of the request.
    pub(crate) sent_at: Instant,
    /// Time of the answer.
    pub(crate) received_at: Instant,
    /// Seconds of load at the time of the answer.
    pub(crate) elapsed: f64,
    /// The new steps of the runner, with consecutive numbers.
    pub(crate) steps: Vec<HistoryStep>,
    /// The same steps, encoded.
    pub(crate) bytes: Bytes,
}

/// Reason why an answer is not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusedAnswer {
    #[error("step {found} does not follow step {last}; everything is read again")]
    Gap { last: u64, found: u64 },
    #[error("the runner reports {elapsed} s of load, longer than the load of the test")]
    Elapsed { elapsed: String },
}

/// Everything that the runners of one run have told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collection {
    /// Sum over all runners, up to the last look. Without the numbers of whole runners.
    sum: Metrics,
    /// The numbers of whole runners, up to the last look.
    numbers: RunnerNumbers,
    /// The changes after the last look.
    pending: Slots,
    /// The runners that may answer again, by index.
    parts: BTreeMap<u32, RunnerPart>,
    /// The runners that never will.
    gone: GoneRunners,
    /// Number of the last step of each of them, if this process has read it.
    gone_steps: BTreeMap<u32, u64>,
    /// Indices of the runners that answered in this round.
    answered: BTreeSet<u32>,
    /// When a look began to wait for runners.
    waiting_since: Option<Timestamp>,
    /// Until this time of the load, not all runners that answered have single steps.
    whole_until: f64,
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
    /// The sum at the start of a stage, as an earlier process has stored it for the timeline.
    stage_start: Option<Metrics>,
    /// The run over time.
    series: Option<SeriesRecorder>,
    /// Threshold with a critical bound that ends the test.
    aborted: Option<Aborted>,
}

impl Collection {
    /// Goes on from what an earlier process has stored: runners that are gone, those that may answer
    /// again, the run over time, and the sum at the start of the current stage.
    pub(crate) fn restored(
        gone: GoneRunners,
        runners: Vec<RunnerMetrics>,
        series: SeriesRecorder,
        stage_start: Option<Metrics>,
    ) -> Self {
        let mut restored = Self { series: Some(series), stage_start, ..Self::default() };
        restored.sum.merge_samples(&gone.metrics);
        restored.numbers.add(RunnerNumbers::of(&gone.metrics));
        for runner in runners {
            let index = runner.identity.index;
            if gone.runners.contains_key(&index) {
                continue;
            }
            restored.replace(index, runner);
        }
        restored.gone = gone;
        restored
    }

    /// Returns the sum over all runners, with the measurements of each runner under its name.
    pub(crate) fn merged(&self, name_of: impl Fn(u32) -> String) -> Metrics {
        let (mut merged, mut numbers) = (self.sum.clone(), self.numbers);
        self.pending.add_all_to(&mut merged, &mut numbers);
        numbers.write_to(&mut merged);
        merged.runners.clone_from(&self.gone.metrics.runners);
        let parts = self.parts.iter();
        merged.runners.extend(parts.map(|(index, part)| (name_of(*index), part.generator())));
        merged
    }

    /// Returns the sum at the start of the current stage, but for the first stage.
    pub(crate) fn stage_start(&self) -> Option<&Metrics> {
        match &self.timeline {
            Some(timeline) => timeline.stage_start(),
            None => self.stage_start.as_ref(),
        }
    }

    /// Returns the state of a runner in its last answer.
    pub(crate) fn runner_state(&self, index: u32) -> Option<RunnerState> {
        let gone = self.gone.runners.get(&index).map(|runner| runner.state);
        gone.or_else(|| self.parts.get(&index).map(RunnerPart::state))
    }

    /// Returns the number of the last step of a runner; zero if it never answered.
    pub(crate) fn last_step(&self, index: u32) -> u64 {
        let gone = self.gone_steps.get(&index).copied();
        gone.or_else(|| self.parts.get(&index).map(RunnerPart::last_step)).unwrap_or_default()
    }

    /// Returns true if any runner has answered.
    pub(crate) fn has_answers(&self) -> bool {
        !self.parts.is_empty() || !self.gone.runners.is_empty()
    }

    /// Returns the runners that will never answer again.
    pub(crate) const fn gone(&self) -> &GoneRunners {
        &self.gone
    }

    /// Returns runners that may answer again: as many as take at most this many bytes.
    pub(crate) fn alive(&mut self, max_bytes: usize) -> Vec<RunnerMetrics> {
        let (mut size, mut kept) = (0, Vec::new());
        for part in self.parts.values_mut() {
            size += part.compact();
            if size > max_bytes {
                break;
            }
            kept.extend(part.snapshot());
        }
        kept
    }

    /// Returns the time of the last answer of a runner.
    pub(crate) fn last_seen(&self, index: u32) -> Option<Timestamp> {
        self.last_seen.get(&index).copied()
    }

    /// Returns the seconds of load that the runners reported last time, if any answered.
    pub(crate) fn reported_elapsed(&self) -> Option<f64> {
        let answered = self.answered.iter().filter_map(|index| self.parts.get(index));
        answered.map(RunnerPart::elapsed).reduce(f64::max)
    }

    /// Returns the estimated start times of the runners.
    pub(crate) const fn start_estimates(&self) -> &StartEstimates {
        &self.start_estimates
    }

    /// Returns windows, stages and abort timers; `None` before the first look.
    pub(crate) const fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// Returns the run over time; `None` before the first look.
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
    fn is_gone(&self, pods: StartedPods<'_>, index: u32) -> bool {
        let has_ended = || pods.get(index).is_none_or(|runner| runner.termination.is_some());
        self.is_lost(pods, index) || (self.is_final(index) && has_ended())
    }

    /// Describes a lost runner: its index, pod and node, and how it ended.
    pub(crate) fn describe_loss(&self, pods: StartedPods<'_>, index: u32) -> String {
        let gone = self.gone.runners.get(&index);
        gone.and_then(|runner| runner.loss.clone()).unwrap_or_else(|| pods.describe_loss(index))
    }

    /// Puts the runners that will never answer again aside. Their numbers stay in the sum.
    pub(crate) fn settle_gone(&mut self, pods: StartedPods<'_>) {
        for index in pods.indices() {
            if self.gone.runners.contains_key(&index) || !self.is_gone(pods, index) {
                continue;
            }
            let is_lost = self.is_lost(pods, index);
            let part = self.parts.remove(&index);
            self.gone_steps.extend(part.as_ref().map(|part| (index, part.last_step())));
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

    /// Notes that a runner answered at a time.
    #[cfg(test)]
    pub(crate) fn note_answer(&mut self, index: u32, now: Timestamp) {
        self.answered.insert(index);
        self.last_seen.insert(index, now);
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

    /// Replaces everything that a runner has told by the last metrics in its log.
    pub(crate) fn replace(&mut self, index: u32, runner: RunnerMetrics) {
        self.forget(index);
        self.sum.merge_samples(&runner.metrics);
        self.numbers.add(RunnerNumbers::of(&runner.metrics));
        self.parts.extend(RunnerPart::stored(runner).map(|part| (index, part)));
    }

    /// Begins a round of questions to the runners.
    pub(crate) fn begin_round(&mut self) {
        self.answered.clear();
    }

    /// Adds the answer of a runner.
    ///
    /// # Errors
    /// Fails if the answer does not follow the last one, or can't be true. Nothing is added then.
    pub(crate) fn add_answer(
        &mut self,
        answer: Answer,
        run: &Targets,
        now: Timestamp,
    ) -> Result<(), RefusedAnswer> {
        let Answer { index, sent_at, received_at, elapsed, steps, bytes } = answer;
        let longest = run.valid.load.duration().as_secs_f64() + MAX_EXCESS;
        let mut times =
            steps.iter().map(|step| step.runner.metrics.elapsed_seconds).chain([elapsed]);
        if let Some(elapsed) = times.find(|elapsed| *elapsed > longest) {
            return Err(RefusedAnswer::Elapsed { elapsed: elapsed.to_string() });
        }
        if let Some(first) = steps.first() {
            let last = self.last_step(index);
            if first.is_whole {
                self.forget(index);
                self.whole_until = self.whole_until.max(first.runner.metrics.elapsed_seconds);
            } else if last == 0 || first.number != last + 1 {
                self.forget(index);
                return Err(RefusedAnswer::Gap { last, found: first.number });
            }
        }
        self.answered.insert(index);
        self.last_seen.insert(index, now);
        let part = self.parts.entry(index).or_default();
        // `elapsed` stops when the load ends, so a later value does not show the start.
        let state = steps.last().map_or_else(|| part.state(), |step| step.runner.state);
        if state == RunnerState::Running && elapsed > 0.0 && elapsed < run.load.as_secs_f64() {
            self.start_estimates.add_sample(index, sent_at, received_at, elapsed);
        }
        if steps.is_empty() {
            return Ok(());
        }
        part.keep(bytes);
        for mut step in steps {
            let is_known =
                |name: &str| run.valid.scenario.tasks.iter().any(|task| task.name == name);
            step.runner.metrics.tasks.retain(|name, _| is_known(name));
            let change = RunnerNumbers::of(&step.runner.metrics).change_since(part.numbers());
            self.pending.add(&run.valid, &step.runner.metrics, change);
            part.add(&step);
        }
        part.compact_in_turn(index);
        Ok(())
    }

    /// Ends a round: looks at the sum, unless runners that have not answered yet may change it soon.
    pub(crate) fn end_round(&mut self, run: &Targets, now: Timestamp) {
        self.settle_gone(run.pods());
        let coverage = self.coverage(run.pods());
        if coverage == Coverage::Partial {
            let since = *self.waiting_since.get_or_insert(now);
            if now.duration_since(since) < HOLD {
                return;
            }
        } else {
            self.waiting_since = None;
        }
        self.look(run, coverage);
    }

    /// Which runners the answers of this round cover.
    fn coverage(&self, pods: StartedPods<'_>) -> Coverage {
        let is_current = |index: &u32| {
            let is_complete = self.runner_state(*index).is_some_and(RunnerState::is_complete);
            is_complete || self.answered.contains(index)
        };
        let mut coverage = Coverage::All;
        for index in pods.indices().filter(|index| !is_current(index)) {
            if !self.is_lost(pods, index) {
                return Coverage::Partial;
            }
            coverage = Coverage::WithoutLost;
        }
        coverage
    }

    /// Adds what has come since the last look to the sum, in the order of time, and takes a snapshot for
    /// timeline and series after each slot.
    ///
    /// A runner without an answer seems to do nothing now and too much later, so the timeline is told
    /// whether some are missing. The abort of a test is judged anyway: it protects the target.
    fn look(&mut self, run: &Targets, coverage: Coverage) {
        for task in &run.valid.scenario.tasks {
            self.sum.tasks.entry(task.name.clone()).or_default();
        }
        let from = std::mem::take(&mut self.whole_until);
        let mut pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        let timeline = self.timeline.get_or_insert_with(|| {
            let mut timeline = timeline_of(&run.valid, &run.status);
            timeline.look_back_to(from);
            if let Some(start) = self.stage_start.take() {
                timeline.resume_stage(&run.valid, start);
            }
            timeline
        });
        let series = self.series.get_or_insert_with(|| SeriesRecorder::new(&run.valid.load));
        while let Some(elapsed) = pending.pop_first_to(&mut self.sum, &mut self.numbers) {
            // Before this time, the sum lacks runners that tell everything in one step.
            if elapsed < from {
                continue;
            }
            self.numbers.write_to(&mut self.sum);
            // During a replay, runners that are gone are ahead.
            if !pending.is_empty() {
                self.sum.elapsed_seconds = elapsed;
            }
            series.record(&self.sum);
            let aborted = timeline.record_snapshot_of(&run.valid, &self.sum, coverage);
            // Load that has ended or is being stopped can't be aborted. Once due, an abort stays due.
            if self.aborted.is_none() && self.sum.elapsed_seconds < run.load.as_secs_f64() {
                self.aborted = aborted;
            }
        }
    }

    /// Takes everything that a runner has told out of the sum, because the runner tells it again.
    fn forget(&mut self, index: u32) {
        let Some(part) = self.parts.get(&index) else { return };
        let Ok(earlier) = part.snapshot() else { return };
        if !part.is_stored() {
            // The answers of this process may be in any slot.
            std::mem::take(&mut self.pending).add_all_to(&mut self.sum, &mut self.numbers);
        }
        self.numbers.add(RunnerNumbers::default().change_since(part.numbers()));
        self.sum = self.sum.since(&earlier.metrics);
        self.parts.remove(&index);
    }
}

/// Returns the timeline that an earlier process has written to the status.
pub(crate) fn timeline_of(valid: &ValidTest, status: &LoadTestStatus) -> Timeline {
    let LoadTestStatus { stages, thresholds, progress, .. } = status;
    let judged = progress.as_ref().map_or(0.0, |progress| progress.elapsed.as_secs_f64());
    Timeline::from_status(valid, stages.clone(), thresholds, judged)
}

#[cfg(test)]
mod tests;
