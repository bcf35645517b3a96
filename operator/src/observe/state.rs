//! State of a test as one reconciliation sees it, and rules that follow from this state alone.
//!
//! Pure: this module has no client and reads no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use k8s_openapi::{
    api::batch::v1::Job,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use loadtest_core::{
    Duration,
    judge::{Coverage, RunContext, Timeline, max_start_skew},
    metrics::{Metrics, RunnerMetrics, RunnerState},
    plan::{Problem, ValidTest, validate},
    resource::{Aborted, LoadTest, LoadTestStatus, OnRunnerLoss, Phase},
    result::{GoneRunners, SeriesRecorder},
};
use serde::{Deserialize, Serialize};

use super::{runner::Runner, skew::StartEstimates};

/// Annotation of the Job that holds the [`StartRecord`] as JSON.
pub(crate) const START_ANNOTATION: &str = "loadtest.cell0.io/start";

/// The start of a test. It is written to the Job before any start order, and a test has only one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartRecord {
    /// Start time of the load on all runners.
    pub(crate) at: Timestamp,
    /// UIDs of the runner pods by index. Other pods never get a start order.
    pub(crate) pods: Vec<String>,
}

/// Returns the latest time at which a runner may start.
pub(crate) fn latest_start(start: &StartRecord, valid: &ValidTest) -> Timestamp {
    let skew = max_start_skew(valid.load.duration());
    let skew = SignedDuration::try_from(skew.to_std()).unwrap_or(SignedDuration::MAX);
    start.at.saturating_add(skew).unwrap_or(start.at)
}

/// The objects of a test under load, as the last successful reconciliation saw them.
#[derive(Clone, Debug)]
pub(crate) struct LastObjects {
    pub(crate) test: LoadTest,
    pub(crate) job: Job,
    pub(crate) runners: Vec<Runner>,
}

/// The writes of the result of a run by this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct WrittenResult {
    /// Number of writes.
    pub(crate) revision: u64,
    /// Time of the last write, or of the last attempt.
    pub(crate) at: Option<Timestamp>,
    /// Number of completed requests in the last write.
    pub(crate) requests: u64,
    /// Number of finished stages in the last write.
    pub(crate) stages: usize,
    /// Largest number of objects in a write.
    pub(crate) most_parts: u32,
    /// Time of the first attempt at the last write, if it failed.
    pub(crate) failing_since: Option<Timestamp>,
    /// True if a newer version of the operator wrote the result. This one leaves it as it is.
    pub(crate) is_newer: bool,
}

/// Facts about a run that the operator keeps between reconciliations.
///
/// After a restart, the operator collects them again from the runners, and goes on from the
/// `LoadTestResult`, which holds the numbers of runners that are gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunCache {
    /// Latest snapshot of each runner's metrics, by runner index.
    pub(crate) snapshots: BTreeMap<u32, RunnerMetrics>,
    /// One error message per task and kind of error.
    pub(crate) error_examples: BTreeMap<(String, String), String>,
    /// UIDs of the pods that accepted the start order.
    pub(crate) start_accepted: BTreeSet<String>,
    /// UIDs of the pods that accepted the stop order.
    pub(crate) stop_accepted: BTreeSet<String>,
    /// UIDs of the pods that need no further release order.
    pub(crate) released: BTreeSet<String>,
    /// UIDs of the pods with a log that needs no further search for last metrics.
    pub(crate) logs_read: BTreeSet<String>,
    /// When this process first saw that a pod has ended, by UID.
    pub(crate) ended_at: BTreeMap<String, Timestamp>,
    /// The runners that were gone when an earlier process wrote the result. [`Self::snapshots`] holds
    /// those that went later.
    pub(crate) gone: GoneRunners,
    /// The run over time.
    pub(crate) series: Option<SeriesRecorder>,
    /// The writes of the result.
    pub(crate) written_result: WrittenResult,
    /// Time of the first failure to read the result of an earlier process.
    pub(crate) resume_failing_since: Option<Timestamp>,
    /// The start record, after the Job that holds it is gone.
    pub(crate) start: Option<StartRecord>,
    /// Number of launches in a row that the API server did not carry out.
    pub(crate) failed_launches: u32,
    /// Timeline of the test so far.
    pub(crate) timeline: Option<Timeline>,
    /// Message about a runner that speaks another version of the contract.
    pub(crate) contract_mismatch: Option<String>,
    /// Threshold with a critical bound that ends the test.
    pub(crate) aborted: Option<Aborted>,
    /// Estimated start times of the runners.
    pub(crate) start_estimates: StartEstimates,
    /// Time of the last successful scrape of each runner, by runner index.
    pub(crate) last_seen: BTreeMap<u32, Timestamp>,
    /// Indices of the runners that the current reconciliation has scraped.
    pub(crate) scraped_now: BTreeSet<u32>,
    /// Time when this process first saw the run.
    pub(crate) first_seen: Option<Timestamp>,
    /// Time of the first stop order before the test's end.
    pub(crate) stop_sent_at: Option<Timestamp>,
    /// False when the token of the run has changed since the runners were created: they take no
    /// orders any more.
    pub(crate) token_has_changed: bool,
    /// Time of the last write of the status.
    pub(crate) status_written_at: Option<Timestamp>,
    /// The objects to go on with while the API server can't be read. `None` for a test without load.
    pub(crate) last_objects: Option<Box<LastObjects>>,
}

