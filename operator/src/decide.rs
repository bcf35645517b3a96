//! Chooses the next step of a test. Pure: time comes in as `now`.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use loadtest_core::{
    Duration,
    report::truncated,
    resource::{Aborted, Load, LoadTest, Phase, Sizing},
    sizing, validate,
};

use crate::{
    resources::{EXIT_PREFLIGHT, RUNNER_PORT, Settings},
    state::{Observed, Runner, StartRecord},
};

/// Why a test could not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The spec can't be carried out.
    InvalidSpec,
    /// A Secret, key or other configuration of the container is missing.
    ContainerConfig,
    /// The runner's image can't be had.
    ImagePull,
    /// No node takes a runner.
    Unschedulable,
    /// A runner's machine does not let it make its load.
    Preflight,
    /// A runner ended before the start.
    RunnerFailed,
    /// Not all runners were ready in time.
    StartTimeout,
    /// The Job is gone.
    JobLost,
    /// The API server refuses the Job or the ConfigMap.
    Refused,
    /// No runner can be reached.
    Unreachable,
}

impl Reason {
    /// The word in conditions and Events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "InvalidSpec",
            Self::ContainerConfig => "ContainerConfig",
            Self::ImagePull => "ImagePull",
            Self::Unschedulable => "Unschedulable",
            Self::Preflight => "Preflight",
            Self::RunnerFailed => "RunnerFailed",
            Self::StartTimeout => "StartTimeout",
            Self::JobLost => "JobLost",
            Self::Refused => "Refused",
            Self::Unreachable => "Unreachable",
        }
    }
}

/// The next step of a test.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing to do until something changes.
    NothingToDo,
    /// Nothing to do for a while.
    Wait(Duration),
    /// Say that the spec can't be carried out.
    Reject(String),
    /// Take the test on and say how it is sized.
    Admit(Sizing),
    /// Create the ConfigMap and the Job.
    Launch(Sizing),
    /// Make the start durable.
    PersistStart(StartRecord),
    /// The start is durable: say that the test runs.
    ReportStarted(StartRecord),
    /// Order these pods, by UID, to start.
    SendStart(StartRecord, Vec<String>),
    /// Order these pods to stop.
    SendStop(Vec<String>),
    /// Say which threshold ends the test.
    ReportAbort(Aborted),
    /// Show how far it is, and look again after a while.
    ReportProgress(Phase, Duration),
    /// It ran: judge it. `cancelled` when the user ended it.
    Conclude {
        /// The user ended it.
        cancelled: bool,
        /// What went wrong meanwhile, if it did not run to its end.
        failed: Option<(Reason, String)>,
    },
    /// It could not run: say why, and remove its pods.
    Fail(Reason, String),
    /// It was cancelled before any load: say so, and remove its pods.
    CancelUnstarted,
    /// Delete the Job of a test that could not run.
    DeleteJob,
    /// Let these pods go.
    SendRelease(Vec<String>),
    /// Remove the test: its time to live is over.
    DeleteTest,
}

/// Between looks at runners that come up.
const STARTUP_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Between collections while load is on.
pub const COLLECT_INTERVAL: Duration = Duration::from_secs(2);
/// Between collections at the end.
const STOPPING_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A missing Secret may be on its way: this long after the pod was created it counts.
const CONFIG_ERROR_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry may be slow to answer, or down for a moment.
const IMAGE_PULL_TIMEOUT: Duration = Duration::from_secs(90);
/// A runner unheard for so long after the test's end counts as lost.
const SILENT_RUNNER_TIMEOUT: Duration = Duration::from_secs(60);
/// A test none of whose runners was ever reached ends after so long.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Open requests of a cancelled test may take this long yet.
pub const CANCEL_GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Chooses the next step of a test.
pub fn decide(observed: &Observed, settings: &Settings, now: Timestamp) -> Decision {
    let test = &observed.test;
    let status = test.status.clone().unwrap_or_default();
    match (status.phase, status.plan) {
        (Some(phase), plan) if phase.is_final() => {
            let edited = test.metadata.generation > status.observed_generation;
            if plan.is_none() && edited {
                validate_spec(test)
            } else {
                decide_finished(observed, now)
            }
        }
        // Without a plan nothing was created.
        (None | Some(Phase::Pending | Phase::Starting), None) => validate_spec(test),
        (None | Some(Phase::Pending), Some(_)) if test.spec.cancel => Decision::CancelUnstarted,
        (None | Some(Phase::Pending), Some(sizing)) => Decision::Launch(sizing),
        (Some(Phase::Starting), Some(sizing)) => decide_starting(observed, &sizing, settings, now),
        (Some(_), _) => decide_running(observed, now),
    }
}

fn validate_spec(test: &LoadTest) -> Decision {
    let problems = validate::problems(&test.spec);
    if problems.is_empty() {
        return Decision::Admit(sizing::size(&test.spec));
    }
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Decision::Reject(texts.join("; "))
}

fn has_elapsed(from: Timestamp, now: Timestamp, patience: Duration) -> bool {
    now.duration_since(from) >= signed_duration(patience)
}

