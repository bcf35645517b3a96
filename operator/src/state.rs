//! What a pass has seen, in the terms decisions are made in. Pure: no client here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerStatus, Pod},
    },
    jiff::Timestamp,
};
use kube::ResourceExt;
use loadtest_core::{
    Duration,
    metrics::{Numbers, RunnerNumbers, RunnerState},
    report::Circumstances,
    resource::{Aborted, LoadTest, Phase},
    timeline::Timeline,
};
use serde::{Deserialize, Serialize};

use crate::{resources::RUNNER_CONTAINER, skew::StartEstimates};

/// The Job's annotation that makes a start durable before any order is sent.
pub const START_ANNOTATION: &str = "loadtest.cell0.io/start";

/// One start of a test: there is never another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// The moment all runners were told to start at.
    pub at: Timestamp,
    /// UIDs of the pods that were ready then, by index. Only these are ever ordered to start.
    pub pods: Vec<String>,
}

/// What keeps a container from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The kubelet's reason, such as `ImagePullBackOff`.
    pub reason: String,
    /// The kubelet's message.
    pub message: String,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// The exit code; `None` when the pod ended without one.
    pub exit_code: Option<i32>,
    /// Reason and last words.
    pub message: String,
}

/// One runner pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// Its index in the Job.
    pub index: u32,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The pod's address, once it has one.
    pub ip: Option<String>,
    /// True when the pod is ready.
    pub ready: bool,
    /// True when the pod is on its way out, or was evicted: the Job replaces it.
    pub disrupted: bool,
    /// When the pod was created.
    pub created_at: Option<Timestamp>,
    /// What keeps it from being scheduled.
    pub unschedulable: Option<String>,
    /// What keeps its container from running.
    pub waiting: Option<Waiting>,
    /// How it ended.
    pub termination: Option<Termination>,
}

impl Runner {
    /// Reads a pod of a test's Job; `None` when it has no index.
    pub fn from_pod(pod: &Pod) -> Option<Self> {
        const INDEX: &str = "batch.kubernetes.io/job-completion-index";
        let index = pod.labels().get(INDEX).or_else(|| pod.annotations().get(INDEX))?;
        let status = pod.status.clone().unwrap_or_default();
        let condition =
            |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned();
        // Others may be injected beside it.
        let all = status.container_statuses.iter().flatten();
        let container =
            all.clone().find(|c| c.name == RUNNER_CONTAINER).or_else(|| all.clone().next());
        let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let unschedulable = condition("PodScheduled")
            .filter(|c| c.status == "False" && c.reason.as_deref() == Some("Unschedulable"))
            .map(|c| c.message.unwrap_or_default());
        Some(Self {
            index: index.parse().ok()?,
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
            ready: condition("Ready").is_some_and(|c| c.status == "True"),
            disrupted: pod.metadata.deletion_timestamp.is_some()
                || condition("DisruptionTarget").is_some_and(|c| c.status == "True"),
            created_at: pod.creation_timestamp().map(|time| time.0),
            unschedulable,
            waiting: container.and_then(read_waiting),
            termination: over.then(|| read_termination(container, &status)),
        })
    }
}

fn read_waiting(container: &ContainerStatus) -> Option<Waiting> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some(Waiting {
        reason: waiting.reason.clone().unwrap_or_default(),
        message: waiting.message.clone().unwrap_or_default(),
    })
}

fn read_termination(
    container: Option<&ContainerStatus>,
    pod: &k8s_openapi::api::core::v1::PodStatus,
) -> Termination {
    let state = container.and_then(|c| c.state.as_ref()).and_then(|s| s.terminated.as_ref());
    match state {
        Some(state) => {
            let words = [state.reason.as_deref(), state.message.as_deref().map(str::trim)];
            let words: Vec<&str> = words.into_iter().flatten().filter(|w| !w.is_empty()).collect();
            Termination { exit_code: Some(state.exit_code), message: words.join(": ") }
        }
        None => Termination {
            exit_code: None,
            message: pod
                .message
                .clone()
                .or_else(|| pod.reason.clone())
                .unwrap_or_else(|| "ended without a container status".into()),
        },
    }
}

