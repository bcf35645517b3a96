//! Chooses the next step of a test.
//!
//! Pure: [`decide`] has no client, reads no clock and takes the time as `now`.

mod finished;
mod running;
mod starting;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{
    Duration,
    plan::{Problem, size_test},
    resource::{Aborted, LoadTest, LoadTestStatus, Phase, Sizing},
    text::truncate,
};

use crate::{
    children::Settings,
    observe::state::{Observed, StartRecord},
};

pub(crate) use self::starting::decide_retry;
use self::{
    finished::decide_finished,
    running::decide_running,
    starting::{decide_launch, decide_starting},
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

/// Decides about a test with a child object that the API server rejected.
///
/// Returns `None` if the API server may accept the object later, so that the operator retries.
pub(crate) fn decide_refused(status_code: Option<u16>, message: &str) -> Option<Decision> {
    // 409 means that the name belongs to another owner. A retry can't change these four results.
    matches!(status_code, Some(400 | 403 | 409 | 422))
        .then(|| Decision::Fail(Reason::Refused, truncate(message, 900)))
}

#[cfg(test)]
mod tests;