impl RunCache {
    /// Returns the state of a runner in its latest snapshot.
    fn runner_state(&self, index: u32) -> Option<RunnerState> {
        let gone = self.gone.runners.get(&index).map(|runner| runner.state);
        gone.or_else(|| self.snapshots.get(&index).map(|snapshot| snapshot.state))
    }

    /// Returns true if the latest snapshot of a runner is final.
    pub(crate) fn is_final(&self, index: u32) -> bool {
        self.runner_state(index).is_some_and(RunnerState::is_final)
    }

    /// Drops the results of a finished test, which its status holds now.
    pub(crate) fn drop_results(&mut self) {
        self.snapshots.clear();
        self.error_examples.clear();
        self.timeline = None;
        self.series = None;
        self.gone = GoneRunners::default();
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The test as the API server returned it in this reconciliation.
    pub(crate) test: LoadTest,
    /// The validated spec of the test, or everything that is wrong with the spec. For an invalid
    /// spec of a test with a plan, the test of the plan.
    pub(crate) valid: Result<ValidTest, Vec<Problem>>,
    /// Job of the test.
    pub(crate) job: Option<Job>,
    /// Runner pods of the test.
    pub(crate) runners: Vec<Runner>,
    /// Cache of the run, including everything that this reconciliation has collected.
    pub(crate) cache: RunCache,
}

impl Observed {
    /// Creates the state of a test without Job and runner pods.
    pub(crate) fn new(test: LoadTest, cache: RunCache) -> Self {
        let valid = validate(&test.spec);
        Self { test, valid, job: None, runners: Vec::new(), cache }
    }

    /// Keeps the objects of a test under load, for the time when the API server can't be read.
    pub(crate) fn keep_objects(&mut self) {
        let is_over = self.phase().is_some_and(Phase::is_final);
        let is_under_load = self.start_record().is_some() && !is_over;
        self.cache.last_objects = self.job.clone().filter(|_| is_under_load).map(|job| {
            let (test, runners) = (self.test.clone(), self.runners.clone());
            Box::new(LastObjects { test, job, runners })
        });
    }

    /// Returns the status of the test; an empty one if there is none yet.
    pub(crate) fn status(&self) -> LoadTestStatus {
        self.test.status.clone().unwrap_or_default()
    }

    /// Returns the phase of the test.
    pub(crate) fn phase(&self) -> Option<Phase> {
        self.test.status.as_ref().and_then(LoadTestStatus::known_phase)
    }

    /// Returns what holds the Job back in words, if it is suspended and so has no pods.
    pub(crate) fn suspension_cause(&self) -> Option<String> {
        let job = self.job.as_ref()?;
        let is_suspended = job.spec.as_ref()?.suspend.unwrap_or_default();
        is_suspended.then(|| {
            format!(
                "the Job {} is suspended, as a queue such as Kueue does until its quota has room",
                job.name_any(),
            )
        })
    }

    /// Returns the start record of a test with load, also after its Job is gone.
    pub(crate) fn known_start(&self) -> Option<StartRecord> {
        self.start_record().or_else(|| self.cache.start.clone())
    }

    /// Returns the start record, if it has been written to the Job.
    pub(crate) fn start_record(&self) -> Option<StartRecord> {
        let text = self.job.as_ref()?.annotations().get(START_ANNOTATION)?;
        serde_json::from_str(text).ok()
    }

    /// Returns true while the Job has active pods.
    pub(crate) fn job_is_active(&self) -> bool {
        let status = self.job.as_ref().and_then(|job| job.status.as_ref());
        status.is_some_and(|status| status.active.unwrap_or(0) > 0)
    }

    /// Returns the started pod with an index, if the pod still exists.
    fn started_runner(&self, start: &StartRecord, index: usize) -> Option<&Runner> {
        let uid = start.pods.get(index)?;
        self.runners.iter().find(|runner| runner.uid == *uid)
    }

    fn runner_state(&self, index: usize) -> Option<RunnerState> {
        self.cache.runner_state(index_of(index))
    }