/// A duration in the calendar library's type.
pub fn signed_duration(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.std()).unwrap_or(SignedDuration::MAX)
}

fn decide_starting(
    observed: &Observed,
    sizing: &Sizing,
    settings: &Settings,
    now: Timestamp,
) -> Decision {
    if let Some(start) = observed.start_record() {
        return Decision::ReportStarted(start);
    }
    if observed.test.spec.cancel {
        return Decision::CancelUnstarted;
    }
    let Some(job) = &observed.job else {
        return Decision::Fail(Reason::JobLost, "the Job was deleted before the start".into());
    };
    if let Some((reason, message)) = observed.runners.iter().find_map(|r| startup_failure(r, now)) {
        return Decision::Fail(reason, message);
    }
    let wanted = usize::try_from(sizing.runners).unwrap_or(usize::MAX);
    let mut pods: Vec<(u32, &str)> = observed
        .runners
        .iter()
        .filter(|runner| runner.ready && !runner.disrupted && runner.ip.is_some())
        .map(|runner| (runner.index, runner.uid.as_str()))
        .collect();
    pods.sort_unstable();
    pods.dedup_by_key(|(index, _)| *index);
    if pods.len() == wanted {
        // Long enough for every order to arrive before the moment it names.
        let lead = Duration::from_millis(1000 + 10 * wanted as u64);
        let at = now.saturating_add(signed_duration(lead)).unwrap_or(now);
        let pods = pods.into_iter().map(|(_, uid)| uid.to_owned()).collect();
        return Decision::PersistStart(StartRecord { at, pods });
    }
    let created = job.creation_timestamp().map_or(now, |time| time.0);
    if has_elapsed(created, now, settings.start_timeout) {
        return start_timeout_failure(observed, wanted, pods.len(), settings);
    }
    Decision::Wait(STARTUP_POLL_INTERVAL)
}

/// What keeps a runner from ever coming up.
fn startup_failure(runner: &Runner, now: Timestamp) -> Option<(Reason, String)> {
    // Evicted or deleted before the start, it is replaced: the start waits for that one.
    if runner.disrupted {
        return None;
    }
    let named = |message: &str| format!("runner {}: {}", runner.name, truncated(message, 700));
    if let Some(ended) = runner.termination.as_ref().filter(|e| e.exit_code == Some(EXIT_PREFLIGHT))
    {
        return Some((Reason::Preflight, named(&ended.message)));
    }
    if let Some(ended) = &runner.termination {
        let code =
            ended.exit_code.map_or_else(String::new, |code| format!(" with exit code {code}"));
        let message = format!("ended before the start{code}: {}", ended.message);
        return Some((Reason::RunnerFailed, named(&message)));
    }
    let waiting = runner.waiting.as_ref()?;
    let (reason, patience) = match waiting.reason.as_str() {
        "CreateContainerConfigError" => (Reason::ContainerConfig, CONFIG_ERROR_TIMEOUT),
        "InvalidImageName" | "ErrImageNeverPull" => (Reason::ImagePull, Duration::ZERO),
        "ErrImagePull" | "ImagePullBackOff" => (Reason::ImagePull, IMAGE_PULL_TIMEOUT),
        "CreateContainerError" | "RunContainerError" => (Reason::RunnerFailed, IMAGE_PULL_TIMEOUT),
        _ => return None,
    };
    let message = format!("{}: {}", waiting.reason, waiting.message);
    has_elapsed(runner.created_at?, now, patience).then(|| (reason, named(&message)))
}

fn start_timeout_failure(
    observed: &Observed,
    wanted: usize,
    ready: usize,
    settings: &Settings,
) -> Decision {
    let after = settings.start_timeout;
    let stuck = observed.runners.iter().find_map(|runner| runner.unschedulable.as_ref());
    let (reason, why) = match stuck {
        Some(message) => (Reason::Unschedulable, truncated(message, 700)),
        None if observed.runners.len() < wanted => {
            let why = format!(
                "only {} of {wanted} pods exist; see the Job's events (kubectl describe job {}) for a quota or admission that stops them",
                observed.runners.len(),
                observed.job.as_ref().map(ResourceExt::name_any).unwrap_or_default(),
            );
            (Reason::StartTimeout, why)
        }
        None => (Reason::StartTimeout, "see the pods' events for what keeps them".into()),
    };
    Decision::Fail(reason, format!("{ready} of {wanted} runners were ready after {after}: {why}"))
}

