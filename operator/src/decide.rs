//! Chooses the next step of a test.
//!
//! Pure: [`decide`] has no client, reads no clock and takes the time as `now`.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::batch::v1::Job,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use loadtest_core::{
    Duration, control,
    load::LoadModel,
    plan::{Problem, ValidTest, size_test},
    resource::{Aborted, LoadTest, LoadTestStatus, Phase, Sizing},
    text::truncate,
};

use crate::{
    children::Settings,
    observe::state::{Observed, Runner, StartRecord, latest_start},
};

/// Reason why a test could not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The spec is invalid.
    InvalidSpec,
    /// The configuration of the container is incomplete, for example because a Secret or one of its
    /// keys is missing.
    ContainerConfig,
    /// The runner image can't be pulled.
    ImagePull,
    /// No node has room for a runner.
    Unschedulable,
    /// The limits of a runner's machine are too low for its load.
    Preflight,
    /// A runner ended before the start.
    RunnerFailed,
    /// Not all runners were ready in time.
    StartTimeout,
    /// The Job is gone.
    JobLost,
    /// The API server rejected the Job or the ConfigMap.
    Refused,
    /// The operator can't reach any runner.
    Unreachable,
    /// The token of the run has changed, so that the runners take no orders.
    TokenChanged,
}

impl Reason {
    /// Returns the reason as it appears in conditions and Events.
    pub(crate) const fn as_str(self) -> &'static str {
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
            Self::TokenChanged => "TokenChanged",
        }
    }
}

/// The next step of a test. Pods are identified by UID.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Do nothing until an object changes.
    NothingToDo,
    /// Do nothing for this long.
    Wait(Duration),
    /// Report that the spec is invalid, with these problems.
    Reject(String),
    /// Accept the test and report its sizing.
    Admit(Sizing),
    /// Accept the test and report that `spec.suspend` holds it back.
    ReportSuspended(Sizing),
    /// Create the ConfigMap and the Job.
    Launch(Sizing),
    /// Write the start record to the Job.
    PersistStart(StartRecord),
    /// Report that the test runs. The Job already has the start record.
    ReportStarted(StartRecord),
    /// Send a start order to these pods.
    SendStart(StartRecord, Vec<String>),
    /// Send a stop order to these pods.
    SendStop(Vec<String>),
    /// Report that these pods did not take the stop order, and delete the Job.
    ForceStop(Vec<String>),
    /// Report lost runners, each described in words.
    ReportLoss(Vec<String>),
    /// Report that the API server does not create the Job, and the cause.
    ReportRetry(String),
    /// Set the time to live of the Job of a finished test.
    SetJobTtl,
    /// Report the threshold that ends the test.
    ReportAbort(Aborted),
    /// Report the phase and the progress, and reconcile again after this long.
    ReportProgress(Phase, Duration),
    /// Judge a test after its load.
    Conclude {
        /// True if the user cancelled the test.
        cancelled: bool,
        /// Reason and message, if a failure ended the test early.
        failed: Option<(Reason, String)>,
    },
    /// Report why the test could not run. [`Self::DeleteJob`] follows.
    Fail(Reason, String),
    /// Report that the test was cancelled before its load. [`Self::DeleteJob`] follows.
    CancelUnstarted,
    /// Delete the Job of a test that could not run.
    DeleteJob,
    /// Send a release order to these pods.
    SendRelease(Vec<String>),
    /// Delete the test, because its time to live has passed.
    DeleteTest,
}