    /// Returns true if the snapshot of a runner is final.
    pub(crate) fn is_final(&self, index: usize) -> bool {
        self.cache.is_final(index_of(index))
    }

    /// Returns true if a runner has responded and has not started its load.
    pub(crate) fn is_waiting(&self, index: usize) -> bool {
        self.runner_state(index) == Some(RunnerState::Waiting)
    }

    /// Returns true if a runner has reported that it made its whole share of the load.
    fn is_complete(&self, index: usize) -> bool {
        self.runner_state(index).is_some_and(RunnerState::is_complete)
    }

    /// Returns true if a started runner is gone without a final snapshot, or if its final snapshot
    /// covers only a part of its load. The log of a pod that has ended may still hold its last
    /// snapshot.
    pub(crate) fn is_lost(&self, start: &StartRecord, index: usize) -> bool {
        if self.is_final(index) || self.cache.gone.runners.contains_key(&index_of(index)) {
            return !self.is_complete(index);
        }
        self.started_runner(start, index).is_none_or(|runner| {
            runner.termination.is_some() && self.cache.logs_read.contains(&runner.uid)
        })
    }

    /// Returns true if a started runner will never answer again.
    pub(crate) fn is_gone(&self, start: &StartRecord, index: usize) -> bool {
        let has_ended =
            || self.started_runner(start, index).is_none_or(|runner| runner.termination.is_some());
        self.is_lost(start, index) || (self.is_final(index) && has_ended())
    }

    /// Returns the indices of the runners that are lost, or that missed their start.
    pub(crate) fn lost_runners(&self, start: &StartRecord, now: Timestamp) -> Vec<usize> {
        let Ok(valid) = &self.valid else { return Vec::new() };
        (0..start.pods.len())
            .filter(|index| {
                self.is_lost(start, *index)
                    || self.is_waiting(*index) && now > latest_start(start, valid)
            })
            .collect()
    }

    /// Describes a lost runner: its index, pod and node, and how it ended.
    pub(crate) fn describe_loss(&self, start: &StartRecord, index: usize) -> String {
        let gone = self.cache.gone.runners.get(&index_of(index));
        if let Some(loss) = gone.and_then(|runner| runner.loss.as_ref()) {
            return loss.clone();
        }
        match self.started_runner(start, index) {
            Some(runner) => runner.describe_loss(),
            None => format!("runner {index}: its pod was deleted"),
        }
    }

    /// Returns how many runners may be lost with which the test goes on.
    pub(crate) fn tolerated_losses(&self, start: &StartRecord) -> u64 {
        let spec = &self.test.spec;
        let runners = start.pods.len() as u64;
        match spec.on_runner_loss {
            OnRunnerLoss::Fail => 0,
            OnRunnerLoss::Continue => {
                runners.saturating_sub(u64::from(spec.min_runners.map_or(1, NonZeroU32::get)))
            }
        }
    }

    /// Returns the number of started pods that are running.
    pub(crate) fn running_runners(&self) -> u64 {
        let Some(start) = self.known_start() else { return 0 };
        let is_running =
            |runner: &&Runner| runner.termination.is_none() && start.pods.contains(&runner.uid);
        self.runners.iter().filter(is_running).count() as u64
    }

    /// Returns the UIDs of disrupted pods with a final snapshot and without a release order.
    ///
    /// These pods only wait for the release order.
    pub(crate) fn collected_disrupted_pods(&self, start: &StartRecord) -> Vec<String> {
        (0..start.pods.len())
            .filter(|index| self.is_final(*index))
            .filter_map(|index| self.started_runner(start, index))
            .filter(|runner| {
                runner.disrupted && runner.termination.is_none() && runner.ip.is_some()
            })
            .filter(|runner| !self.cache.released.contains(&runner.uid))
            .map(|runner| runner.uid.clone())
            .collect()
    }

    /// Returns the time of the last successful scrape of a runner.
    ///
    /// Without a scrape, this is the time when this process first saw the run.
    pub(crate) fn last_seen(&self, index: usize) -> Option<Timestamp> {
        self.cache.last_seen.get(&index_of(index)).copied().or(self.cache.first_seen)
    }

    /// Returns the threshold that ends the test early, from the status or from this reconciliation.
    pub(crate) fn aborted(&self) -> Option<Aborted> {
        let in_status = self.test.status.as_ref().and_then(|status| status.aborted.clone());
        in_status.or_else(|| self.cache.aborted.clone())
    }