fn decide_running(observed: &Observed, now: Timestamp) -> Decision {
    let cancelled = observed.test.spec.cancel;
    let Some(start) = observed.start_record() else {
        let why = "the Job was deleted while load was on".to_owned();
        return Decision::Conclude { cancelled, failed: Some((Reason::JobLost, why)) };
    };
    let collected = observed.collected_disrupted_pods(&start);
    if !collected.is_empty() {
        return Decision::SendRelease(collected);
    }
    let indices = 0..start.pods.len();
    let load = &observed.test.spec.load;
    let end = start.at.saturating_add(signed_duration(load.length())).unwrap_or(Timestamp::MAX);
    // One that was never ordered to start by then never will be.
    let missed = |index: usize| now >= end && observed.is_waiting(index);
    let over = |index| observed.is_final(index) || observed.is_lost(&start, index) || missed(index);
    if indices.clone().all(over) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let latest = load.length().plus(load.graceful_stop);
    let silent = |index: usize| {
        observed.is_final(index)
            || observed.is_lost(&start, index)
            || has_elapsed(observed.last_seen(index).unwrap_or(now), now, SILENT_RUNNER_TIMEOUT)
    };
    let heard = !observed.cache.snapshots.is_empty() || !observed.cache.start_accepted.is_empty();
    let since = observed.cache.first_seen.map_or(start.at, |since| since.max(start.at));
    if !heard && has_elapsed(since, now, UNREACHABLE_TIMEOUT) {
        let why = format!(
            "no runner answers the operator on port {RUNNER_PORT}: allow traffic to it from the operator's namespace (see network policies, and the pods' own state)"
        );
        return Decision::Conclude { cancelled, failed: Some((Reason::Unreachable, why)) };
    }
    // A runner that answers ends by itself, even when it was ordered late.
    let stopped =
        observed.cache.stop_sent_at.is_some_and(|at| has_elapsed(at, now, CANCEL_GRACE_PERIOD));
    if (stopped || has_elapsed(start.at, now, latest)) && indices.clone().all(silent) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let alive = |uid: &&String| {
        let pod = observed.runners.iter().find(|runner| runner.uid == **uid);
        pod.is_some_and(|pod| pod.termination.is_none() && pod.ip.is_some())
    };
    let without = |told: &BTreeSet<String>| -> Vec<String> {
        start.pods.iter().filter(alive).filter(|uid| !told.contains(*uid)).cloned().collect()
    };
    let told = observed.test.status.as_ref().and_then(|status| status.aborted.as_ref());
    if let (None, Some(aborted)) = (told, observed.aborted()) {
        // Durable before anyone is stopped: who comes later must not wonder why.
        return Decision::ReportAbort(aborted);
    }
    let stopping = cancelled || told.is_some();
    // Who is to be stopped is not first started; who can't be reached keeps no other from it.
    let unstopped = without(&observed.cache.stop_accepted);
    if stopping && !unstopped.is_empty() {
        return Decision::SendStop(unstopped);
    }
    if stopping || now >= end {
        return Decision::ReportProgress(Phase::Stopping, STOPPING_POLL_INTERVAL);
    }
    let unordered = without(&observed.cache.start_accepted);
    if !unordered.is_empty() {
        return Decision::SendStart(start, unordered);
    }
    Decision::ReportProgress(
        Phase::Running,
        COLLECT_INTERVAL.min(time_to_next_boundary(load, observed.load_elapsed(&start, now))),
    )
}

/// The time until the load's current stage, or all of it, is over, and a little more.
fn time_to_next_boundary(load: &Load, ran: Duration) -> Duration {
    let ends = load.stages.iter().scan(Duration::ZERO, |end, stage| {
        *end = end.plus(stage.duration);
        Some(*end)
    });
    let next = ends.chain([load.length()]).find(|end| *end > ran).unwrap_or(ran);
    next.minus(ran).plus(Duration::from_millis(50))
}

/// What becomes of a test whose children the API server refused; `None` when it may yet take
/// them, so that the pass is tried again.
pub fn decide_refused(code: Option<u16>, message: &str) -> Option<Decision> {
    // 409 is a name that belongs to another; all of these stay as they are.
    matches!(code, Some(400 | 403 | 409 | 422))
        .then(|| Decision::Fail(Reason::Refused, truncated(message, 900)))
}

/// A test that is over: let its runners go, and remove it when its time has come.
fn decide_finished(observed: &Observed, now: Timestamp) -> Decision {
    let failed = observed.test.status.as_ref().and_then(|s| s.phase) == Some(Phase::Error);
    // Its status is written by now, so that the reason can't be lost with it.
    if observed.job.is_some() && (failed || observed.start_record().is_none()) {
        return Decision::DeleteJob;
    }
    let held: Vec<String> = observed
        .runners
        .iter()
        .filter(|runner| runner.termination.is_none() && runner.ip.is_some())
        .filter(|runner| !observed.cache.released.contains(&runner.uid))
        .map(|runner| runner.uid.clone())
        .collect();
    if observed.job_is_active() && !held.is_empty() {
        return Decision::SendRelease(held);
    }
    let finished = observed.test.status.as_ref().and_then(|status| status.finish_time.clone());
    let (Some(ttl), Some(finished)) = (observed.test.spec.ttl_seconds_after_finished, finished)
    else {
        return Decision::NothingToDo;
    };
    let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    if has_elapsed(finished.0, now, ttl) {
        return Decision::DeleteTest;
    }
    let since = Duration::from_secs_f64(now.duration_since(finished.0).as_secs_f64());
    Decision::Wait(ttl.minus(since).plus(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests;