/// How much later than its start timeout a test may start.
const LATE_START_MARGIN: Duration = Duration::from_secs(10);
/// Interval between two reconciliations while runners start.
const STARTUP_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two scrapes while load runs.
const COLLECT_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between two scrapes while the test stops.
const STOPPING_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Age of a pod at which a missing Secret fails the test. Until then the Secret may still arrive.
const CONFIG_ERROR_TIMEOUT: Duration = Duration::from_secs(10);
/// Age of a pod at which a failed image pull fails the test. A registry may be slow, or down for a
/// moment.
const IMAGE_PULL_TIMEOUT: Duration = Duration::from_secs(90);
/// Time without a response after which the operator gives up a runner at the end of the test.
const SILENT_RUNNER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which the operator ends a test if no runner has ever responded.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Time after which a runner that has not taken its stop order is stopped by force.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a runner that has not taken its release order is given up.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of failed launches in a row that are reported.
const REPORTED_LAUNCH_FAILURES: u32 = 3;
/// Seconds for which a finished Job and its pods are kept without a time to live of the test, so that
/// users can inspect them.
pub(crate) const JOB_TTL_SECONDS: u32 = 600;
/// Maximum time for in-flight requests of a stopped test to end.
pub(crate) const CANCEL_GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Chooses the next step of a test.
pub(crate) fn decide(observed: &Observed, settings: &Settings, now: Timestamp) -> Decision {
    let test = &observed.test;
    let status = observed.status();
    // A newer version of the operator wrote this status: leave it as it is.
    if status.unknown_value().is_some() {
        return Decision::NothingToDo;
    }
    let phase = status.known_phase();
    match (phase, status.plan.clone()) {
        // A rejected spec that was edited gets another look. Only the positive mark of a rejection
        // counts: a status that lost its fields must not make a test run again.
        (Some(Phase::Error), None) if was_rejected_and_edited(test) => admit(observed),
        (Some(phase), _) if phase.is_final() => decide_finished(observed, now),
        // The operator has created no objects before the status has a plan.
        (None, None) => admit(observed),
        (Some(Phase::Pending), None) if is_suspended(&status) => admit(observed),
        (Some(_), None) => Decision::NothingToDo,
        (phase, plan) => match (&observed.valid, phase, plan) {
            (_, None | Some(Phase::Pending), Some(_)) if test.spec.cancel => {
                Decision::CancelUnstarted
            }
            // Another version of the operator accepted this spec, and its plan can't be read.
            (Err(problems), ..) => {
                let problems = join_problems(problems);
                let message = format!(
                    "an earlier version of the operator accepted this test; for this version the spec is invalid: {problems}"
                );
                Decision::Fail(Reason::InvalidSpec, truncate(&message, 900))
            }
            (Ok(_), None | Some(Phase::Pending), Some(sizing)) => {
                decide_launch(observed, sizing, settings, now)
            }
            (Ok(_), Some(Phase::Starting), Some(sizing)) => {
                decide_starting(observed, &sizing, settings, now)
            }
            (Ok(valid), ..) => decide_running(observed, valid, now),
        },
    }
}

fn was_rejected_and_edited(test: &LoadTest) -> bool {
    let Some(status) = &test.status else { return false };
    let was_rejected = status.condition("Accepted").is_some_and(|c| c.status == "False");
    let seen = status.observed_generation.zip(test.metadata.generation);
    was_rejected && seen.is_some_and(|(seen, now)| now > seen)
}

fn is_suspended(status: &LoadTestStatus) -> bool {
    status.condition("Started").is_some_and(|condition| condition.reason == "Suspended")
}

/// Decides about the creation of the Job. A webhook or the API server itself may be down for a while.
fn decide_launch(
    observed: &Observed,
    sizing: Sizing,
    settings: &Settings,
    now: Timestamp,
) -> Decision {
    let status = observed.status();
    let retrying = status.condition("Started").filter(|c| c.reason == "RetryingLaunch");
    let accepted = status.condition("Accepted").map(|c| c.last_transition_time.0);
    let timeout = start_timeout(observed, settings);
    if let (Some(retrying), Some(accepted)) = (retrying, accepted)
        && has_elapsed(accepted, now, timeout)
    {
        let message = format!("the Job was not created within {timeout}: {}", retrying.message);
        return Decision::Fail(Reason::Refused, message);
    }
    Decision::Launch(sizing)
}

/// Returns the maximum time until all runners are ready.
fn start_timeout(observed: &Observed, settings: &Settings) -> Duration {
    observed.test.spec.start_timeout.unwrap_or(settings.start_timeout)
}

