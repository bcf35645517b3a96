//! A test that is over.

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use loadtest_core::{Duration, resource::Phase};

use super::decision::{Decision, JOB_TTL, has_elapsed};
use crate::observe::state::Observed;

/// Time after which a runner that has not taken its release order is given up.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval between two reconciliations while a Job is being deleted. The watch of the Job reports the end of the deletion.
const DELETION_POLL_INTERVAL: Duration = Duration::from_secs(30);

/// Returns true for a Job without a time to live, which Kubernetes would keep for ever. The Job gets its time to live only
/// after the test is judged, because until then the operator needs the pods and their logs.
fn has_no_ttl(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_none())
}

/// Decides about a test that is over: releases its runners and deletes it after its time to live.
pub(super) fn decide_finished(observed: &Observed, now: Timestamp) -> Decision {
    let is_deleting =
        observed.job.as_ref().is_some_and(|job| job.metadata.deletion_timestamp.is_some());
    let finish_time = observed.test.status.as_ref().and_then(|status| status.finish_time.clone());
    let finish_time = finish_time.map(|time| time.0);
    if !is_deleting && let Some(decision) = decide_job(observed, now) {
        return decision;
    }
    let idle =
        if is_deleting { Decision::Wait(DELETION_POLL_INTERVAL) } else { Decision::NothingToDo };
    let Some(finish_time) = finish_time else { return idle };
    let job_ttl = (!is_deleting && is_job_held_open(observed)).then_some(JOB_TTL);
    let test_ttl = observed.test.time_to_live();
    let is_over = |ttl: Option<Duration>| ttl.is_some_and(|ttl| has_elapsed(finish_time, now, ttl));
    if is_over(test_ttl) {
        return Decision::DeleteTest;
    }
    if is_over(job_ttl) {
        return Decision::DeleteJob;
    }
    let age = Duration::from_secs_f64(now.duration_since(finish_time).as_secs_f64());
    let wait = |ttl: Duration| Decision::Wait(ttl.minus(age).plus(Duration::from_millis(10)));
    [job_ttl, test_ttl].into_iter().flatten().min().map_or(idle, wait)
}

/// Returns true if all runners have ended, and other containers of their pods, such as those of a service mesh, keep the
/// Job from finishing. So its time to live does not begin.
fn is_job_held_open(observed: &Observed) -> bool {
    let has_ended = observed.runners.iter().all(|runner| runner.termination.is_some());
    observed.job_is_active() && has_ended
}

/// Decides what happens to the Job of a test that is over, and to its runners. Returns `None` if nothing is left to do.
fn decide_job(observed: &Observed, now: Timestamp) -> Option<Decision> {
    // The status already contains the reason, so the reason is not lost with the Job.
    let failed = observed.phase() == Some(Phase::Error);
    // A queue would admit a suspended Job again, and so create new pods.
    let has_no_use = failed || observed.start_record().is_none() || observed.is_job_suspended();
    if observed.job.is_some() && has_no_use {
        return Some(Decision::DeleteJob);
    }
    let unreleased: Vec<String> = observed
        .runners
        .iter()
        .filter(|runner| runner.termination.is_none() && runner.ip.is_some())
        .filter(|runner| !observed.cache.released.contains(&runner.uid))
        .map(|runner| runner.uid.clone())
        .collect();
    if observed.job_is_active() && !unreleased.is_empty() {
        // A runner that takes no orders may still make load. An earlier process may have released it.
        let sent_at = observed.cache.release_sent_at;
        let is_overdue = sent_at.is_some_and(|at| has_elapsed(at, now, RELEASE_TIMEOUT));
        return Some(if is_overdue {
            Decision::DeleteJob
        } else {
            Decision::SendRelease(unreleased)
        });
    }
    observed.job.as_ref().is_some_and(has_no_ttl).then_some(Decision::SetJobTtl)
}
