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
    resources::{EXIT_PREFLIGHT, PORT, Settings},
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
    Settled,
    /// Nothing to do for a while.
    Wait(Duration),
    /// Say that the spec can't be carried out.
    Reject(String),
    /// Take the test on and say how it is sized.
    Admit(Sizing),
    /// Create the ConfigMap and the Job.
    Launch(Sizing),
    /// Make the start durable.
    Start(StartRecord),
    /// The start is durable: say that the test runs.
    Started(StartRecord),
    /// Order these pods, by UID, to start.
    Order(StartRecord, Vec<String>),
    /// Order these pods to stop.
    Stop(Vec<String>),
    /// Say which threshold ends the test.
    Abort(Aborted),
    /// Show how far it is, and look again after a while.
    Progress(Phase, Duration),
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
    RemoveJob,
    /// Let these pods go.
    Release(Vec<String>),
    /// Remove the test: its time to live is over.
    Delete,
}

/// Between looks at runners that come up.
const STARTING: Duration = Duration::from_secs(1);
/// Between collections while load is on.
pub const COLLECT: Duration = Duration::from_secs(2);
/// Between collections at the end.
const STOPPING: Duration = Duration::from_millis(500);
/// A missing Secret may be on its way: this long after the pod was created it counts.
const CONFIG_PATIENCE: Duration = Duration::from_secs(10);
/// A registry may be slow to answer, or down for a moment.
const PULL_PATIENCE: Duration = Duration::from_secs(90);
/// A runner unheard for so long after the test's end counts as lost.
const COLLECT_PATIENCE: Duration = Duration::from_secs(60);
/// A test none of whose runners was ever reached ends after so long.
const REACH_PATIENCE: Duration = Duration::from_secs(45);
/// Open requests of a cancelled test may take this long yet.
pub const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Chooses the next step of a test.
pub fn decide(seen: &Observed, settings: &Settings, now: Timestamp) -> Decision {
    let test = &seen.test;
    let status = test.status.clone().unwrap_or_default();
    match (status.phase, status.plan) {
        (Some(phase), plan) if phase.is_final() => {
            let edited = test.metadata.generation > status.observed_generation;
            if plan.is_none() && edited { admit(test) } else { settle(seen, now) }
        }
        // Without a plan nothing was created.
        (None | Some(Phase::Pending | Phase::Starting), None) => admit(test),
        (None | Some(Phase::Pending), Some(_)) if test.spec.cancel => Decision::CancelUnstarted,
        (None | Some(Phase::Pending), Some(sizing)) => Decision::Launch(sizing),
        (Some(Phase::Starting), Some(sizing)) => starting(seen, &sizing, settings, now),
        (Some(_), _) => running(seen, now),
    }
}

fn admit(test: &LoadTest) -> Decision {
    let problems = validate::problems(&test.spec);
    if problems.is_empty() {
        return Decision::Admit(sizing::size(&test.spec));
    }
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Decision::Reject(texts.join("; "))
}

fn passed(from: Timestamp, now: Timestamp, patience: Duration) -> bool {
    now.duration_since(from) >= signed(patience)
}

/// A duration in the calendar library's type.
pub fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.std()).unwrap_or(SignedDuration::MAX)
}

fn starting(seen: &Observed, sizing: &Sizing, settings: &Settings, now: Timestamp) -> Decision {
    if let Some(start) = seen.start() {
        return Decision::Started(start);
    }
    if seen.test.spec.cancel {
        return Decision::CancelUnstarted;
    }
    let Some(job) = &seen.job else {
        return Decision::Fail(Reason::JobLost, "the Job was deleted before the start".into());
    };
    if let Some((reason, message)) = seen.runners.iter().find_map(|r| blocked(r, now)) {
        return Decision::Fail(reason, message);
    }
    let wanted = usize::try_from(sizing.runners).unwrap_or(usize::MAX);
    let mut pods: Vec<(u32, &str)> = seen
        .runners
        .iter()
        .filter(|runner| runner.ready && !runner.leaving && runner.ip.is_some())
        .map(|runner| (runner.index, runner.uid.as_str()))
        .collect();
    pods.sort_unstable();
    pods.dedup_by_key(|(index, _)| *index);
    if pods.len() == wanted {
        // Long enough for every order to arrive before the moment it names.
        let lead = Duration::from_millis(1000 + 10 * wanted as u64);
        let at = now.saturating_add(signed(lead)).unwrap_or(now);
        let pods = pods.into_iter().map(|(_, uid)| uid.to_owned()).collect();
        return Decision::Start(StartRecord { at, pods });
    }
    let created = job.creation_timestamp().map_or(now, |time| time.0);
    if passed(created, now, settings.start_timeout) {
        return timed_out(seen, wanted, pods.len(), settings);
    }
    Decision::Wait(STARTING)
}

