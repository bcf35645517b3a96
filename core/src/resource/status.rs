//! The status of a `LoadTest`. Numbers are texts in the notation of the spec's bounds.

mod summary;

use serde::{Deserialize, Serialize};

pub use summary::{ConnectionSummary, Latency, Summary, TaskLatencies, TaskSummary, TokenSummary};

use super::{Extensible, Named, ThresholdKey};
use crate::values::{Bound, Duration};

/// How far a test has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The operator has seen the test and has created nothing yet.
    Pending,
    /// The runner pods are being created.
    Starting,
    /// The runners make load.
    Running,
    /// The load is over; the last requests end and the last metrics are collected.
    Stopping,
    /// The test ran to its end.
    Finished,
    /// The test could not run.
    Error,
    /// `spec.cancel` stopped the test.
    Cancelled,
}

impl Phase {
    /// True when the test is over.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Error | Self::Cancelled)
    }
}

impl Named for Phase {
    const ALL: &'static [Self] = &[
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Finished,
        Self::Error,
        Self::Cancelled,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Finished => "Finished",
            Self::Error => "Error",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// The result of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every target is met.
    Pass,
    /// Every warning bound is met, but not every target.
    Warning,
    /// A row lies between its warning and its critical bound.
    Fail,
    /// A critical bound is met.
    Critical,
    /// The measurement does not allow a verdict.
    Inconclusive,
    /// The spec has no thresholds.
    NotJudged,
}

impl Verdict {
    /// The status of the condition `Passed`.
    pub const fn passed_condition(self) -> &'static str {
        match self {
            Self::Pass | Self::Warning => "True",
            Self::Fail | Self::Critical => "False",
            Self::Inconclusive | Self::NotJudged => "Unknown",
        }
    }

    /// The rank of a verdict: a test has the verdict of its worst row.
    pub const fn severity(self) -> u8 {
        match self {
            Self::Critical => 5,
            Self::Fail => 4,
            Self::Inconclusive => 3,
            Self::Warning => 2,
            Self::Pass => 1,
            Self::NotJudged => 0,
        }
    }
}

impl Named for Verdict {
    const ALL: &'static [Self] = &[
        Self::Pass,
        Self::Warning,
        Self::Fail,
        Self::Critical,
        Self::Inconclusive,
        Self::NotJudged,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Pass => "Pass",
            Self::Warning => "Warning",
            Self::Fail => "Fail",
            Self::Critical => "Critical",
            Self::Inconclusive => "Inconclusive",
            Self::NotJudged => "NotJudged",
        }
    }
}

/// The runners that a test gets.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Sizing {
    /// Number of runner pods.
    pub runners: u32,
    /// Maximum of users of one runner. The runners' numbers of users differ by 1 at most.
    pub users_per_runner: u32,
    /// Requests per second that one runner is sized for: its arrivals, or what its users would
    /// send to a target that responds as fast as the sizing assumes.
    #[serde(default)]
    pub rate_per_runner: String,
    /// Number of load threads of one runner.
    // Earlier builds had another name for this field. Without a default, their objects could not be decoded.
    #[serde(default = "one_thread")]
    pub threads_per_runner: u32,
    /// CPU request of one runner.
    pub cpu: String,
    /// Memory request of one runner.
    pub memory: String,
}

const fn one_thread() -> u32 {
    1
}

/// How far the load has come.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Number of runners that are ready or running.
    pub runners: u64,
    /// Number of users running now; at the end, the maximum that ran at once.
    pub users: u64,
    /// Time since the start of the first user, at most the test's duration.
    pub elapsed: Duration,
    /// `elapsed` as a percentage of the duration, 0 to 100.
    pub percent: u64,
    /// Time of the load up to which windows and stages are judged; absent if it is `elapsed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Duration>,
}

/// The threshold that stopped a test.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Aborted {
    /// Identifies the threshold in spec.thresholds.
    #[serde(flatten)]
    pub key: ThresholdKey,
    /// The observed value.
    pub observed: String,
    /// The critical bound that was met.
    pub bound: Bound,
    /// Time from the start of the load to the abort.
    pub elapsed: Duration,
    /// Number of samples of the observed value.
    pub samples: u64,
}

/// One threshold, judged.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ThresholdRow {
    /// Identifies the threshold in spec.thresholds.
    #[serde(flatten)]
    pub key: ThresholdKey,
    /// The observed value, or that of the worst window; absent without samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
    /// The bound that decided: the target for a Pass, else the bound that was missed or met.
    pub bound: Bound,
    /// Number of samples of the observed value.
    pub samples: u64,
    /// The verdict of this row.
    pub verdict: Extensible<Verdict>,
    /// Advice after a missed target, or why the row is Inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// One stage of the load, judged by the requests that ended in it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StageRow {
    /// The load at the end of the stage: `250 users`, `40/s`.
    pub load: String,
    /// Number of completed requests, failed ones included.
    pub requests: u64,
    /// Failed requests and dropped arrivals as a percentage of completed requests and dropped
    /// arrivals.
    pub error_rate: String,
    /// Successful requests per second.
    pub throughput: String,
    /// 95th percentile of the response time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<String>,
    /// The worst verdict of all thresholds on this stage alone.
    pub verdict: Extensible<Verdict>,
    /// The first threshold, in the order of the spec, that missed its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
    /// The observed value of that threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// The load at which a target was missed first. Only a test with growing stages has one.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct BreakingPoint {
    /// The highest load below firstFailed that met every target; absent when no load did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_passed: Option<String>,
    /// The lowest load above lastPassed, and below firstFailed, that could not be judged; absent
    /// when every load was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undecided: Option<String>,
    /// The lowest load that missed a target; absent when no load did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failed: Option<String>,
    /// The threshold that was missed at firstFailed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<String>,
    /// The observed value of that threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// How often an error occurred.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ErrorCount {
    /// Name of the task.
    pub task: String,
    /// The error kind, such as `connect`, `timeout_body` or `http_503`.
    pub kind: String,
    /// Number of such errors.
    pub count: u64,
    /// The message of one such error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
    /// Advice about errors of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How good the measurement is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Measurement {
    /// Maximum relative error of a percentile.
    pub relative_error: String,
    /// Time between the start of the first and of the last runner, known to within half of a
    /// scrape's round trip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_skew: Option<String>,
    /// 99th percentile of the delay between the planned and the real start of users' actions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_lag_p99: Option<String>,
    /// Percentage of the time that the busiest load thread of any runner was on a CPU. Above 90 %,
    /// latencies are Inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busiest_thread: Option<String>,
    /// How long a CPU limit kept a runner from running; absent when it never did. Above 1 % of the
    /// test and 100 ms, latencies are Inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<String>,
    /// 99th percentile of the delay between timers of load threads and the moment they ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_loop_lag_p99: Option<String>,
    /// Maximum memory of any runner and, where it has a limit, the percentage of that limit. Above
    /// 95 %, latencies are Inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Number of runners that ended before the test did.
    pub runners_lost: u64,
    /// Time of the load for which the operator has no metrics; absent when it has all. Windows that
    /// fall into it were not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unobserved: Option<String>,
    /// How unevenly the requests went to the addresses of the target; absent when the busiest got at
    /// most 1.5 times the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imbalance: Option<String>,
    /// Percentage of the planned user-seconds that really ran; with arrivals, percentage of the
    /// planned arrivals that were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<String>,
}
