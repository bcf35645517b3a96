//! The types of the result document. Durations are in seconds, rates are per second, and shares are
//! fractions from 0 to 1.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{distribution::Distribution, series::Series};
use crate::{
    metrics::{LatencyMetric, Tokens},
    resource::{Extensible, LoadTestSpec, LoadTestStatus, ThresholdKey, Verdict},
    values::{Duration, Percent, Rate},
};

/// Version of the format. It grows when a field changes its meaning or is removed; new fields don't
/// change it.
pub const FORMAT_VERSION: u32 = 3;

/// The result of a run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Version of this format.
    pub version: u32,
    /// The program that wrote the result, with its version.
    pub generator: String,
    /// Name of the LoadTest.
    pub name: Option<String>,
    /// Namespace of the LoadTest; absent when it did not run on a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Identifies the run.
    pub uid: String,
    /// The spec of the LoadTest.
    pub spec: LoadTestSpec,
    /// The status of the LoadTest, with the verdict and its reason. Numbers are texts for people.
    pub status: LoadTestStatus,
    /// Length of the load, without graceful stop.
    pub elapsed_seconds: f64,
    /// Sum of the times that users ran.
    pub user_seconds: f64,
    /// Maximum of users that ran at once.
    pub users_peak: u64,
    /// Achieved load as a share of the planned load.
    pub coverage: f64,
    /// Delay between the planned and the real start of users' actions.
    pub schedule_lag: Option<Distribution>,
    /// Delay between timers of load threads and the moment they ran.
    pub event_loop_lag: Option<Distribution>,
    /// The numbers of all tasks together.
    pub total: TaskResult,
    /// The numbers of each task, in the order of the spec.
    pub tasks: Vec<NamedTaskResult>,
    /// Each threshold, judged, in the order of the spec.
    pub thresholds: Vec<ThresholdResult>,
    /// The events of the run, in order of time.
    pub events: Vec<RunEvent>,
    /// The load generator, one entry for each runner.
    pub runners: Vec<RunnerResult>,
    /// The run over time.
    pub series: Series,
}

/// The numbers of one task, with its name.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct NamedTaskResult {
    /// Name of the task.
    pub name: String,
    /// The numbers of the task.
    #[serde(flatten)]
    pub result: TaskResult,
}

/// The numbers of one task, or of all tasks together.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskResult {
    /// Completed requests, failed ones included.
    pub requests: u64,
    /// Failed requests, timeouts included.
    pub failures: u64,
    /// Requests that timed out.
    pub timeouts: u64,
    /// Requests that were in flight when the graceful stop ended.
    pub interrupted: u64,
    /// Arrivals that were not sent.
    pub dropped: u64,
    /// Failed requests and dropped arrivals as a share of completed requests and dropped arrivals.
    /// Responses that are too large for the load generator don't count.
    pub error_rate: f64,
    /// Successful requests that ended while load was on, per second of load.
    pub throughput: f64,
    /// Generated tokens that came while load was on, per second of load.
    pub tokens_per_second: f64,
    /// Tokens of chat requests.
    pub tokens: TokenCounts,
    /// Successful requests that met every latency target of their task.
    pub good: u64,
    /// WebSocket messages sent.
    pub messages_sent: u64,
    /// WebSocket messages received.
    pub messages_received: u64,
    /// The connections that the requests opened.
    pub connections: Connections,
    /// Errors by kind.
    pub errors: BTreeMap<String, u64>,
    /// Responses by HTTP status.
    pub statuses: BTreeMap<String, u64>,
    /// Successful chat responses by finish reason.
    pub finish_reasons: BTreeMap<String, u64>,
    /// WebSocket sessions that the target ended, by close code.
    pub web_socket_closes: BTreeMap<String, u64>,
    /// Requests by the address that they were sent to.
    pub addresses: BTreeMap<String, u64>,
    /// Requests that were sent again, because a kept connection had ended or the target had refused the HTTP/2 stream.
    pub resent: u64,
    /// Bytes written to sockets.
    pub sent_bytes: u64,
    /// Bytes read from sockets.
    pub received_bytes: u64,
    /// The latencies, by the names that thresholds use; null without samples.
    #[serde(flatten)]
    pub latencies: LatencyResults,
}

/// The latencies of a task, by the names that thresholds use.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
pub struct LatencyResults(pub(super) BTreeMap<String, Option<Distribution>>);

impl LatencyResults {
    /// The distribution of a latency; `None` without samples.
    pub fn get(&self, metric: LatencyMetric) -> Option<&Distribution> {
        self.0.get(metric.info().judged?.name)?.as_ref()
    }

    /// The latencies that have samples, with their names.
    pub fn measured(&self) -> impl Iterator<Item = (&str, &Distribution)> {
        self.0.iter().filter_map(|(name, latency)| Some((name.as_str(), latency.as_ref()?)))
    }
}