/// What keeps a runner from ever coming up.
fn blocked(runner: &Runner, now: Timestamp) -> Option<(Reason, String)> {
    // Evicted or deleted before the start, it is replaced: the start waits for that one.
    if runner.leaving {
        return None;
    }
    let named = |message: &str| format!("runner {}: {}", runner.name, truncated(message, 700));
    if let Some(ended) = runner.ended.as_ref().filter(|e| e.code == Some(EXIT_PREFLIGHT)) {
        return Some((Reason::Preflight, named(&ended.message)));
    }
    if let Some(ended) = &runner.ended {
        let code = ended.code.map_or_else(String::new, |code| format!(" with exit code {code}"));
        let message = format!("ended before the start{code}: {}", ended.message);
        return Some((Reason::RunnerFailed, named(&message)));
    }
    let waiting = runner.waiting.as_ref()?;
    let (reason, patience) = match waiting.reason.as_str() {
        "CreateContainerConfigError" => (Reason::ContainerConfig, CONFIG_PATIENCE),
        "InvalidImageName" | "ErrImageNeverPull" => (Reason::ImagePull, Duration::ZERO),
        "ErrImagePull" | "ImagePullBackOff" => (Reason::ImagePull, PULL_PATIENCE),
        "CreateContainerError" | "RunContainerError" => (Reason::RunnerFailed, PULL_PATIENCE),
        _ => return None,
    };
    let message = format!("{}: {}", waiting.reason, waiting.message);
    passed(runner.created?, now, patience).then(|| (reason, named(&message)))
}

fn timed_out(seen: &Observed, wanted: usize, ready: usize, settings: &Settings) -> Decision {
    let after = settings.start_timeout;
    let stuck = seen.runners.iter().find_map(|runner| runner.unschedulable.as_ref());
    let (reason, why) = match stuck {
        Some(message) => (Reason::Unschedulable, truncated(message, 700)),
        None if seen.runners.len() < wanted => {
            let why = format!(
                "only {} of {wanted} pods exist; see the Job's events (kubectl describe job {}) for a quota or admission that stops them",
                seen.runners.len(),
                seen.job.as_ref().map(ResourceExt::name_any).unwrap_or_default(),
            );
            (Reason::StartTimeout, why)
        }
        None => (Reason::StartTimeout, "see the pods' events for what keeps them".into()),
    };
    Decision::Fail(reason, format!("{ready} of {wanted} runners were ready after {after}: {why}"))
}