/// What the operator remembers of a run between passes. All of it can be had again after a
/// restart, from the runners, except the numbers of runners that are gone by then.
#[derive(Clone, Debug, Default)]
pub struct RunCache {
    /// The latest numbers of each runner.
    pub snapshots: BTreeMap<u32, RunnerNumbers>,
    /// One message per task and kind of error.
    pub error_examples: BTreeMap<(String, String), String>,
    /// UIDs of pods that took the order to start.
    pub start_accepted: BTreeSet<String>,
    /// UIDs of pods that took the order to stop.
    pub stop_accepted: BTreeSet<String>,
    /// UIDs of pods that took the order to go.
    pub released: BTreeSet<String>,
    /// UIDs of pods whose log was searched for last metrics.
    pub logs_read: BTreeSet<String>,
    /// The test's course so far.
    pub timeline: Option<Timeline>,
    /// The threshold whose critical bound ends the test.
    pub aborted: Option<Aborted>,
    /// When runners started, by their answers.
    pub start_estimates: StartEstimates,
    /// When each runner was last heard.
    pub last_seen: BTreeMap<u32, Timestamp>,
    /// Runners that the current pass has heard.
    pub scraped_now: BTreeSet<u32>,
    /// When this process first saw the run.
    pub first_seen: Option<Timestamp>,
    /// When runners were first told to stop before the test's end.
    pub stop_sent_at: Option<Timestamp>,
    /// When progress was last written.
    pub status_written_at: Option<Timestamp>,
}

/// Everything a decision takes.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The test as it is now.
    pub test: LoadTest,
    /// Its Job.
    pub job: Option<Job>,
    /// Its runner pods.
    pub runners: Vec<Runner>,
    /// What was remembered and collected.
    pub cache: RunCache,
}

impl RunCache {
    /// Lets go of what a test that is over needs no more.
    pub fn drop_results(&mut self) {
        self.snapshots.clear();
        self.error_examples.clear();
        self.timeline = None;
    }
}

impl Observed {
    /// A test, before anything else was looked at.
    pub const fn new(test: LoadTest, cache: RunCache) -> Self {
        Self { test, job: None, runners: Vec::new(), cache }
    }

    /// The start, once there was one.
    pub fn start_record(&self) -> Option<StartRecord> {
        let text = self.job.as_ref()?.annotations().get(START_ANNOTATION)?;
        serde_json::from_str(text).ok()
    }

    /// True while the Job has pods that are not over.
    pub fn job_is_active(&self) -> bool {
        let status = self.job.as_ref().and_then(|job| job.status.as_ref());
        status.is_some_and(|status| status.active.unwrap_or(0) > 0)
    }

    /// The pod that was started with an index, if it still exists.
    pub fn started_runner(&self, start: &StartRecord, index: usize) -> Option<&Runner> {
        let uid = start.pods.get(index)?;
        self.runners.iter().find(|runner| runner.uid == *uid)
    }