/// Decides about a launch that the API server did not carry out, and may carry out later. Returns
/// `None` while nobody needs to know.
pub(crate) fn decide_retry(failed_launches: u32, message: &str) -> Option<Decision> {
    (failed_launches >= REPORTED_LAUNCH_FAILURES)
        .then(|| Decision::ReportRetry(truncate(message, 900)))
}

/// Decides whether a test without a plan gets one.
fn admit(observed: &Observed) -> Decision {
    let spec = &observed.test.spec;
    match &observed.valid {
        Ok(valid) if spec.suspend && !spec.cancel => Decision::ReportSuspended(size_test(valid)),
        Ok(valid) => Decision::Admit(size_test(valid)),
        Err(problems) => Decision::Reject(join_problems(problems)),
    }
}

fn join_problems(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
    texts.join("; ")
}

/// Returns true if at least `duration` has passed between `from` and `now`.
fn has_elapsed(from: Timestamp, now: Timestamp, duration: Duration) -> bool {
    now.duration_since(from) >= signed_duration(duration)
}

/// Converts a duration into the type that [`Timestamp`] arithmetic needs.
pub(crate) fn signed_duration(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.to_std()).unwrap_or(SignedDuration::MAX)
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
    if observed.cache.token_has_changed {
        let message = "the operator's token Secret has changed since the runners were created, so they take no orders; delete the LoadTest and create it again";
        return Decision::Fail(Reason::TokenChanged, message.into());
    }
    let Some(job) = &observed.job else {
        let message =
            "the Job was deleted before the load started; delete the LoadTest and create it again";
        return Decision::Fail(Reason::JobLost, message.into());
    };
    if let Some((reason, message)) = observed.runners.iter().find_map(|r| startup_failure(r, now)) {
        return Decision::Fail(reason, message);
    }
    if let Some(message) = failed_index(job) {
        return Decision::Fail(Reason::RunnerFailed, message);
    }
    let created_at = job.creation_timestamp().map_or(now, |time| time.0);
    let timeout = start_timeout(observed, settings);
    let wanted = usize::try_from(sizing.runners).unwrap_or(usize::MAX);
    let mut pods: Vec<(u32, &str)> = observed
        .runners
        .iter()
        .filter(|runner| runner.ready && !runner.disrupted && runner.ip.is_some())
        .map(|runner| (runner.index, runner.uid.as_str()))
        .collect();
    pods.sort_unstable();
    pods.dedup_by_key(|(index, _)| *index);
    // An operator that was away must not start a test long after its time.
    let is_too_late = has_elapsed(created_at, now, timeout.plus(LATE_START_MARGIN));
    if pods.len() == wanted && is_too_late {
        let message = format!(
            "the runners were ready, but the operator was away and came back later than {timeout} after their creation; create the LoadTest again"
        );
        return Decision::Fail(Reason::StartTimeout, message);
    }
    if pods.len() == wanted {
        // Every start order must arrive before the start time that it contains.
        let lead = Duration::from_millis(1000 + 10 * wanted as u64);
        let at = now.saturating_add(signed_duration(lead)).unwrap_or(now);
        let pods = pods.into_iter().map(|(_, uid)| uid.to_owned()).collect();
        return Decision::PersistStart(StartRecord { at, pods });
    }
    if has_elapsed(created_at, now, timeout) {
        return start_timeout_failure(observed, wanted, pods.len(), timeout);
    }
    Decision::Wait(STARTUP_POLL_INTERVAL)
}

/// Returns a message if the Job has given up a runner: its pod was deleted or ended, and is not
/// replaced.
fn failed_index(job: &Job) -> Option<String> {
    let failed = job.status.as_ref()?.failed_indexes.as_ref().filter(|list| !list.is_empty())?;
    Some(format!(
        "the pod of runner {failed} was deleted or ended before the load started, and the Job does not replace it; create the LoadTest again"
    ))
}