fn running(seen: &Observed, now: Timestamp) -> Decision {
    let cancelled = seen.test.spec.cancel;
    let Some(start) = seen.start() else {
        let why = "the Job was deleted while load was on".to_owned();
        return Decision::Conclude { cancelled, failed: Some((Reason::JobLost, why)) };
    };
    let collected = seen.collected_and_leaving(&start);
    if !collected.is_empty() {
        return Decision::Release(collected);
    }
    let indices = 0..start.pods.len();
    let load = &seen.test.spec.load;
    let end = start.at.saturating_add(signed(load.length())).unwrap_or(Timestamp::MAX);
    // One that was never ordered to start by then never will be.
    let missed = |index: usize| now >= end && seen.is_waiting(index);
    let over = |index| seen.is_final(index) || seen.is_lost(&start, index) || missed(index);
    if indices.clone().all(over) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let latest = load.length().plus(load.graceful_stop);
    let silent = |index: usize| {
        seen.is_final(index)
            || seen.is_lost(&start, index)
            || passed(seen.last_heard(index).unwrap_or(now), now, COLLECT_PATIENCE)
    };
    let heard = !seen.memory.numbers.is_empty() || !seen.memory.ordered.is_empty();
    let since = seen.memory.since.map_or(start.at, |since| since.max(start.at));
    if !heard && passed(since, now, REACH_PATIENCE) {
        let why = format!(
            "no runner answers the operator on port {PORT}: allow traffic to it from the operator's namespace (see network policies, and the pods' own state)"
        );
        return Decision::Conclude { cancelled, failed: Some((Reason::Unreachable, why)) };
    }
    // A runner that answers ends by itself, even when it was ordered late.
    let stopped = seen.memory.stopping.is_some_and(|at| passed(at, now, CANCEL_GRACE));
    if (stopped || passed(start.at, now, latest)) && indices.clone().all(silent) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let alive = |uid: &&String| {
        let pod = seen.runners.iter().find(|runner| runner.uid == **uid);
        pod.is_some_and(|pod| pod.ended.is_none() && pod.ip.is_some())
    };
    let without = |told: &BTreeSet<String>| -> Vec<String> {
        start.pods.iter().filter(alive).filter(|uid| !told.contains(*uid)).cloned().collect()
    };
    let told = seen.test.status.as_ref().and_then(|status| status.aborted.as_ref());
    if let (None, Some(aborted)) = (told, seen.aborted()) {
        // Durable before anyone is stopped: who comes later must not wonder why.
        return Decision::Abort(aborted);
    }
    let stopping = cancelled || told.is_some();
    // Who is to be stopped is not first started; who can't be reached keeps no other from it.
    let unstopped = without(&seen.memory.stopped);
    if stopping && !unstopped.is_empty() {
        return Decision::Stop(unstopped);
    }
    if stopping || now >= end {
        return Decision::Progress(Phase::Stopping, STOPPING);
    }
    let unordered = without(&seen.memory.ordered);
    if !unordered.is_empty() {
        return Decision::Order(start, unordered);
    }
    Decision::Progress(Phase::Running, COLLECT.min(until_boundary(load, seen.ran(&start, now))))
}

/// The time until the load's current stage, or all of it, is over, and a little more.
fn until_boundary(load: &Load, ran: Duration) -> Duration {
    let ends = load.stages.iter().scan(Duration::ZERO, |end, stage| {
        *end = end.plus(stage.duration);
        Some(*end)
    });
    let next = ends.chain([load.length()]).find(|end| *end > ran).unwrap_or(ran);
    next.minus(ran).plus(Duration::from_millis(50))
}

/// What becomes of a test whose children the API server refused; `None` when it may yet take
/// them, so that the pass is tried again.
pub fn refused(code: Option<u16>, message: &str) -> Option<Decision> {
    // 409 is a name that belongs to another; all of these stay as they are.
    matches!(code, Some(400 | 403 | 409 | 422))
        .then(|| Decision::Fail(Reason::Refused, truncated(message, 900)))
}

/// A test that is over: let its runners go, and remove it when its time has come.
fn settle(seen: &Observed, now: Timestamp) -> Decision {
    let failed = seen.test.status.as_ref().and_then(|s| s.phase) == Some(Phase::Error);
    // Its status is written by now, so that the reason can't be lost with it.
    if seen.job.is_some() && (failed || seen.start().is_none()) {
        return Decision::RemoveJob;
    }
    let held: Vec<String> = seen
        .runners
        .iter()
        .filter(|runner| runner.ended.is_none() && runner.ip.is_some())
        .filter(|runner| !seen.memory.released.contains(&runner.uid))
        .map(|runner| runner.uid.clone())
        .collect();
    if seen.job_is_active() && !held.is_empty() {
        return Decision::Release(held);
    }
    let finished = seen.test.status.as_ref().and_then(|status| status.finish_time.clone());
    let (Some(ttl), Some(finished)) = (seen.test.spec.ttl_seconds_after_finished, finished) else {
        return Decision::Settled;
    };
    let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    if passed(finished.0, now, ttl) {
        return Decision::Delete;
    }
    let since = Duration::from_secs_f64(now.duration_since(finished.0).as_secs_f64());
    Decision::Wait(ttl.minus(since).plus(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests;
