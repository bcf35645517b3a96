//! A test from its plan to the start of its load.

use k8s_openapi::{
    api::batch::v1::Job,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use loadtest_core::{Duration, control, resource::Sizing, text::truncate};

use super::decision::{Decision, Reason, has_elapsed};
use loadtest_children::Settings;

use crate::{
    observe::runner::Runner,
    observe::start::{StartRecord, time_for_orders},
    observe::state::{Observed, RefusedPods},
};

/// How much later than its start timeout a test may start.
const LATE_START_MARGIN: Duration = Duration::from_secs(10);
/// Each missed start makes the time before the next one four times as long, at most this many times: to 32 s.
const MAX_LEAD_STEPS: u32 = 3;
/// Interval between two reconciliations while runners start. A change of a pod causes one at once.
pub(super) const STARTUP_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two questions to runners that run and are not ready.
const READINESS_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Age of a Job from which on the operator asks its runners less often.
const SLOW_START: Duration = Duration::from_secs(30);
/// Age of a pod at which a missing Secret fails the test. Until then the Secret may still arrive.
const CONFIG_ERROR_TIMEOUT: Duration = Duration::from_secs(10);
/// Age of a pod at which a failed image pull fails the test. A registry may be slow, or down for a
/// moment.
const IMAGE_PULL_TIMEOUT: Duration = Duration::from_secs(90);
/// Reason of the condition `Started` while the API server does not check or create the Job.
pub(crate) const RETRYING: &str = "RetryingLaunch";
/// Number of failed launches in a row that are reported.
const REPORTED_LAUNCH_FAILURES: u32 = 3;

/// Decides about the creation of the Job. A webhook or the API server itself may be down for a while.
pub(super) fn decide_launch(
    observed: &Observed,
    sizing: Sizing,
    settings: &Settings,
    now: Timestamp,
) -> Decision {
    let status = observed.status();
    let retrying = status.condition("Started").filter(|c| c.reason == RETRYING);
    let accepted = status.condition("Accepted").map(|c| c.last_transition_time.0);
    let timeout = start_timeout(observed, settings);
    if let (Some(retrying), Some(accepted)) = (retrying, accepted)
        && observed.cache.failed_launches > 0
        && has_elapsed(accepted, now, timeout)
    {
        let message = format!("the Job was not created within {timeout}: {}", retrying.message);
        return Decision::Fail(Reason::Refused, message);
    }
    Decision::Launch(sizing)
}

/// Returns a message if the API server has not checked the Job of a test within the start timeout: a webhook may be down.
pub(super) fn dry_run_timeout_message(
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Option<String> {
    let status = observed.status();
    let accepted = status.condition("Accepted").filter(|c| c.reason == RETRYING)?;
    let timeout = start_timeout(observed, settings);
    let has_tried = observed.cache.failed_launches > 0;
    (has_tried && has_elapsed(accepted.last_transition_time.0, now, timeout)).then(|| {
        format!("the API server has not checked the Job within {timeout}: {}", accepted.message)
    })
}

/// Returns the maximum time until all runners are ready.
fn start_timeout(observed: &Observed, settings: &Settings) -> Duration {
    observed.test.spec.start_timeout.unwrap_or(settings.start_timeout)
}

/// Decides about a Job that the API server did not check or create, and may check or create later. Returns `None` for the
/// first failures, which are not reported.
pub(crate) fn decide_retry(failed_launches: u32, message: &str) -> Option<Decision> {
    (failed_launches >= REPORTED_LAUNCH_FAILURES)
        .then(|| Decision::ReportRetry(truncate(message, 900)))
}

pub(super) fn decide_starting(
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
    if let Some(message) = failed_index_message(job) {
        return Decision::Fail(Reason::RunnerDeleted, message);
    }
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
    if pods.len() == wanted && is_too_late(job, timeout, now) {
        let message = format!(
            "the runners were ready, but the operator did not start them within {timeout} of their creation, because it was not running or could not reach the API server; create the LoadTest again"
        );
        return Decision::Fail(Reason::StartTimeout, message);
    }
    if pods.len() == wanted {
        let pods = pods.into_iter().map(|(_, uid)| uid.to_owned()).collect();
        return Decision::PersistStart(next_start(pods, 0, now));
    }
    if has_elapsed(creation_time(job, now), now, timeout) {
        return start_timeout_failure(observed, wanted, pods.len(), timeout);
    }
    let is_about_to_be_ready = observed.runners.iter().any(Runner::may_become_ready);
    let is_young = !has_elapsed(creation_time(job, now), now, SLOW_START);
    Decision::Wait(if is_about_to_be_ready && is_young {
        READINESS_POLL_INTERVAL
    } else {
        STARTUP_POLL_INTERVAL
    })
}

fn creation_time(job: &Job, now: Timestamp) -> Timestamp {
    job.creation_timestamp().map_or(now, |time| time.0)
}

/// Returns true if the start timeout of a test ended so long ago that the operator must not start the test any more.
fn is_too_late(job: &Job, timeout: Duration, now: Timestamp) -> bool {
    has_elapsed(creation_time(job, now), now, timeout.plus(LATE_START_MARGIN))
}

/// Returns the next start of these pods. Before that time, the API server has to write the record, and the orders
/// have to arrive. A missed start shows that the API server is slow, so the next start leaves it more time.
fn next_start(pods: Vec<String>, missed: u32, now: Timestamp) -> StartRecord {
    let for_record = SignedDuration::from_millis(500 << (2 * missed.min(MAX_LEAD_STEPS)));
    let lead = for_record.saturating_add(time_for_orders(pods.len()));
    StartRecord { at: now.saturating_add(lead).unwrap_or(now), pods }
}

/// Returns a new start if the old one has passed and no runner has started: the operator was replaced between
/// the record of the start and its orders, or its orders did not arrive.
///
/// Each runner must have said after the old start that it waits, and what it said came with the Lease of this
/// operator. So it takes no order of another one any more.
pub(super) fn start_after_miss(
    observed: &Observed,
    start: &StartRecord,
    latest: Timestamp,
    settings: &Settings,
    now: Timestamp,
) -> Option<StartRecord> {
    let job = observed.job.as_ref()?;
    let still_waits = |index: usize| observed.has_missed_start(start, index, latest);
    let has_missed = now > latest
        && observed.cache.start_accepted.is_empty()
        && (0..start.pods.len()).all(still_waits)
        && !is_too_late(job, start_timeout(observed, settings), now);
    let missed = observed.cache.missed_starts + 1;
    has_missed.then(|| next_start(start.pods.clone(), missed, now))
}

/// Returns a message if the Job has given up a runner: its pod was deleted or ended, and is not
/// replaced.
fn failed_index_message(job: &Job) -> Option<String> {
    let failed = job.status.as_ref()?.failed_indexes.as_ref().filter(|list| !list.is_empty())?;
    Some(format!(
        "the pod of runner {failed} was deleted before the load started, and the Job does not replace it; create the LoadTest again"
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
    if let Some(end) = &runner.termination {
        let exit_code = end.exit_code.and_then(|code| u8::try_from(code).ok());
        let found = match exit_code {
            Some(control::exit_code::LIMITS_TOO_LOW) => Some(Reason::RunnerTooSmall),
            Some(control::exit_code::TARGET_UNREACHABLE) => Some(Reason::TargetUnreachable),
            _ => None,
        };
        if let Some(reason) = found {
            return Some((reason, with_name(&end.message)));
        }
        let code = end.exit_code.map_or_else(String::new, |code| format!(" with exit code {code}"));
        let message = format!("ended before the load started{code}: {}", end.message);
        let reason = if end.is_out_of_memory() { Reason::OutOfMemory } else { Reason::RunnerCrash };
        return Some((reason, with_name(&message)));
    }
    let waiting = runner.waiting.as_ref()?;
    let (reason, timeout) = match waiting.reason.as_str() {
        "CreateContainerConfigError" => (Reason::ContainerConfig, CONFIG_ERROR_TIMEOUT),
        "InvalidImageName" | "ErrImageNeverPull" => (Reason::ImagePull, Duration::ZERO),
        "ErrImagePull" | "ImagePullBackOff" => (Reason::ImagePull, IMAGE_PULL_TIMEOUT),
        "CreateContainerError" | "RunContainerError" => (Reason::RunnerCrash, IMAGE_PULL_TIMEOUT),
        _ => return None,
    };
    let message = format!("{}: {}", waiting.reason, waiting.message);
    // The time counts from when the pod got its node, because it may have waited long for one.
    let since = runner.scheduled_at.or(runner.created_at)?;
    has_elapsed(since, now, timeout).then(|| (reason, with_name(&message)))
}

/// Returns why the API server refuses the pods of a Job, in one word.
pub(crate) fn refusal_reason(refused: &RefusedPods) -> Reason {
    if refused.is_quota() { Reason::QuotaExceeded } else { Reason::Refused }
}

fn start_timeout_failure(
    observed: &Observed,
    wanted: usize,
    ready: usize,
    timeout: Duration,
) -> Decision {
    let job = observed.job.as_ref().map(ResourceExt::name_any).unwrap_or_default();
    let unschedulable = observed.runners.iter().find_map(|runner| runner.unschedulable.as_ref());
    let refused = observed.cache.refused_pods.as_ref();
    let (reason, cause) = match (observed.suspension_cause(), unschedulable, refused) {
        (Some(cause), ..) => (Reason::StartTimeout, cause),
        (None, Some(message), _) => (Reason::Unschedulable, truncate(message, 700)),
        (None, None, Some(refused)) => (refusal_reason(refused), truncate(&refused.message, 700)),
        (None, None, None) if observed.runners.len() < wanted => {
            let cause = format!(
                "only {} of {wanted} pods exist; see the Job's events for the reason (kubectl describe job {job})",
                observed.runners.len(),
            );
            (Reason::StartTimeout, cause)
        }
        (None, None, None) => {
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
