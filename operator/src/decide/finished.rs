//! A test that is over.

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use loadtest_core::{Duration, resource::Phase};

use super::{
    decision::{Decision, has_elapsed},
    starting::STARTUP_POLL_INTERVAL,
};
use crate::observe::state::Observed;

/// Time after which a runner that has not taken its release order is given up.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns true for a Job that would be kept for ever. It gets its time to live only after the test
/// is judged, so that its pods and their logs are there as long as somebody needs them.
fn has_no_ttl(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_none())
}

/// Decides about a test that is over: releases its runners and deletes it after its time to live.
pub(super) fn decide_finished(observed: &Observed, now: Timestamp) -> Decision {
    let failed = observed.phase() == Some(Phase::Error);
    // The status already contains the reason, so the reason is not lost with the Job.
    let is_deleting =
        observed.job.as_ref().is_some_and(|job| job.metadata.deletion_timestamp.is_some());
    if is_deleting {
        return Decision::Wait(STARTUP_POLL_INTERVAL);
    }
    // A queue would admit a suspended Job again, and so create new pods.
    let has_no_use = failed || observed.start_record().is_none() || observed.is_job_suspended();
    if observed.job.is_some() && has_no_use {
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
    if observed.job.as_ref().is_some_and(has_no_ttl) {
        return Decision::SetJobTtl;
    }
    let (Some(ttl), Some(finish_time)) = (observed.test.time_to_live(), finish_time) else {
        return Decision::NothingToDo;
    };
    if has_elapsed(finish_time.0, now, ttl) {
        return Decision::DeleteTest;
    }
    let age = Duration::from_secs_f64(now.duration_since(finish_time.0).as_secs_f64());
    Decision::Wait(ttl.minus(age).plus(Duration::from_millis(10)))
}
