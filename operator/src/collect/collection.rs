//! Everything that the runners of one run have told: their sum, and what follows from it over time. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{
    judge::{Coverage, Timeline},
    metrics::{HistoryStep, Metrics, RunnerMetrics, RunnerNumbers, RunnerState},
    resource::Aborted,
    result::{GoneRunner, GoneRunners, PackedRunner, PackedSeries, SeriesRecorder},
};

use super::{
    judged_sum::{JudgeScope, JudgedSum},
    part::RunnerPart,
    targets::{StartedPods, Targets},
};
use crate::observe::skew::{RoundTrip, StartEstimates};

/// How long windows and stages wait for a runner that does not answer. Runners keep the steps of 120 s, so what
/// happened meanwhile is judged with the runner's steps when it answers again.
const SILENCE_LIMIT: SignedDuration = SignedDuration::from_secs(110);
/// The same limit when all other runners have ended their load. It is less than `SILENT_RUNNER_TIMEOUT`, after
/// which the operator ends the test without the runner.
const SILENCE_LIMIT_AT_END: SignedDuration = SignedDuration::from_secs(50);
/// Maximum time that a runner may report beyond the length of the load, in seconds.
const MAX_EXCESS: f64 = 60.0;

/// The answer of one runner.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Index of the runner.
    pub(crate) index: u32,
    pub(crate) round_trip: RoundTrip,
    /// Seconds of load at the time of the answer.
    pub(crate) elapsed: f64,
    /// The new steps of the runner, with consecutive numbers.
    pub(crate) steps: Vec<HistoryStep>,
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
    /// The sum over all runners, and its windows and stages.
    judged: JudgedSum,
    /// The same without waiting for silent runners. An abort protects the target, so it does not wait.
    without_silent: Option<Box<JudgedSum>>,
    /// The runners that may answer again, by index.
    parts: BTreeMap<u32, RunnerPart>,
    /// The runners that never will.
    gone: GoneRunners,
    /// Number of the last step of each of them, if this process has read it.
    gone_steps: BTreeMap<u32, u64>,
    /// Indices of the runners that answered in this round.
    answered: BTreeSet<u32>,
    /// When this process first asked the runners.
    asked_since: Option<Timestamp>,
    /// End of the last round.
    round_ended_at: Option<Timestamp>,
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
    /// The run over time.
    series: Option<SeriesRecorder<PackedSeries>>,
    /// Threshold with a critical bound that ends the test.
    aborted: Option<Aborted>,
}

impl Collection {
    /// Goes on from what an earlier process has stored: runners that are gone, those that may answer
    /// again, the run over time, and the sum at the start of the current stage.
    pub(crate) fn restored(
        gone: GoneRunners,
        runners: Vec<RunnerMetrics>,
        series: SeriesRecorder<PackedSeries>,
        stage_start: Option<&Metrics>,
    ) -> Self {
        let judged = JudgedSum::resumed(stage_start);
        let mut restored = Self { judged, series: Some(series), ..Self::default() };
        restored.judged.add_gone(&gone.metrics);
        for runner in runners {
            let index = runner.identity.index;
            if gone.runners.contains_key(&index) {
                continue;
            }
            restored.add_stored(index, runner);
        }
        restored.gone = gone;
        restored
    }

    /// Returns the sum over all runners, with the measurements of each runner under its name.
    pub(crate) fn merged(&self, name_of: impl Fn(u32) -> String) -> Metrics {
        let mut merged = self.judged.total();
        merged.runners.clone_from(&self.gone.metrics.runners);
        let parts = self.parts.iter();
        merged.runners.extend(parts.map(|(index, part)| (name_of(*index), part.generator())));
        merged
    }

