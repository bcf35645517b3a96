//! What the system answers. Numbers are text in the notation of the spec's bounds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Statistic;
use crate::values::{Bound, Duration};

/// The answer to a `LoadTest`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadTestStatus {
    /// The generation of the spec this status answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Did it run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Did it pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Accepted, Started, Finished, Passed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What sizing made of the spec. From here on the spec can't change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Sizing>,
    /// The moment all runners were told to start at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// When the test ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_time: Option<Time>,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// All tasks and runners together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Each task, over all runners.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tasks: Vec<TaskSummary>,
    /// Each threshold, judged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub thresholds: Vec<ThresholdRow>,
    /// Each stage of the load that is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub stages: Vec<StageRow>,
    /// Where a growing load went beyond what the target takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaking_point: Option<BreakingPoint>,
    /// The threshold that ended the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aborted: Option<Aborted>,
    /// The most frequent errors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub errors: Vec<ErrorCount>,
    /// How good the numbers above are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Measurement>,
}

/// Where a test is on its way.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// Seen, nothing created yet.
    Pending,
    /// Runner pods are being created.
    Starting,
    /// Load is on.
    Running,
    /// Load has ended; last requests and numbers come in.
    Stopping,
    /// It ran to its end.
    Finished,
    /// It could not run.
    Error,
    /// It was stopped by `spec.cancel`.
    Cancelled,
}

impl Phase {
    /// True when nothing changes any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Error | Self::Cancelled)
    }

    /// The phase as it stands in the status.
    pub const fn as_str(self) -> &'static str {
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

/// Whether the target passed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Verdict {
    /// Every target holds.
    Pass,
    /// Every warning bound holds, but not every target.
    Warning,
    /// Something lies between its warning and its critical bound.
    Fail,
    /// Something is past its critical bound.
    Critical,
    /// The numbers don't allow an answer.
    Inconclusive,
    /// There are no thresholds.
    NotJudged,
}

impl Verdict {
    /// The verdict as it stands in the status.
    pub const fn as_str(self) -> &'static str {
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

impl Verdict {
    /// The status of the `Passed` condition.
    pub const fn passed(self) -> &'static str {
        match self {
            Self::Pass | Self::Warning => "True",
            Self::Fail | Self::Critical => "False",
            Self::Inconclusive | Self::NotJudged => "Unknown",
        }
    }
}

/// What sizing made of the spec.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sizing {
    /// Runner pods.
    pub runners: i64,
    /// The most users of one runner; they differ by one at most.
    pub users_per_runner: i64,
    /// Requests per second that one runner is sized for: its arrivals, or what its users would
    /// begin if the target answered at once.
    #[serde(default)]
    pub rate_per_runner: String,
    /// Load-generating threads of one runner.
    pub workers: i64,
    /// CPU request of one runner.
    pub cpu: String,
    /// Memory request of one runner.
    pub memory: String,
}

/// How far a test is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Runners ready or running.
    pub runners: i64,
    /// Users running now; at the end, the most that ran.
    pub users: i64,
    /// Time since the first user's start, at most the test's duration.
    pub elapsed: Duration,
    /// The same as a share of the duration, 0 to 100.
    pub percent: i64,
}

/// Counts and latencies. Latencies are of response time, from when a request was planned,
/// of successful requests and of those that timed out or were interrupted, at their age.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Completed requests, failed ones included.
    pub requests: i64,
    /// Failed requests.
    pub failures: i64,
    /// Requests still open when the test ended; not in `requests`.
    pub interrupted: i64,
    /// Arrivals that found no user free: dropped, never sent; not in `requests`.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: i64,
    /// Failures as a share of requests; what was dropped counts in both.
    pub error_rate: String,
    /// Successful requests per second.
    pub throughput: String,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999: Option<String>,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
const fn is_zero(count: &i64) -> bool {
    *count == 0
}

/// Latencies of one kind.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Latency {
    /// Samples.
    pub count: i64,
    #[allow(missing_docs)]
    pub mean: String,
    #[allow(missing_docs)]
    pub p50: String,
    #[allow(missing_docs)]
    pub p95: String,
    #[allow(missing_docs)]
    pub p99: String,
    #[allow(missing_docs)]
    pub max: String,
}