    /// Adds the collected snapshots of a running test to its timeline.
    ///
    /// A runner without a new snapshot seems to do nothing now and too much at the next update, so
    /// the timeline is told whether some are missing. The abort of a test is judged anyway: it
    /// protects the target.
    pub(crate) fn update_timeline(&mut self) {
        let is_over = self.phase().is_some_and(Phase::is_final);
        let Some(start) = self.start_record().filter(|_| !is_over) else { return };
        let Ok(valid) = &self.valid else { return };
        if self.cache.scraped_now.is_empty() {
            return;
        }
        let is_current = |index: usize| {
            self.is_complete(index) || self.cache.scraped_now.contains(&index_of(index))
        };
        let missing = (0..start.pods.len()).filter(|index| !is_current(*index));
        let (mut coverage, mut has_silent) = (Coverage::All, false);
        for index in missing {
            coverage = Coverage::WithoutLost;
            has_silent |= !self.is_lost(&start, index);
        }
        if has_silent {
            coverage = Coverage::Partial;
        }
        let merged = self.merge_snapshots();
        let series = &mut self.cache.series;
        series.get_or_insert_with(|| SeriesRecorder::new(&valid.load)).record(&merged);
        let timeline = self.cache.timeline.take();
        let mut timeline = timeline.unwrap_or_else(|| self.timeline_from_status(valid));
        let aborted = timeline.record_snapshot_of(valid, &merged, coverage);
        self.cache.timeline = Some(timeline);
        // Load that has ended or is being stopped can't be aborted.
        if merged.elapsed_seconds < self.load_duration(valid).as_secs_f64() {
            self.cache.aborted = aborted;
        }
    }

    /// Returns the timeline of the test so far.
    pub(crate) fn timeline(&self, valid: &ValidTest) -> Timeline {
        self.cache.timeline.clone().unwrap_or_else(|| self.timeline_from_status(valid))
    }

    /// Restores the timeline from the status, which a previous process of the operator has written.
    fn timeline_from_status(&self, valid: &ValidTest) -> Timeline {
        let LoadTestStatus { stages, thresholds, progress, .. } = self.status();
        let seconds = progress.map_or(0.0, |progress| progress.elapsed.as_secs_f64());
        Timeline::from_status(valid, stages, &thresholds, seconds)
    }

    /// Returns the duration of the load. It is zero as soon as something ends the test early.
    pub(crate) fn load_duration(&self, valid: &ValidTest) -> Duration {
        let stopped =
            self.test.spec.cancel || self.aborted().is_some() || self.cache.stop_sent_at.is_some();
        if stopped { Duration::ZERO } else { valid.load.duration() }
    }

    /// Returns the time since the start of the load.
    ///
    /// The runners' own elapsed time counts if this reconciliation has scraped a runner, because
    /// the start order may have come late. The result never exceeds the time since the recorded
    /// start.
    pub(crate) fn load_elapsed(&self, start: &StartRecord, now: Timestamp) -> Duration {
        let scraped = self.cache.scraped_now.iter();
        let reported = scraped
            .filter_map(|index| self.cache.snapshots.get(index))
            .map(|snapshot| snapshot.metrics.elapsed_seconds)
            .reduce(f64::max);
        let planned = now.duration_since(start.at).as_secs_f64();
        Duration::from_secs_f64(reported.unwrap_or(planned).min(planned).max(0.0))
    }

    /// Merges the latest snapshots of all runners.
    pub(crate) fn merge_snapshots(&self) -> Metrics {
        let RunCache { snapshots, gone, .. } = &self.cache;
        snapshots.iter().fold(gone.metrics.clone(), |mut merged, (index, snapshot)| {
            merged.merge_runner(&self.runner_name(*index), &snapshot.metrics);
            merged
        })
    }

    /// Returns the name of a runner in messages: its index and its node.
    pub(crate) fn runner_name(&self, index: u32) -> String {
        let runner = self.runners.iter().find(|runner| runner.index == index);
        match runner.and_then(|runner| runner.node.as_ref()) {
            Some(node) => format!("runner {index} on node {node}"),
            None => format!("runner {index}"),
        }
    }

    /// Returns everything that the report needs besides the merged snapshots.
    pub(crate) fn run_context(&self, cancelled: bool) -> RunContext {
        let start = self.known_start();
        let runners = start.as_ref().map_or(0, |start| start.pods.len());
        let lost = (0..runners).filter(|index| !self.is_complete(*index)).count();
        RunContext {
            cancelled,
            aborted: self.aborted(),
            runners: runners as u64,
            runners_lost: lost as u64,
            tolerated_losses: start.map_or(0, |start| self.tolerated_losses(&start)),
            start_skew: self.cache.start_estimates.start_skew(runners),
            examples: self.cache.error_examples.clone(),
        }
    }
}

/// Returns the index of a runner as the maps of [`RunCache`] hold it.
pub(crate) fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
