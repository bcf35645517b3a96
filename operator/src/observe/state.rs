//! State of a test as one reconciliation sees it, and rules that follow from this state alone.
//!
//! Pure: this module has no client and reads no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::Arc,
};

use k8s_openapi::{
    api::batch::v1::Job,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use loadtest_core::{
    Duration,
    judge::{RunContext, Timeline},
    metrics::{Metrics, RunnerState},
    plan::{Problem, ValidTest, validate},
    resource::{Aborted, LoadTest, LoadTestStatus, OnRunnerLoss, Phase},
};

use super::{
    last_objects::{LastObjects, Reading, forget_managed_fields},
    runner::Runner,
    start::{START_ANNOTATION, StartRecord, latest_start, time_for_orders},
};
use crate::collect::{Collection, StartedPods, Targets, runner_name, timeline_of};

/// Why the API server refuses the pods of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedPods {
    /// The words of the API server.
    pub(crate) message: String,
}

impl RefusedPods {
    /// Returns true if a quota of the namespace is the reason.
    pub(crate) fn is_quota(&self) -> bool {
        self.message.contains("exceeded quota")
    }
}

/// The writes of the result of a run by this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct WrittenResult {
    /// Number of writes.
    pub(crate) revision: u64,
    /// Resource version of the first object in the last write.
    pub(crate) head_version: Option<String>,
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
    /// Since when a write waits for those of other tests.
    pub(crate) waiting_since: Option<Timestamp>,
    /// True if a newer version of the operator wrote the result. This one leaves it as it is.
    pub(crate) is_newer: bool,
}

/// How long after a missed start the runners that wait do not count as lost, while none of them has begun.
const MISSED_START_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Time after the latest start, and after its orders, within which a runner that has accepted its order begins.
const ACCEPTED_ORDER_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Facts about a run that the operator keeps between reconciliations.
///
/// After a restart, the operator collects them again from the runners, and goes on from the
/// `LoadTestResult`, which holds the numbers of runners that are gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunCache {
    /// One error message per task and kind of error.
    pub(crate) error_examples: BTreeMap<(String, String), String>,
    /// Number of starts that the runners have missed, as this process has seen.
    pub(crate) missed_starts: u32,
    /// Time of the last start order.
    pub(crate) start_sent_at: Option<Timestamp>,
    /// UIDs of the pods that accepted the start order.
    pub(crate) start_accepted: BTreeSet<String>,
    /// UIDs of the pods that accepted the stop order.
    pub(crate) stop_accepted: BTreeSet<String>,
    /// UIDs of the pods that need no further release order.
    pub(crate) released: BTreeSet<String>,
    /// Time of the first release order of this process after the end of the test.
    pub(crate) release_sent_at: Option<Timestamp>,
    /// Everything that the runners have told.
    pub(crate) collection: Arc<Collection>,
    /// The writes of the result.
    pub(crate) written_result: WrittenResult,
    /// Time of the first failure to read the result of an earlier process.
    pub(crate) resume_failing_since: Option<Timestamp>,
    /// The start record, after the Job that holds it is gone.
    pub(crate) start: Option<StartRecord>,
    /// Why the Job can't create pods before the start.
    pub(crate) refused_pods: Option<RefusedPods>,
    /// Time at which the operator last read why the Job can't create pods.
    pub(crate) refused_pods_read_at: Option<Timestamp>,
    /// Number of launches in a row that the API server did not carry out.
    pub(crate) failed_launches: u32,
    /// Time when this process first saw the run.
    pub(crate) first_seen: Option<Timestamp>,
    /// Time of the first stop order before the test's end.
    pub(crate) stop_sent_at: Option<Timestamp>,
    /// True when the token of the run has changed since the runners were created. The runners then
    /// refuse all orders.
    pub(crate) token_has_changed: bool,
    /// Time of the last write of the status or of the result.
    pub(crate) written_at: Option<Timestamp>,
    /// The objects to go on with while they do not change, or while the API server can't be read. `None`
    /// for a test without a Job, and after the end of the test.
    pub(crate) last_objects: Option<Box<LastObjects>>,
}