/// Returns reason and message if a runner can never become ready.
fn startup_failure(runner: &Runner, now: Timestamp) -> Option<(Reason, String)> {
    // The Job replaces a pod that is deleted or evicted before the start. The start waits for the
    // replacement.
    if runner.disrupted {
        return None;
    }
    let with_name = |message: &str| format!("runner {}: {}", runner.name, truncate(message, 700));
    if let Some(end) = runner
        .termination
        .as_ref()
        .filter(|t| t.exit_code == Some(i32::from(control::exit_code::PREFLIGHT_FAILED)))
    {
        return Some((Reason::Preflight, with_name(&end.message)));
    }
    if let Some(end) = &runner.termination {
        let code = end.exit_code.map_or_else(String::new, |code| format!(" with exit code {code}"));
        let message = format!("ended before the load started{code}: {}", end.message);
        return Some((Reason::RunnerFailed, with_name(&message)));
    }
    let waiting = runner.waiting.as_ref()?;
    let (reason, timeout) = match waiting.reason.as_str() {
        "CreateContainerConfigError" => (Reason::ContainerConfig, CONFIG_ERROR_TIMEOUT),
        "InvalidImageName" | "ErrImageNeverPull" => (Reason::ImagePull, Duration::ZERO),
        "ErrImagePull" | "ImagePullBackOff" => (Reason::ImagePull, IMAGE_PULL_TIMEOUT),
        "CreateContainerError" | "RunContainerError" => (Reason::RunnerFailed, IMAGE_PULL_TIMEOUT),
        _ => return None,
    };
    let message = format!("{}: {}", waiting.reason, waiting.message);
    // Patience counts from when it can matter: a pod may have waited long for a node.
    let since = runner.scheduled_at.or(runner.created_at)?;
    has_elapsed(since, now, timeout).then(|| (reason, with_name(&message)))
}

fn start_timeout_failure(
    observed: &Observed,
    wanted: usize,
    ready: usize,
    timeout: Duration,
) -> Decision {
    let job = observed.job.as_ref().map(ResourceExt::name_any).unwrap_or_default();
    let unschedulable = observed.runners.iter().find_map(|runner| runner.unschedulable.as_ref());
    let (reason, cause) = match unschedulable {
        Some(message) => (Reason::Unschedulable, truncate(message, 700)),
        None if observed.runners.len() < wanted => {
            let cause = format!(
                "only {} of {wanted} pods exist; see the Job's events (kubectl describe job {job}) for a quota or admission that stops them",
                observed.runners.len(),
            );
            (Reason::StartTimeout, cause)
        }
        None => {
            let cause = format!(
                "see the events of the pods (kubectl describe pods -l batch.kubernetes.io/job-name={job})"
            );
            (Reason::StartTimeout, cause)
        }
    };
    let plural = if wanted == 1 { " was" } else { "s were" };
    let message = format!("{ready} of {wanted} runner{plural} ready after {timeout}: {cause}");
    Decision::Fail(reason, message)
}