/// Skips fields of a newer version that are not latencies.
impl<'de> Deserialize<'de> for LatencyResults {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
        let is_latency = |name: &str| LatencyMetric::all_judged().any(|(_, j)| j.name == name);
        let mut latencies = BTreeMap::new();
        for (name, field) in fields.into_iter().filter(|(name, _)| is_latency(name)) {
            let latency = Option::<Distribution>::deserialize(field)
                .map_err(|error| serde::de::Error::custom(format!("{name}: {error}")))?;
            latencies.insert(name, latency);
        }
        Ok(Self(latencies))
    }
}

impl JsonSchema for LatencyResults {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "LatencyResults".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut properties = serde_json::Map::new();
        for (metric, judged) in LatencyMetric::all_judged() {
            let distribution = generator.subschema_for::<Option<Distribution>>();
            let info = metric.info();
            let description = format!("{} ({}).", info.description, info.tasks.describe().0);
            let schema = serde_json::json!({"description": description, "anyOf": [distribution]});
            properties.insert(judged.name.to_owned(), schema);
        }
        schemars::json_schema!({"type": "object", "properties": properties})
    }
}

/// Tokens of chat requests.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub struct TokenCounts {
    /// Tokens of content.
    pub output: u64,
    /// Tokens of reasoning before the content.
    pub reasoning: u64,
    /// Tokens of tool calls.
    pub tool: u64,
    /// Tokens of prompts.
    pub prompt: u64,
}

impl From<Tokens> for TokenCounts {
    fn from(Tokens { output, reasoning, tool, prompt }: Tokens) -> Self {
        Self { output, reasoning, tool, prompt }
    }
}

/// The connections that requests opened.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// Number of connections opened.
    pub opened: u64,
    /// Number of connections that replaced one which the target or a failure had ended.
    pub reconnects: u64,
    /// Number of connections that resumed an earlier TLS session.
    pub tls_resumed: u64,
    /// Time of the DNS lookup.
    pub dns: Option<Distribution>,
    /// Time of the TCP handshake.
    pub tcp: Option<Distribution>,
    /// Time of the TLS handshake.
    pub tls: Option<Distribution>,
    /// Time of the WebSocket handshake.
    pub upgrade: Option<Distribution>,
}

/// The unit of a threshold's numbers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ValueUnit {
    /// A duration in seconds.
    Seconds,
    /// A rate per second.
    PerSecond,
    /// A share from 0 to 1.
    Fraction,
}

impl ValueUnit {
    /// A number with its unit, for people: `343.6ms`, `12.5/s`, `0.25%`.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Seconds => Duration::from_secs_f64(value).rounded(),
            Self::PerSecond => Rate::per_second(value).rounded(),
            Self::Fraction => Percent::from_fraction(value).rounded(),
        }
    }
}

/// A bound in numbers.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct BoundValue {
    /// The comparison: `<`, `<=`, `>` or `>=`.
    pub comparison: String,
    /// The number, in the unit of the threshold.
    pub value: f64,
}

/// One threshold, judged, in numbers.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdResult {
    /// Identifies the threshold in spec.thresholds.
    #[serde(flatten)]
    pub key: ThresholdKey,
    /// The unit of the numbers below.
    pub unit: ValueUnit,
    /// The observed value, or that of the worst window, with the four digits of the status; absent
    /// without samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<f64>,
    /// Bound of a Pass.
    pub target: BoundValue,
    /// Bound of a Warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<BoundValue>,
    /// Bound of Critical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<BoundValue>,
    /// Number of samples of the observed value.
    pub samples: u64,
    /// The verdict of this row.
    pub verdict: Extensible<Verdict>,
    /// Advice after a missed target, or why the row is Inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The kind of an event.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum EventKind {
    /// The load began.
    Started,
    /// A stage of the load ended.
    StageEnded,
    /// Runners were lost.
    RunnersLost,
    /// A threshold stopped the load.
    Aborted,
    /// A person stopped the load.
    Cancelled,
    /// The load ended.
    LoadEnded,
}

/// An event of a run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct RunEvent {
    /// Time in seconds from the start of the load.
    pub seconds: f64,
    /// The kind of the event.
    pub kind: EventKind,
    /// The event in words.
    pub message: String,
}

/// How one runner did as a load generator.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerResult {
    /// Name of the runner.
    pub name: String,
    /// Completed requests, failed ones included.
    #[serde(default)]
    pub requests: u64,
    /// How the runner was lost, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// Sum of the times that users of this runner ran.
    pub user_seconds: f64,
    /// 99th percentile of the delay between the planned and the real start of users' actions.
    pub schedule_lag_p99: Option<f64>,
    /// 99th percentile of the delay between timers of load threads and the moment they ran.
    pub event_loop_lag_p99: Option<f64>,
    /// Share of the time that the busiest load thread was on a CPU.
    pub busiest_thread: f64,
    /// Seconds that a CPU limit kept the runner from running.
    pub throttled_seconds: f64,
}