    /// What a runner was last heard to do.
    fn runner_state(&self, index: usize) -> Option<RunnerState> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.cache.snapshots.get(&index).map(|seen| seen.state)
    }

    /// True when a started runner's numbers are final.
    pub fn is_final(&self, index: usize) -> bool {
        self.runner_state(index).is_some_and(RunnerState::is_final)
    }

    /// True when a runner was heard and has not started.
    pub fn is_waiting(&self, index: usize) -> bool {
        self.runner_state(index) == Some(RunnerState::Waiting)
    }

    /// True when a started runner has made its share of the load to the end, and said so.
    pub fn is_complete(&self, index: usize) -> bool {
        self.runner_state(index).is_some_and(RunnerState::is_complete)
    }

    /// True when a started runner is gone and left no final numbers, or those of a part of its
    /// load.
    pub fn is_lost(&self, start: &StartRecord, index: usize) -> bool {
        if self.is_final(index) {
            return !self.is_complete(index);
        }
        self.started_runner(start, index).is_none_or(|runner| runner.termination.is_some())
    }

    /// UIDs of started pods on their way out whose final numbers are here: they wait for nothing
    /// but to be told so.
    pub fn collected_disrupted_pods(&self, start: &StartRecord) -> Vec<String> {
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

    /// When a runner was last heard, at the earliest when this process first saw the run.
    pub fn last_seen(&self, index: usize) -> Option<Timestamp> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.cache.last_seen.get(&index).copied().or(self.cache.first_seen)
    }

    /// What ends the test early: told by its status, or found by this pass.
    pub fn aborted(&self) -> Option<Aborted> {
        let told = self.test.status.as_ref().and_then(|status| status.aborted.clone());
        told.or_else(|| self.cache.aborted.clone())
    }

    /// Looks at the course of a running test: pure, from what was collected.
    ///
    /// Only when this pass has heard every runner: of one that it has not, nothing would seem
    /// to have happened since, and then all at once. A run that lost a runner is not looked at
    /// any more: it makes less load than it should, and is Inconclusive anyway.
    pub fn update_timeline(&mut self) {
        let over = self.test.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::is_final);
        let Some(start) = self.start_record().filter(|_| !over) else { return };
        let heard = |index: usize| {
            let key = u32::try_from(index).unwrap_or(u32::MAX);
            self.is_complete(index) || self.cache.scraped_now.contains(&key)
        };
        if !(0..start.pods.len()).all(heard) {
            return;
        }
        let numbers = self.merge_snapshots();
        let mut timeline =
            self.cache.timeline.take().unwrap_or_else(|| self.timeline_from_status());
        let aborted = timeline.look(&self.test.spec, &numbers);
        self.cache.timeline = Some(timeline);
        // What is over, or being stopped, needs no stopping.
        if numbers.elapsed_seconds < self.load_duration().as_secs_f64() {
            self.cache.aborted = aborted;
        }
    }

    /// The test's course so far.
    pub fn timeline(&self) -> Timeline {
        self.cache.timeline.clone().unwrap_or_else(|| self.timeline_from_status())
    }

    /// The course as the status tells it to who was not there.
    fn timeline_from_status(&self) -> Timeline {
        let told = self.test.status.clone().unwrap_or_default();
        Timeline::after(&self.test.spec, told.stages, &told.thresholds)
    }

    /// How long load lasts from its start: not a moment more once something ends it.
    pub fn load_duration(&self) -> Duration {
        let stopped =
            self.test.spec.cancel || self.aborted().is_some() || self.cache.stop_sent_at.is_some();
        if stopped { Duration::ZERO } else { self.test.spec.load.length() }
    }

    /// How long load has been on: by the runners, whose order may have come late, when this pass has
    /// heard one.
    pub fn load_elapsed(&self, start: &StartRecord, now: Timestamp) -> Duration {
        let told =
            self.cache.scraped_now.iter().filter_map(|index| self.cache.snapshots.get(index));
        let told = told.map(|seen| seen.numbers.elapsed_seconds).reduce(f64::max);
        let planned = now.duration_since(start.at).as_secs_f64();
        Duration::from_secs_f64(told.unwrap_or(planned).min(planned).max(0.0))
    }

    /// The numbers of all runners together.
    pub fn merge_snapshots(&self) -> Numbers {
        self.cache.snapshots.values().fold(Numbers::default(), |mut all, seen| {
            all.merge(&seen.numbers);
            all
        })
    }

    /// What the report needs besides numbers.
    pub fn run_context(&self, cancelled: bool) -> Circumstances {
        let runners = self.start_record().map_or(0, |start| start.pods.len());
        let lost = (0..runners).filter(|index| !self.is_complete(*index)).count();
        Circumstances {
            cancelled,
            aborted: self.aborted(),
            runners_lost: i64::try_from(lost).unwrap_or(i64::MAX),
            start_skew: self.cache.start_estimates.skew(runners),
            examples: self.cache.error_examples.clone(),
        }
    }
}