    /// Returns the sum at the start of the current stage, but for the first stage.
    pub(crate) fn stage_start(&self) -> Option<Metrics> {
        self.judged.stage_start()
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
    pub(crate) fn alive(&self, max_bytes: usize) -> Vec<PackedRunner> {
        let mut size = 0;
        let fits = |part: &&RunnerPart| {
            size += part.size();
            size <= max_bytes
        };
        self.parts.values().take_while(fits).map(RunnerPart::packed).collect()
    }

    /// Returns the time of the last answer of a runner.
    pub(crate) fn last_seen(&self, index: u32) -> Option<Timestamp> {
        self.last_seen.get(&index).copied()
    }

    /// Returns the end of the last round of questions by this process.
    pub(crate) const fn round_ended_at(&self) -> Option<Timestamp> {
        self.round_ended_at
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

    /// Returns windows, stages and abort timers; `None` before anything is judged.
    pub(crate) const fn timeline(&self) -> Option<&Timeline> {
        self.judged.timeline()
    }

    /// Returns the run over time; `None` before anything is judged.
    pub(crate) const fn series(&self) -> Option<&SeriesRecorder<PackedSeries>> {
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

    /// Moves the runners that will never answer again from `parts` to `gone`. Their numbers stay in the sum.
    pub(crate) fn move_gone_runners(&mut self, pods: StartedPods<'_>) {
        for index in pods.indices() {
            if self.gone.runners.contains_key(&index) || !self.is_gone(pods, index) {
                continue;
            }
            let is_lost = self.is_lost(pods, index);
            let part = self.parts.remove(&index);
            self.gone_steps.extend(part.as_ref().map(|part| (index, part.last_step())));
            let name = pods.name(index);
            if let Some(snapshot) = part.as_ref().map(RunnerPart::snapshot) {
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
    pub(crate) fn replace(&mut self, index: u32, runner: RunnerMetrics, run: &Targets) {
        self.forget(index, run);
        self.add_stored(index, runner);
    }

    /// Adds everything that a runner has told, as a result or a log holds it.
    pub(crate) fn add_stored(&mut self, index: u32, runner: RunnerMetrics) {
        self.all_sums().for_each(|sum| sum.add_unjudged(index, &runner.metrics));
        self.parts.insert(index, RunnerPart::stored(runner));
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
        let Answer { index, round_trip, elapsed, steps } = answer;
        let longest = run.valid.load.duration().as_secs_f64() + MAX_EXCESS;
        let mut times =
            steps.iter().map(|step| step.runner.metrics.elapsed_seconds).chain([elapsed]);
        if let Some(elapsed) = times.find(|elapsed| *elapsed > longest) {
            return Err(RefusedAnswer::Elapsed { elapsed: elapsed.to_string() });
        }
        if let Some(first) = steps.first() {
            let last = self.last_step(index);
            if first.is_cumulative {
                self.forget(index, run);
                let elapsed = first.runner.metrics.elapsed_seconds;
                self.all_sums().for_each(|sum| sum.note_cumulative_step(elapsed));
            } else if last == 0 || first.number != last + 1 {
                self.forget(index, run);
                return Err(RefusedAnswer::Gap { last, found: first.number });
            }
        }
        self.answered.insert(index);
        self.last_seen.insert(index, now);
        let part = self.parts.entry(index).or_default();
        // `elapsed` stops when the load ends, so a later value does not show the start.
        let state = steps.last().map_or_else(|| part.state(), |step| step.runner.state);
        if state == RunnerState::Running && elapsed > 0.0 && elapsed < run.load.as_secs_f64() {
            self.start_estimates.add_sample(index, round_trip, elapsed);
        }
        if steps.is_empty() {
            return Ok(());
        }
        for mut step in steps {
            let is_known =
                |name: &str| run.valid.scenario.tasks.iter().any(|task| task.name == name);
            step.runner.metrics.tasks.retain(|name, _| is_known(name));
            let change = RunnerNumbers::of(&step.runner.metrics).change_since(part.numbers());
            for sum in
                [Some(&mut self.judged), self.without_silent.as_deref_mut()].into_iter().flatten()
            {
                sum.add_step(&run.valid, index, &step.runner.metrics, change);
            }
            part.add(&step);
        }
        Ok(())
    }

    /// Ends a round: judges the sum, as far as all runners have told it.
    pub(crate) fn end_round(&mut self, run: &Targets, now: Timestamp) {
        self.move_gone_runners(run.pods());
        self.round_ended_at = Some(now);
        self.asked_since.get_or_insert(now);
        let scope = self.scope(run.pods(), now);
        self.judge_until(run, scope);
        let can_abort = || run.valid.thresholds.iter().any(|threshold| threshold.abort.is_some());
        if self.judged.has_pending() && can_abort() {
            let sum = self.without_silent.get_or_insert_with(|| Box::new(self.judged.clone()));
            let aborted = sum.judge_until(run, JudgeScope::EVERYTHING, None);
            self.note_abort(aborted, run);
        } else {
            self.without_silent = None;
        }
    }

    /// Judges what still waits for runners, when none of them will tell more.
    pub(crate) fn judge_rest(&mut self, run: &Targets) {
        self.move_gone_runners(run.pods());
        let is_silent =
            |index: u32| !self.is_over(run.pods(), index) && !self.answered.contains(&index);
        let coverage = if run.pods().indices().any(is_silent) {
            Coverage::Partial
        } else {
            self.coverage(run.pods())
        };
        self.judge_until(run, JudgeScope { coverage, ..JudgeScope::EVERYTHING });
        self.judged.end(&run.valid);
    }

    fn judge_until(&mut self, run: &Targets, scope: JudgeScope) {
        let series = self.series.get_or_insert_with(|| SeriesRecorder::new(&run.valid.load));
        let aborted = self.judged.judge_until(run, scope, Some(series));
        self.note_abort(aborted, run);
    }

    /// Notes that a threshold ends the test. Load that has ended or is being stopped can't be aborted, and once
    /// due, an abort stays due.
    fn note_abort(&mut self, aborted: Option<Aborted>, run: &Targets) {
        let elapsed = self.parts.values().map(RunnerPart::elapsed).fold(0.0, f64::max);
        if self.aborted.is_none() && elapsed < run.load.as_secs_f64() {
            self.aborted = aborted;
        }
    }

    /// Returns true if a started runner has told everything, or never will.
    fn is_over(&self, pods: StartedPods<'_>, index: u32) -> bool {
        self.is_final(index) || self.is_lost(pods, index)
    }

    /// Which runners the sum covers, if none is silent.
    fn coverage(&self, pods: StartedPods<'_>) -> Coverage {
        let has_lost = pods.indices().any(|index| self.is_lost(pods, index));
        if has_lost { Coverage::WithoutLost } else { Coverage::All }
    }

    /// What can be judged now. It waits for runners that do not answer, up to the limit.
    fn scope(&self, pods: StartedPods<'_>, now: Timestamp) -> JudgeScope {
        let is_over = |index: u32| self.is_over(pods, index);
        let silent = |index: &u32| !is_over(*index) && !self.answered.contains(index);
        let others_are_over = pods.indices().all(|index| silent(&index) || is_over(index));
        let limit = if others_are_over { SILENCE_LIMIT_AT_END } else { SILENCE_LIMIT };
        let last_seen = |index| self.last_seen(index).or(self.asked_since).unwrap_or(now);
        let (given_up, waited_for): (Vec<u32>, Vec<u32>) = pods
            .indices()
            .filter(silent)
            .partition(|index| now.duration_since(last_seen(*index)) >= limit);
        let coverage = if given_up.is_empty() { self.coverage(pods) } else { Coverage::Partial };
        if waited_for.is_empty() {
            return JudgeScope { coverage, until: f64::INFINITY };
        }
        // A runner that says that it waits for its start has nothing else to tell.
        let counts = |index: &u32| {
            let is_waiting = self.runner_state(*index) == Some(RunnerState::Waiting)
                && self.answered.contains(index);
            !is_over(*index) && !given_up.contains(index) && !is_waiting
        };
        let told = |index| self.parts.get(&index).map_or(0.0, RunnerPart::elapsed);
        let until = pods.indices().filter(counts).map(told).fold(f64::INFINITY, f64::min);
        JudgeScope { coverage, until }
    }

    /// The sum, and the one without the runners that it waits for.
    fn all_sums(&mut self) -> impl Iterator<Item = &mut JudgedSum> {
        std::iter::once(&mut self.judged).chain(self.without_silent.as_deref_mut())
    }

    /// Takes everything that a runner has told out of the sum, because the runner tells it again.
    fn forget(&mut self, index: u32, run: &Targets) {
        let Some(part) = self.parts.get(&index) else { return };
        let earlier = part.snapshot();
        let (numbers, is_stored) = (part.numbers(), part.is_stored());
        if !is_stored {
            // The answers of this process may be in any slot, so all slots are judged now, without what the
            // runner tells again.
            self.judge_until(run, JudgeScope::EVERYTHING);
            if let Some(sum) = &mut self.without_silent {
                sum.judge_until(run, JudgeScope::EVERYTHING, None);
            }
        }
        self.all_sums().for_each(|sum| sum.remove(&earlier.metrics, numbers));
        self.parts.remove(&index);
    }
}

#[cfg(test)]
mod tests;