impl RunCache {
    /// Drops the results of a finished test, which its status holds now.
    pub(crate) fn drop_results(&mut self) {
        self.collection = Arc::default();
        self.error_examples.clear();
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
    /// Runner pods of the test, by their indices.
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

    /// Keeps the objects of a test with a Job, until the test is over. Until [`Self::mark_unchanged`], the next
    /// reconciliation reads them again.
    pub(crate) fn keep_objects(&mut self) {
        let is_over = self.phase().is_some_and(Phase::is_final);
        self.cache.last_objects = self.job.clone().filter(|_| !is_over).map(|job| {
            let (test, runners) = (self.test.clone(), self.runners.clone());
            Box::new(LastObjects { test, job, runners, reading: None })
        });
    }

    /// Notes that this reconciliation has changed nothing but, if `written` is given, the status of the test.
    pub(crate) fn mark_unchanged(&mut self, mut reading: Reading, written: Option<LoadTest>) {
        let Some(last) = &mut self.cache.last_objects else { return };
        if let Some(mut written) = written {
            forget_managed_fields(&mut written);
            reading.versions.extend(written.resource_version());
            last.test = written;
        }
        last.reading = Some(reading);
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
        let job = self.job.as_ref().filter(|_| self.is_job_suspended())?;
        Some(format!(
            "the Job {} is suspended, as a queue such as Kueue does until its quota has room",
            job.name_any(),
        ))
    }

    /// Returns true if the Job is there and is suspended.
    pub(crate) fn is_job_suspended(&self) -> bool {
        let spec = self.job.as_ref().and_then(|job| job.spec.as_ref());
        spec.is_some_and(|spec| spec.suspend == Some(true))
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

    /// Returns the pods that were started.
    fn pods<'a>(&'a self, start: &'a StartRecord) -> StartedPods<'a> {
        StartedPods { start, runners: &self.runners }
    }

    /// Returns the started pod with an index, if the pod still exists.
    fn started_runner<'a>(&'a self, start: &'a StartRecord, index: usize) -> Option<&'a Runner> {
        self.pods(start).get(index_of(index))
    }

    fn runner_state(&self, index: usize) -> Option<RunnerState> {
        self.cache.collection.runner_state(index_of(index))
    }

    /// Returns true if the last answer of a runner is its last one for ever.
    pub(crate) fn is_final(&self, index: usize) -> bool {
        self.cache.collection.is_final(index_of(index))
    }

    /// Returns true if a runner says that it waits for its start, although it should have begun.
    ///
    /// Only an answer counts that came after `latest` and after the last orders. If the runner has accepted its order, it
    /// has [`ACCEPTED_ORDER_GRACE`] more: users choose the image of their runners, so an order may do nothing.
    pub(crate) fn has_missed_start(
        &self,
        start: &StartRecord,
        index: usize,
        latest: Timestamp,
    ) -> bool {
        let RunCache { start_accepted, start_sent_at, .. } = &self.cache;
        let time = start_sent_at.map_or(latest, |sent_at| sent_at.max(latest));
        let has_order = start.pods.get(index).is_some_and(|uid| start_accepted.contains(uid));
        let patience = if has_order {
            ACCEPTED_ORDER_GRACE.saturating_add(time_for_orders(start.pods.len()))
        } else {
            SignedDuration::ZERO
        };
        self.runner_state(index) == Some(RunnerState::Waiting)
            && self.last_seen(index).is_some_and(|seen| seen.duration_since(time) > patience)
    }

    /// Returns true if a runner has reported that it made its whole share of the load.
    fn is_complete(&self, index: usize) -> bool {
        self.runner_state(index).is_some_and(RunnerState::is_complete)
    }

    /// Returns true if a started runner is lost, see [`Collection::is_lost`].
    pub(crate) fn is_lost(&self, start: &StartRecord, index: usize) -> bool {
        self.cache.collection.is_lost(self.pods(start), index_of(index))
    }

    /// Returns the indices of the runners that are lost, or that missed their start.
    pub(crate) fn lost_runners(&self, start: &StartRecord, now: Timestamp) -> Vec<usize> {
        let Ok(valid) = &self.valid else { return Vec::new() };
        let latest = latest_start(start, valid);
        let mut states = (0..start.pods.len()).map(|index| self.runner_state(index));
        let has_begun = !self.cache.start_accepted.is_empty()
            || states.any(|state| state.is_some_and(|state| state != RunnerState::Waiting));
        // If none has begun, all of them start together later, as soon as each has said that it waits.
        let patience = if has_begun { SignedDuration::ZERO } else { MISSED_START_GRACE };
        let is_due = now.duration_since(latest) > patience;
        let missed = |index: usize| is_due && self.has_missed_start(start, index, latest);
        (0..start.pods.len())
            .filter(|index| self.is_lost(start, *index) || missed(*index))
            .collect()
    }

    /// Describes a lost runner: its index, pod and node, and how it ended.
    pub(crate) fn describe_loss(&self, start: &StartRecord, index: usize) -> String {
        self.cache.collection.describe_loss(self.pods(start), index_of(index))
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

    /// Returns the name of a runner in messages: its index and its node.
    pub(crate) fn runner_name(&self, index: u32) -> String {
        runner_name(&self.runners, index)
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
        self.cache.collection.last_seen(index_of(index)).or(self.cache.first_seen)
    }

    /// Returns true if a runner has answered this process.
    pub(crate) fn has_answered(&self, index: usize) -> bool {
        self.cache.collection.last_seen(index_of(index)).is_some()
    }

    /// Returns how long a runner has not answered under load.
    pub(crate) fn silence(
        &self,
        start: &StartRecord,
        index: usize,
        now: Timestamp,
    ) -> SignedDuration {
        let seen = self.last_seen(index).map_or(start.at, |seen| seen.max(start.at));
        now.duration_since(seen)
    }

    /// Returns the threshold that ends the test early, from the status or from this reconciliation.
    pub(crate) fn aborted(&self) -> Option<Aborted> {
        let in_status = self.test.status.as_ref().and_then(|status| status.aborted.clone());
        in_status.or_else(|| self.cache.collection.aborted().cloned())
    }

    /// Returns what the collector of a test under load is to collect; `None` for another test.
    pub(crate) fn targets(&self) -> Option<Targets> {
        let is_over = self.phase().is_some_and(Phase::is_final);
        self.targets_from(self.start_record().filter(|_| !is_over)?)
    }

    /// Judges the windows and stages that still wait for runners, because these runners will not answer any more.
    pub(crate) fn judge_rest(&mut self) {
        let targets = self.known_start().and_then(|start| self.targets_from(start));
        if let Some(targets) = targets {
            Arc::make_mut(&mut self.cache.collection).judge_rest(&targets);
        }
    }

    fn targets_from(&self, start: StartRecord) -> Option<Targets> {
        let valid = self.valid.as_ref().ok()?;
        Some(Targets {
            namespace: self.test.namespace().unwrap_or_default(),
            run_uid: self.test.uid().unwrap_or_default(),
            load: self.load_duration(valid),
            valid: valid.clone(),
            start,
            runners: self.runners.clone(),
            status: self.status(),
        })
    }

    /// Returns the timeline of the test so far.
    pub(crate) fn timeline(&self, valid: &ValidTest) -> Timeline {
        let collected = self.cache.collection.timeline().cloned();
        collected.unwrap_or_else(|| timeline_of(valid, &self.status()))
    }

    /// Returns the time at which the forced stop of the runners was reported, by this process or an earlier one.
    pub(crate) fn forced_stop_at(&self) -> Option<Timestamp> {
        let status = self.test.status.as_ref()?;
        status.condition("StopForced").map(|condition| condition.last_transition_time.0)
    }

    /// Returns the time of the first stop order. For that of an earlier process, this is the time of the forced stop.
    pub(crate) fn stop_sent_at(&self) -> Option<Timestamp> {
        self.cache.stop_sent_at.or_else(|| self.forced_stop_at())
    }

    /// Returns the names of the tasks of a valid test.
    pub(crate) fn task_names(&self) -> BTreeSet<String> {
        let tasks = self.valid.iter().flat_map(|valid| &valid.scenario.tasks);
        tasks.map(|task| task.name.clone()).collect()
    }

    /// Returns the duration of the load. It is zero as soon as something ends the test early.
    pub(crate) fn load_duration(&self, valid: &ValidTest) -> Duration {
        let stopped =
            self.test.spec.cancel || self.aborted().is_some() || self.stop_sent_at().is_some();
        if stopped { Duration::ZERO } else { valid.load.duration() }
    }

    /// Returns the time since the start of the load.
    ///
    /// The runners' own elapsed time counts if they have answered lately, because
    /// the start order may have come late. The result never exceeds the time since the recorded
    /// start.
    pub(crate) fn load_elapsed(&self, start: &StartRecord, now: Timestamp) -> Duration {
        let reported = self.cache.collection.reported_elapsed();
        let planned = now.duration_since(start.at).as_secs_f64();
        Duration::from_secs_f64(reported.unwrap_or(planned).min(planned).max(0.0))
    }

    /// Returns the sum over all runners.
    pub(crate) fn merged(&self) -> Metrics {
        self.cache.collection.merged(|index| self.runner_name(index))
    }

    /// Returns everything that the report needs besides the merged snapshots.
    pub(crate) fn run_context(&self, cancelled: bool) -> RunContext {
        let start = self.known_start();
        let runners = start.as_ref().map_or(0, |start| start.pods.len());
        let (complete, lost): (Vec<usize>, Vec<usize>) =
            (0..runners).partition(|index| self.is_complete(*index));
        RunContext {
            cancelled,
            aborted: self.aborted(),
            runners: runners as u64,
            runners_lost: lost.len() as u64,
            tolerated_losses: start.map_or(0, |start| self.tolerated_losses(&start)),
            start_skew: self
                .cache
                .collection
                .start_estimates()
                .start_skew(complete.into_iter().map(index_of)),
            examples: self.cache.error_examples.clone(),
        }
    }
}

/// Returns the index of a runner as the maps of [`RunCache`] hold it.
pub(crate) fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
