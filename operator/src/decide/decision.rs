//! What the operator can decide to do next about a test.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_core::{
    Duration,
    resource::{Aborted, Phase, Sizing},
};

use crate::observe::start::StartRecord;

/// Reason why a test could not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The spec is invalid.
    InvalidSpec,
    /// The test has run before, and was restored from a backup or copied.
    AlreadyRan,
    /// The configuration of the container is incomplete, for example because a Secret or one of its
    /// keys is missing.
    ContainerConfig,
    /// The runner image can't be pulled.
    ImagePull,
    /// No node has room for a runner.
    Unschedulable,
    /// The limits of a runner's machine are too low for its load.
    RunnerTooSmall,
    /// The target did not accept a connection of a runner before the load.
    TargetUnreachable,
    /// A quota of the namespace does not allow the pods.
    QuotaExceeded,
    /// A runner used more memory than its limit before the start.
    OutOfMemory,
    /// The pod of a runner was deleted before the start, and is not replaced.
    RunnerDeleted,
    /// A runner ended before the start.
    RunnerCrash,
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
            Self::AlreadyRan => "AlreadyRan",
            Self::ContainerConfig => "ContainerConfig",
            Self::ImagePull => "ImagePull",
            Self::Unschedulable => "Unschedulable",
            Self::RunnerTooSmall => "RunnerTooSmall",
            Self::TargetUnreachable => "TargetUnreachable",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::OutOfMemory => "OutOfMemory",
            Self::RunnerDeleted => "RunnerDeleted",
            Self::RunnerCrash => "RunnerCrash",
            Self::StartTimeout => "StartTimeout",
            Self::JobLost => "JobLost",
            Self::Refused => "Refused",
            Self::Unreachable => "Unreachable",
            Self::TokenChanged => "TokenChanged",
        }
    }

    /// Returns what the user can do. `None` where the message says it.
    pub(crate) const fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::ContainerConfig => {
                "create what is missing, or correct the names in the spec, and create the LoadTest again"
            }
            Self::ImagePull => {
                "check the image (spec.runners.image, or the chart value runner.image) and spec.runners.imagePullSecrets"
            }
            Self::Unschedulable => {
                "add nodes, or lower spec.runners.resources or the number of runners"
            }
            Self::QuotaExceeded => {
                "raise the quota, or lower spec.runners.resources or the number of runners"
            }
            Self::TargetUnreachable => {
                "check spec.target, that the target runs, and the NetworkPolicies between runners and target; spec.preflight: Skip makes the load in any case"
            }
            Self::OutOfMemory => "raise spec.runners.resources.limits.memory",
            Self::RunnerCrash => {
                "check that spec.runners.image, or the chart value runner.image, is the runner of this release"
            }
            Self::InvalidSpec
            | Self::AlreadyRan
            | Self::RunnerTooSmall
            | Self::RunnerDeleted
            | Self::StartTimeout
            | Self::JobLost
            | Self::Refused
            | Self::Unreachable
            | Self::TokenChanged => return None,
        })
    }
}

/// The next step of a test. Pods are identified by UID.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Do nothing until an object changes.
    NothingToDo,
    /// Do nothing for this long.
    Wait(Duration),
    /// Report that the spec is invalid, or that the API server would refuse its Job, with the
    /// problems.
    Reject(Reason, String),
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
    /// Report that these pods did not take the stop order. [`Self::DeleteStoppedJob`] follows.
    ForceStop(Vec<String>),
    /// Delete the Job of a test whose runners did not take the stop order.
    DeleteStoppedJob,
    /// Report lost runners, each described in words.
    ReportLoss(Vec<String>),
    /// Report that the API server does not check or create the Job, and the cause.
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

/// Time for which a finished Job and its pods are kept without a time to live of the test, so that
/// users can inspect them.
pub(crate) const JOB_TTL: Duration = Duration::from_secs(600);
/// Maximum time for in-flight requests of a stopped test to end.
pub(crate) const CANCEL_GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Returns true if at least `duration` has passed between `from` and `now`.
pub(super) fn has_elapsed(from: Timestamp, now: Timestamp, duration: Duration) -> bool {
    now.duration_since(from) >= signed_duration(duration)
}

/// Converts a duration into the type that [`Timestamp`] arithmetic needs.
pub(crate) fn signed_duration(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.to_std()).unwrap_or(SignedDuration::MAX)
}