fn decide_running(observed: &Observed, valid: &ValidTest, now: Timestamp) -> Decision {
    let cancelled = observed.test.spec.cancel;
    let is_forced = observed.status().condition("StopForced").is_some();
    let known = if is_forced { observed.known_start() } else { observed.start_record() };
    let Some(start) = known else {
        let message = "the Job was deleted under load; delete the LoadTest and create it again";
        return Decision::Conclude { cancelled, failed: Some((Reason::JobLost, message.into())) };
    };
    let collected = observed.collected_disrupted_pods(&start);
    if !collected.is_empty() {
        return Decision::SendRelease(collected);
    }
    let duration = valid.load.duration();
    let end = start.at.saturating_add(signed_duration(duration)).unwrap_or(Timestamp::MAX);
    if all_runners_are_over(observed, &start, latest_start(&start, valid), now) {
        return Decision::Conclude { cancelled, failed: None };
    }
    let cache = &observed.cache;
    let lost = observed.lost_runners(&start, now);
    if let Some(news) = unreported_losses(observed, &start, &lost) {
        return Decision::ReportLoss(news);
    }
    // An earlier process of the operator may have heard them.
    let any_response = !cache.snapshots.is_empty()
        || !cache.start_accepted.is_empty()
        || observed.status().summary.is_some();
    let waiting_since = cache.first_seen.map_or(start.at, |first_seen| first_seen.max(start.at));
    if !any_response && has_elapsed(waiting_since, now, UNREACHABLE_TIMEOUT) {
        let message = cache.contract_mismatch.clone().unwrap_or_else(|| {
            format!(
                "no runner responds to the operator on port {}; allow traffic to this port from the operator's namespace (check network policies and the state of the pods)",
                control::PORT
            )
        });
        return Decision::Conclude { cancelled, failed: Some((Reason::Unreachable, message)) };
    }
    // A runner that responds ends by itself, even if its start order came late. So the test is
    // over only after every runner that is still missing has been silent for long enough.
    let latest_end = duration.plus(valid.graceful_stop);
    let stopped = cache.stop_sent_at.is_some_and(|at| has_elapsed(at, now, CANCEL_GRACE_PERIOD));
    if (stopped || has_elapsed(start.at, now, latest_end))
        && all_runners_are_silent(observed, &start, now)
    {
        return Decision::Conclude { cancelled, failed: None };
    }
    let is_reachable = |uid: &&String| {
        let pod = observed.runners.iter().find(|runner| runner.uid == **uid);
        pod.is_some_and(|pod| pod.termination.is_none() && pod.ip.is_some())
    };
    let reachable_without = |accepted: &BTreeSet<String>| -> Vec<String> {
        let reachable = start.pods.iter().filter(is_reachable);
        reachable.filter(|uid| !accepted.contains(*uid)).cloned().collect()
    };
    let reported = observed.test.status.as_ref().and_then(|status| status.aborted.as_ref());
    if let (None, Some(aborted)) = (reported, observed.aborted()) {
        // The status must contain the reason before any runner stops. Otherwise the reason is lost
        // if the operator restarts in between.
        return Decision::ReportAbort(aborted);
    }
    let too_many_lost = lost.len() as u64 > observed.tolerated_losses(&start);
    let stopping = cancelled || reported.is_some() || too_many_lost;
    // Stop orders go out before start orders, so a test that is being stopped starts no runner.
    // An unreachable runner does not delay the orders to the others.
    let not_stopped = reachable_without(&cache.stop_accepted);
    if stopping && !not_stopped.is_empty() && !is_forced {
        let is_overdue = cache.stop_sent_at.is_some_and(|at| has_elapsed(at, now, STOP_TIMEOUT));
        return if is_overdue || cache.token_has_changed {
            Decision::ForceStop(not_stopped)
        } else {
            Decision::SendStop(not_stopped)
        };
    }
    if stopping || now >= end {
        return Decision::ReportProgress(Phase::Stopping, STOPPING_POLL_INTERVAL);
    }
    // A start order that comes too late would make another load than the one that was asked for.
    let not_started = reachable_without(&cache.start_accepted);
    if !not_started.is_empty() && now <= latest_start(&start, valid) {
        return Decision::SendStart(start, not_started);
    }
    let until_boundary = time_to_next_boundary(&valid.load, observed.load_elapsed(&start, now));
    Decision::ReportProgress(Phase::Running, COLLECT_INTERVAL.min(until_boundary))
}

/// Returns the descriptions of all lost runners if one of them is not reported yet.
fn unreported_losses(
    observed: &Observed,
    start: &StartRecord,
    lost: &[usize],
) -> Option<Vec<String>> {
    let reported = observed.status().measurement.map_or(0, |measurement| measurement.runners_lost);
    // A test that is stopped by force loses its runners by order.
    let is_stopping = observed.cache.stop_sent_at.is_some();
    (lost.len() as u64 > reported && !is_stopping)
        .then(|| lost.iter().map(|index| observed.describe_loss(start, *index)).collect())
}