/// One task, over all runners.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSummary {
    /// The task's name.
    pub name: String,
    /// Counts and response times.
    #[serde(flatten)]
    pub summary: Summary,
    /// Chat tasks: from planned to the first content token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_first_response: Option<Latency>,
    /// Streamed chat tasks: between two tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inter_token_latency: Option<Latency>,
    /// Chat tasks: tokens of all answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenSummary>,
    /// Requests that succeeded and met every latency target of the task, as a share of all;
    /// absent when the task has no latency target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<String>,
    /// Http and chat tasks: from sent to the first byte of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_first_byte: Option<Latency>,
    /// WebSocket tasks: from the start of the connection to its upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_socket_connect: Option<Latency>,
    /// WebSocket tasks: from a message to the last reply it awaits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_socket_round_trip: Option<Latency>,
    /// The connections that its requests opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<super::ConnectionSummary>,
}

/// Tokens of chat answers, as the target's `usage` counts them or, where it sends none, one for
/// each event of a stream.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenSummary {
    /// Of answers' content.
    pub output: i64,
    /// Of reasoning that came before it.
    #[serde(skip_serializing_if = "is_zero")]
    pub reasoning: i64,
    /// Of tool calls.
    #[serde(skip_serializing_if = "is_zero")]
    pub tool: i64,
    /// Of prompts, where the target says it.
    #[serde(skip_serializing_if = "is_zero")]
    pub prompt: i64,
    /// Tokens made per second of load, over all users.
    pub per_second: String,
    /// Tokens per second that one user sees while its answer comes: the inverse of the mean time
    /// per output token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_user: Option<String>,
}

/// One threshold, judged.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdRow {
    /// The task it judges; all together when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What is judged.
    pub metric: super::Metric,
    /// Which statistic of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistic: Option<Statistic>,
    /// The length of the rolling windows, of which this row shows the worst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Duration>,
    /// What was measured; absent without samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
    /// The bound that decided: the target for a Pass, else the bound that was missed or reached.
    pub bound: Bound,
    /// Samples behind the observed value.
    pub samples: i64,
    /// The row's own verdict.
    pub verdict: Verdict,
    /// What to look at when the target was missed, or why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// One stage of the load, by what ended while it was on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageRow {
    /// The load at its end: `250 users`, `40/s`.
    pub load: String,
    /// Completed requests, failed ones included.
    pub requests: i64,
    /// Failures as a share of requests; what was dropped counts in both.
    pub error_rate: String,
    /// Successful requests per second.
    pub throughput: String,
    /// Of response times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<String>,
    /// The worst of all thresholds, on this stage alone.
    pub verdict: Verdict,
    /// The first threshold, in the spec's order, whose target did not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
    /// What was measured there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// Where a growing load went beyond what the target takes.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BreakingPoint {
    /// The highest load at which every target still held; absent when no load is known to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// The lowest load above that, and below the one at which a target was missed, of which the
    /// numbers don't say whether all held; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// The load at which a target was missed; absent when none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broke: Option<String>,
    /// The threshold that was missed there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<String>,
    /// What was measured there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// The threshold that ended a test.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Aborted {
    /// Its place in spec.thresholds, from 0.
    pub row: i64,
    /// The threshold, as people name it.
    pub threshold: String,
    /// What was measured.
    pub observed: String,
    /// The critical bound that held.
    pub bound: Bound,
    /// How far the test was.
    pub elapsed: Duration,
    /// Samples behind the observed value.
    pub samples: i64,
}

/// How often an error happened.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorCount {
    /// The task it happened in.
    pub task: String,
    /// A kind from a closed set, such as `connect`, `timeout_body` or `http_503`.
    pub kind: String,
    /// How often.
    pub count: i64,
    /// One message, from one of the runners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
}

/// How good the numbers are.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Measurement {
    /// The most a percentile here can be off from the exact one.
    pub relative_error: String,
    /// The time between the first and the last runner's start, known to within half of a
    /// scrape's round trip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_skew: Option<String>,
    /// How late the runners were in doing what the load model wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_lag_p99: Option<String>,
    /// The share of the time that the busiest load thread of any runner was on a CPU. Above 90 %
    /// latencies are Inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busiest_thread: Option<String>,
    /// How long a CPU limit kept a runner from running; absent when it did not. Above 1 % of
    /// the test latencies are Inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<String>,
    /// How late load threads came to what was due, whatever their users did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_loop_lag_p99: Option<String>,
    /// The most memory of any runner and, where it has a limit, its share of that. Above 95 %
    /// latencies are Inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Runners that ended before the test did.
    pub runners_lost: i64,
    /// The share of the planned user-seconds that really ran; with arrivals, the share of the
    /// planned arrivals that were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<String>,
}
