//! Chooses the next step of a test.
//!
//! Pure: [`decide`] has no client, reads no clock and takes the time as `now`.

mod decision;
mod finished;
mod running;
mod starting;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use loadtest_core::{
    plan::{Problem, size_test},
    resource::{LoadTest, LoadTestStatus, Phase},
    text::truncate,
};

use loadtest_children::Settings;

use crate::observe::{
    start::{RUN_UID_ANNOTATION, StartRecord},
    state::Observed,
};

pub(crate) use self::{
    decision::{CANCEL_GRACE_PERIOD, Decision, JOB_TTL, Reason, signed_duration},
    starting::{RETRYING, decide_retry, refusal_reason},
};
use self::{
    finished::decide_finished,
    running::decide_running,
    starting::{decide_launch, decide_starting, dry_run_timeout_message},
};

/// Chooses the orders to the runners of a test under load while the API server can't be read, or the status can't be written.
///
/// Usually the status has the reason of a stop before the stop orders are sent. In an outage the stop orders are sent first,
/// because the target must not stay under load until the API server is back.
pub(crate) fn decide_in_outage(
    observed: &Observed,
    start: &StartRecord,
    settings: &Settings,
    now: Timestamp,
) -> Option<Decision> {
    let lost = observed.lost_runners(start, now).len() as u64;
    let must_stop = observed.aborted().is_some()
        || observed.test.spec.cancel
        || lost > observed.tolerated_losses(start);
    if must_stop {
        let not_stopped = |uid: &&String| !observed.cache.stop_accepted.contains(*uid);
        let pods: Vec<String> = start.pods.iter().filter(not_stopped).cloned().collect();
        return (!pods.is_empty()).then_some(Decision::SendStop(pods));
    }
    let decision = decide(observed, settings, now);
    matches!(decision, Decision::SendStart(..) | Decision::SendStop(_)).then_some(decision)
}

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
        // A rejected spec that was edited is checked again, but only if the condition `Accepted` is False: a status
        // that has lost its fields must not make a test run again.
        (Some(Phase::Error), None) if was_rejected_and_edited(test) => {
            admit(observed, settings, now)
        }
        (Some(phase), _) if phase.is_final() => decide_finished(observed, now),
        // The operator has created no objects before the status has a plan.
        (None, None) => admit(observed, settings, now),
        (Some(Phase::Pending), None) if waits_for_admission(&status) => {
            admit(observed, settings, now)
        }
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
            (Ok(valid), ..) => decide_running(observed, valid, settings, now),
        },
    }
}

fn was_rejected_and_edited(test: &LoadTest) -> bool {
    let Some(status) = &test.status else { return false };
    let was_rejected = status.condition("Accepted").is_some_and(|c| c.status == "False");
    let seen = status.observed_generation.zip(test.metadata.generation);
    was_rejected && seen.is_some_and(|(seen, now)| now > seen)
}

/// Returns true for a test that waits for its plan: because of `spec.suspend`, or because the API server has not checked its
/// Job yet.
fn waits_for_admission(status: &LoadTestStatus) -> bool {
    let started = status.condition("Started");
    started.is_some_and(|c| c.reason == "Suspended" || c.reason == RETRYING)
}

/// Returns true for a test whose Job the API server could not check.
fn is_admission_retried(status: &LoadTestStatus) -> bool {
    status.condition("Accepted").is_some_and(|c| c.reason == RETRYING)
}

/// Decides whether a test without a plan gets one.
fn admit(observed: &Observed, settings: &Settings, now: Timestamp) -> Decision {
    let spec = &observed.test.spec;
    if let Some(uid) = observed.test.annotations().get(RUN_UID_ANNOTATION) {
        let message = format!(
            "metadata.annotations: {RUN_UID_ANNOTATION} says that this LoadTest has run before, with the UID {uid}. It was restored from a backup or copied, and load never runs again by itself. To run it again, create it without this annotation"
        );
        return Decision::Reject(Reason::AlreadyRan, message);
    }
    match &observed.valid {
        Ok(_) if spec.cancel && is_admission_retried(&observed.status()) => {
            Decision::CancelUnstarted
        }
        Ok(valid) if spec.suspend && !spec.cancel => Decision::ReportSuspended(size_test(valid)),
        Ok(valid) => match dry_run_timeout_message(observed, settings, now) {
            Some(message) => Decision::Reject(Reason::Refused, message),
            None => Decision::Admit(size_test(valid)),
        },
        Err(problems) => Decision::Reject(Reason::InvalidSpec, join_problems(problems)),
    }
}

fn join_problems(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests;