/// Returns true if no runner can produce more load: each one is final, lost, or missed its start.
fn all_runners_are_over(
    observed: &Observed,
    start: &StartRecord,
    latest: Timestamp,
    now: Timestamp,
) -> bool {
    // A runner without a start order by the latest start never gets one.
    let missed_start = |index: usize| now > latest && observed.is_waiting(index);
    (0..start.pods.len()).all(|index| {
        observed.is_final(index) || observed.is_lost(start, index) || missed_start(index)
    })
}

/// Returns true if no more snapshots are expected: each runner is final, lost, or has not responded
/// for [`SILENT_RUNNER_TIMEOUT`].
fn all_runners_are_silent(observed: &Observed, start: &StartRecord, now: Timestamp) -> bool {
    (0..start.pods.len()).all(|index| {
        let last_seen = observed.last_seen(index).unwrap_or(now);
        observed.is_final(index)
            || observed.is_lost(start, index)
            || has_elapsed(last_seen, now, SILENT_RUNNER_TIMEOUT)
    })
}

/// Returns the time until the end of the current stage or of the load, plus a margin of 50 ms.
fn time_to_next_boundary(load: &LoadModel, elapsed: Duration) -> Duration {
    let ends = load.stages().into_iter().map(|stage| stage.end);
    let next = ends.chain([load.duration()]).find(|end| *end > elapsed).unwrap_or(elapsed);
    next.minus(elapsed).plus(Duration::from_millis(50))
}

/// Decides about a test with a child object that the API server rejected.
///
/// Returns `None` if the API server may accept the object later, so that the operator retries.
pub(crate) fn decide_refused(status_code: Option<u16>, message: &str) -> Option<Decision> {
    // 409 means that the name belongs to another owner. A retry can't change these four results.
    matches!(status_code, Some(400 | 403 | 409 | 422))
        .then(|| Decision::Fail(Reason::Refused, truncate(message, 900)))
}

/// Returns true for a Job that would be kept for ever. It gets its time to live only after the test
/// is judged, so that its pods and their logs are there as long as somebody needs them.
fn has_no_ttl(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_none())
}

/// Decides about a test that is over: releases its runners and deletes it after its time to live.
fn decide_finished(observed: &Observed, now: Timestamp) -> Decision {
    let failed = observed.phase() == Some(Phase::Error);
    // The status already contains the reason, so the reason is not lost with the Job.
    let is_deleting =
        observed.job.as_ref().is_some_and(|job| job.metadata.deletion_timestamp.is_some());
    if is_deleting {
        return Decision::Wait(STARTUP_POLL_INTERVAL);
    }
    if observed.job.is_some() && (failed || observed.start_record().is_none()) {
        return Decision::DeleteJob;
    }
    let unreleased: Vec<String> = observed
        .runners
        .iter()
        .filter(|runner| runner.termination.is_none() && runner.ip.is_some())
        .filter(|runner| !observed.cache.released.contains(&runner.uid))
        .map(|runner| runner.uid.clone())
        .collect();
    let finish_time = observed.test.status.as_ref().and_then(|status| status.finish_time.clone());
    if observed.job_is_active() && !unreleased.is_empty() {
        // A runner that takes no orders may still make load.
        let since = finish_time.as_ref().map_or(now, |time| time.0);
        return if has_elapsed(since, now, RELEASE_TIMEOUT) {
            Decision::DeleteJob
        } else {
            Decision::SendRelease(unreleased)
        };
    }
    if observed.job.as_ref().is_some_and(|job| has_no_ttl(job)) {
        return Decision::SetJobTtl;
    }
    let ttl = observed.test.spec.ttl_seconds_after_finished;
    let (Some(ttl), Some(finish_time)) = (ttl, finish_time) else {
        return Decision::NothingToDo;
    };
    let ttl = Duration::from_secs(u64::from(ttl));
    if has_elapsed(finish_time.0, now, ttl) {
        return Decision::DeleteTest;
    }
    let age = Duration::from_secs_f64(now.duration_since(finish_time.0).as_secs_f64());
    Decision::Wait(ttl.minus(age).plus(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests;
