//! The catalogue: every metric of a runner, declared once.
//!
//! Encoding, decoding, merging, differences, windows, thresholds, status rows and the table in
//! `docs/metrics.md` all follow from the tables here. To add a latency, add a variant to
//! [`LatencyMetric`] and a row to [`LATENCIES`], then record it in the runner.

use super::{LatencyHistogram, Metrics, Outcome, TaskMetrics};

/// Prometheus families that have no row in a table below.
pub mod names {
    /// Info gauge that identifies a runner: labels `run`, `index`, `pod_uid`, `contract`.
    pub const RUNNER_INFO: &str = "loadtest_runner_info";
    /// Gauge of [`crate::metrics::RunnerState`].
    pub const RUNNER_STATE: &str = "loadtest_runner_state";
    /// Counter of errors by task and kind. The kinds are an open set.
    pub const ERRORS: &str = "loadtest_errors_total";
}

/// The tasks that a metric is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskScope {
    /// All tasks.
    All,
    /// Tasks that send requests: `http` and `chat`.
    Requests,
    /// `chat` tasks.
    Chats,
    /// `chat` tasks with `stream: true`.
    StreamedChats,
    /// `webSocket` tasks.
    WebSockets,
    /// `webSocket` tasks with messages that await replies.
    WebSocketReplies,
}

impl TaskScope {
    /// Every scope that leaves out some tasks.
    pub const LIMITED: [Self; 5] = [
        Self::Requests,
        Self::Chats,
        Self::StreamedChats,
        Self::WebSockets,
        Self::WebSocketReplies,
    ];

    /// The tasks in words, and what to do when no task of a spec is among them.
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::All => ("all tasks", ""),
            Self::Requests => {
                ("http and chat tasks", "name one of these, or judge webSocketRoundTrip")
            }
            Self::Chats => ("chat tasks", "name a chat task, or judge another metric"),
            Self::StreamedChats => {
                ("streamed chat tasks", "name one of these, or set chat.stream to true")
            }
            Self::WebSockets => {
                ("webSocket tasks", "name a webSocket task, or judge another metric")
            }
            Self::WebSocketReplies => (
                "webSocket tasks with messages that await replies",
                "set send and replies of a webSocket task",
            ),
        }
    }
}

/// A duration that runners measure, as a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each variant is described by its row in LATENCIES")]
pub enum LatencyMetric {
    ResponseTime,
    ServiceTime,
    TimeToFirstByte,
    TimeToFirstResponse,
    InterTokenLatency,
    TimePerOutputToken,
    WebSocketConnect,
    WebSocketRoundTrip,
    ConnectDns,
    ConnectTcp,
    ConnectTls,
    ConnectUpgrade,
}

/// How thresholds and the status use a latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgedLatency {
    /// The name in `spec.thresholds[].metric` and the field in `status.tasks[]`.
    pub name: &'static str,
    /// True when each request has exactly one sample, so that a dropped arrival counts as a
    /// sample slower than any other. False for latencies of tokens and messages.
    pub per_request: bool,
    /// What to look at when a target of this metric is missed.
    pub advice: &'static str,
}

/// A row of the catalogue: one latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyInfo {
    /// The metric that this row describes.
    pub metric: LatencyMetric,
    /// The Prometheus histogram that carries the metric, in seconds.
    pub family: &'static str,
    /// The label and value that tell apart several metrics of one family.
    pub label: Option<(&'static str, &'static str)>,
    /// The start and the end of the measured time, in one sentence without a period.
    pub description: &'static str,
    /// The tasks that have this metric.
    pub tasks: TaskScope,
    /// True when the family has one histogram for each [`Outcome`] of a request.
    pub by_outcome: bool,
    /// False when the family is left out while it has no samples.
    pub always_exposed: bool,
    /// How the metric is judged; `None` when no threshold can use it.
    pub judged: Option<JudgedLatency>,
}

const SLOW_TARGET: &str = "look at the target's CPU, queues and downstream calls at this load; a responseTime far above serviceTime means that requests waited to be sent";
const SLOW_DECODING: &str = "look at the model server's batch size and at the share of time it spends on prompts: decoding waits for both";

/// Every latency, in the order of [`LatencyMetric`].
pub const LATENCIES: [LatencyInfo; 12] = [
    LatencyInfo {
        metric: LatencyMetric::ResponseTime,
        family: "loadtest_response_time_seconds",
        label: None,
        description: "Time from the planned start of a request to its last byte",
        tasks: TaskScope::All,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency {
            name: "responseTime",
            per_request: true,
            advice: SLOW_TARGET,
        }),
    },
    LatencyInfo {
        metric: LatencyMetric::ServiceTime,
        family: "loadtest_service_time_seconds",
        label: None,
        description: "Time from the sending of a request to its last byte",
        tasks: TaskScope::All,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "serviceTime", per_request: true, advice: SLOW_TARGET }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimeToFirstByte,
        family: "loadtest_time_to_first_byte_seconds",
        label: None,
        description: "Time from the sending of an http or chat request to the first byte of its response",
        tasks: TaskScope::Requests,
        by_outcome: false,
        always_exposed: true,
        judged: Some(JudgedLatency {
            name: "timeToFirstByte",
            per_request: true,
            advice: "look at what the target does before it responds; a large gap to responseTime is the time that the body takes",
        }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimeToFirstResponse,
        family: "loadtest_time_to_first_response_seconds",
        label: None,
        description: "Time from the planned start of a chat request to its first content token",
        tasks: TaskScope::Chats,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency {
            name: "timeToFirstResponse",
            per_request: true,
            advice: "look at queueing and prompt processing in the model server; more replicas or smaller batches shorten the wait for the first token",
        }),
    },
    LatencyInfo {
        metric: LatencyMetric::InterTokenLatency,
        family: "loadtest_inter_token_latency_seconds",
        label: None,
        description: "Time between two tokens of a streamed chat",
        tasks: TaskScope::StreamedChats,
        by_outcome: false,
        always_exposed: true,
        judged: Some(JudgedLatency {
            name: "interTokenLatency",
            per_request: false,
            advice: SLOW_DECODING,
        }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimePerOutputToken,
        family: "loadtest_time_per_output_token_seconds",
        label: None,
        description: "Time from the first to the last token of a successful streamed chat, divided by the number of tokens after the first",
        tasks: TaskScope::StreamedChats,
        by_outcome: false,
        always_exposed: true,
        judged: None,
    },
    LatencyInfo {
        metric: LatencyMetric::WebSocketConnect,
        family: "loadtest_websocket_connect_seconds",
        label: None,
        description: "Time from the start of a WebSocket's connection to its upgrade",
        tasks: TaskScope::WebSockets,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency {
            name: "webSocketConnect",
            per_request: true,
            advice: "look at the target's accept queue, proxy and TLS handshakes: each new session pays for them",
        }),
    },
    LatencyInfo {
        metric: LatencyMetric::WebSocketRoundTrip,
        family: "loadtest_websocket_round_trip_seconds",
        label: None,
        description: "Time from the sending of a WebSocket message to the last reply that it awaits",
        tasks: TaskScope::WebSocketReplies,
        by_outcome: false,
        always_exposed: true,
        judged: Some(JudgedLatency {
            name: "webSocketRoundTrip",
            per_request: false,
            advice: "look at the target's message loop and at what it waits for: one slow handler delays all messages behind it",
        }),
    },
    connect_step(
        LatencyMetric::ConnectDns,
        "dns",
        "Time of the DNS lookup of a new connection; zero when the addresses were cached",
        true,
    ),
    connect_step(
        LatencyMetric::ConnectTcp,
        "tcp",
        "Time of the TCP handshake of a new connection",
        true,
    ),
    connect_step(
        LatencyMetric::ConnectTls,
        "tls",
        "Time of the TLS handshake of a new connection",
        false,
    ),
    connect_step(
        LatencyMetric::ConnectUpgrade,
        "upgrade",
        "Time of the WebSocket handshake of a new connection",
        false,
    ),
];

const fn connect_step(
    metric: LatencyMetric,
    step: &'static str,
    description: &'static str,
    always_exposed: bool,
) -> LatencyInfo {
    LatencyInfo {
        metric,
        family: "loadtest_connect_seconds",
        label: Some(("step", step)),
        description,
        tasks: TaskScope::All,
        by_outcome: false,
        always_exposed,
        judged: None,
    }
}

impl LatencyMetric {
    /// The number of latencies.
    pub const COUNT: usize = LATENCIES.len();

    /// The metric's row in [`LATENCIES`].
    pub const fn info(self) -> &'static LatencyInfo {
        &LATENCIES[self as usize]
    }

    /// The latencies that thresholds can judge.
    pub fn all_judged() -> impl Iterator<Item = (Self, JudgedLatency)> {
        LATENCIES.iter().filter_map(|info| Some((info.metric, info.judged?)))
    }
}

/// Anything that a threshold can judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// A statistic of a latency.
    Latency(LatencyMetric),
    /// Failed requests as a percentage of completed requests.
    ErrorRate,
    /// Successful requests per second of load.
    Throughput,
    /// Generated tokens per second of load.
    TokensPerSecond,
    /// Good requests as a percentage of all requests.
    Goodput,
}

/// The unit of a metric's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A duration: `< 500ms`.
    Duration,
    /// A percentage: `< 0.1%`.
    Percent,
    /// A rate: `> 10/s`.
    Rate,
}

/// A row of the catalogue: one metric that is a single number and not a latency.
#[derive(Clone, Copy, Debug)]
struct SingleInfo {
    metric: Metric,
    name: &'static str,
    unit: Unit,
    higher_is_better: bool,
    tasks: TaskScope,
    description: &'static str,
    advice: &'static str,
}

const SINGLES: [SingleInfo; 4] = [
    SingleInfo {
        metric: Metric::ErrorRate,
        name: "errorRate",
        unit: Unit::Percent,
        higher_is_better: false,
        tasks: TaskScope::All,
        description: "Failed requests and dropped arrivals as a percentage of completed requests and dropped arrivals",
        advice: "see status.errors for what failed, and the target's log for the reason",
    },
    SingleInfo {
        metric: Metric::Throughput,
        name: "throughput",
        unit: Unit::Rate,
        higher_is_better: true,
        tasks: TaskScope::All,
        description: "Successful requests per second of load",
        advice: "the target responded too slowly for this number of users: look at the latency rows, or raise users if these meet their targets",
    },
    SingleInfo {
        metric: Metric::TokensPerSecond,
        name: "tokensPerSecond",
        unit: Unit::Rate,
        higher_is_better: true,
        tasks: TaskScope::Chats,
        description: "Tokens that the target generated per second of load",
        advice: SLOW_DECODING,
    },
    SingleInfo {
        metric: Metric::Goodput,
        name: "goodput",
        unit: Unit::Percent,
        higher_is_better: true,
        tasks: TaskScope::All,
        description: "Requests that succeeded and met every latency target of their task, as a percentage of all requests",
        advice: "see which latency row misses its target: goodput is the percentage of requests that meet all latency targets of their task",
    },
];

impl Metric {
    /// Every metric, latencies first.
    pub fn all() -> impl Iterator<Item = Self> {
        let latencies = LatencyMetric::all_judged().map(|(metric, _)| Self::Latency(metric));
        latencies.chain(SINGLES.iter().map(|info| info.metric))
    }

    /// The metric with a name in a spec.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|metric| metric.as_str() == name)
    }

    fn single(self) -> Option<&'static SingleInfo> {
        SINGLES.iter().find(|info| info.metric == self)
    }

    fn judged_latency(self) -> Option<JudgedLatency> {
        match self {
            Self::Latency(metric) => metric.info().judged,
            _ => None,
        }
    }

    /// The name in a spec.
    pub fn as_str(self) -> &'static str {
        let latency = self.judged_latency().map(|judged| judged.name);
        latency.or_else(|| self.single().map(|info| info.name)).unwrap_or_default()
    }

    /// What the metric measures, in one sentence without a period.
    pub fn description(self) -> &'static str {
        match self {
            Self::Latency(metric) => metric.info().description,
            _ => self.single().map_or("", |info| info.description),
        }
    }

    /// What to look at when a target of this metric is missed.
    pub fn advice(self) -> &'static str {
        let latency = self.judged_latency().map(|judged| judged.advice);
        latency.or_else(|| self.single().map(|info| info.advice)).unwrap_or_default()
    }

    /// The unit of the metric's bounds.
    pub fn unit(self) -> Unit {
        self.single().map_or(Unit::Duration, |info| info.unit)
    }

    /// True when a larger value is better.
    pub fn is_higher_better(self) -> bool {
        self.single().is_some_and(|info| info.higher_is_better)
    }

    /// The tasks that the metric is measured on.
    pub fn tasks(self) -> TaskScope {
        match self {
            Self::Latency(metric) => metric.info().tasks,
            _ => self.single().map_or(TaskScope::All, |info| info.tasks),
        }
    }
}

impl serde::Serialize for Metric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Metric {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(Self::as_str).collect();
            let known = known.join(", ");
            serde::de::Error::custom(format!("{name:?} is not a metric: use one of {known}"))
        })
    }
}

impl schemars::JsonSchema for Metric {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Metric".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<_> = Self::all().map(Self::as_str).collect();
        schemars::json_schema!({"type": "string", "enum": names})
    }
}

/// Reads and writes one field of a struct.
#[derive(Debug)]
pub(super) struct Field<S, V> {
    /// Reads the field.
    pub get: fn(&S) -> V,
    /// Writes the field.
    pub set: fn(&mut S, V),
}

macro_rules! field {
    ($($path:tt)+) => {
        Field { get: |all| all.$($path)+, set: |all, value| all.$($path)+ = value }
    };
}

/// A row of the catalogue: one counter of a task.
#[derive(Debug)]
pub(super) struct CounterInfo {
    /// The Prometheus counter, with its `_total`.
    pub family: &'static str,
    /// The label and value that tell apart several counters of one family.
    pub label: Option<(&'static str, &'static str)>,
    /// What is counted.
    pub description: &'static str,
    /// The tasks that have this counter.
    pub tasks: TaskScope,
    /// Where the count is kept.
    pub field: Field<TaskMetrics, u64>,
}

const fn plain(
    family: &'static str,
    description: &'static str,
    field: Field<TaskMetrics, u64>,
) -> CounterInfo {
    CounterInfo { family, label: None, description, tasks: TaskScope::All, field }
}

const fn requests(outcome: Outcome, field: Field<TaskMetrics, u64>) -> CounterInfo {
    CounterInfo {
        family: "loadtest_requests_total",
        label: Some(("outcome", outcome.as_str())),
        description: "Requests by outcome",
        tasks: TaskScope::All,
        field,
    }
}

const fn tokens(kind: &'static str, field: Field<TaskMetrics, u64>) -> CounterInfo {
    CounterInfo {
        family: "loadtest_tokens_total",
        label: Some(("kind", kind)),
        description: "Tokens of chat requests by kind",
        tasks: TaskScope::Chats,
        field,
    }
}

const fn messages(direction: &'static str, field: Field<TaskMetrics, u64>) -> CounterInfo {
    CounterInfo {
        family: "loadtest_websocket_messages_total",
        label: Some(("direction", direction)),
        description: "WebSocket messages by direction",
        tasks: TaskScope::WebSockets,
        field,
    }
}

/// Every counter of a task, but errors. Counters of one family stand together.
pub(super) const COUNTERS: [CounterInfo; 16] = [
    requests(Outcome::Success, field!(requests[0])),
    requests(Outcome::Failure, field!(requests[1])),
    requests(Outcome::Timeout, field!(requests[2])),
    requests(Outcome::Interrupted, field!(requests[3])),
    tokens("output", field!(tokens.output)),
    tokens("reasoning", field!(tokens.reasoning)),
    tokens("tool", field!(tokens.tool)),
    tokens("prompt", field!(tokens.prompt)),
    messages("sent", field!(messages_sent)),
    messages("received", field!(messages_received)),
    plain(
        "loadtest_good_requests_total",
        "Successful requests that met every latency target of their task",
        field!(good),
    ),
    plain("loadtest_dropped_total", "Arrivals that found no idle user", field!(dropped)),
    plain("loadtest_sent_bytes_total", "Bytes written to sockets", field!(sent_bytes)),
    plain("loadtest_received_bytes_total", "Bytes read from sockets", field!(received_bytes)),
    plain("loadtest_connections_total", "Connections opened", field!(connections)),
    plain(
        "loadtest_reconnects_total",
        "Connections opened to replace one that the target or a failure had ended",
        field!(reconnects),
    ),
];

/// How the values of several runners become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// Their sum.
    Sum,
    /// The largest one.
    Max,
}

/// What a value means in the difference of two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// The later value less the earlier one.
    Difference,
    /// The later value.
    Latest,
}

/// A row of the catalogue: one number of a whole runner.
#[derive(Debug)]
pub(super) struct RunnerInfo {
    /// The Prometheus family. A name that ends in `_total` is a counter, any other a gauge.
    pub family: &'static str,
    /// What the number means.
    pub description: &'static str,
    /// How runners are merged.
    pub merge: Merge,
    /// What differences hold.
    pub since: Since,
    /// Where the number is kept.
    pub field: Field<Metrics, f64>,
}

/// Every number of a whole runner.
pub(super) const RUNNER: [RunnerInfo; 8] = [
    RunnerInfo {
        family: "loadtest_elapsed_seconds",
        description: "Seconds of load since the runner's start, without graceful stop",
        merge: Merge::Max,
        since: Since::Difference,
        field: field!(elapsed_seconds),
    },
    RunnerInfo {
        family: "loadtest_users",
        description: "Users running now",
        merge: Merge::Sum,
        since: Since::Latest,
        field: field!(users),
    },
    RunnerInfo {
        family: "loadtest_users_peak",
        description: "Maximum of users that ran at once",
        merge: Merge::Sum,
        since: Since::Latest,
        field: field!(users_peak),
    },
    RunnerInfo {
        family: "loadtest_user_seconds_total",
        description: "User-seconds of load, without graceful stop",
        merge: Merge::Sum,
        since: Since::Difference,
        field: field!(user_seconds),
    },
    RunnerInfo {
        family: "loadtest_busiest_thread_cpu_seconds_total",
        description: "Seconds of load that the busiest load thread was on a CPU",
        merge: Merge::Max,
        since: Since::Difference,
        field: field!(busy_seconds),
    },
    RunnerInfo {
        family: "loadtest_cpu_throttled_seconds_total",
        description: "Seconds that a CPU limit kept the runner from running",
        merge: Merge::Max,
        since: Since::Difference,
        field: field!(throttled_seconds),
    },
    RunnerInfo {
        family: "loadtest_runner_memory_bytes",
        description: "Maximum of resident memory",
        merge: Merge::Max,
        since: Since::Latest,
        field: field!(memory_bytes),
    },
    RunnerInfo {
        family: "loadtest_runner_memory_ratio",
        description: "Maximum share of the memory limit in use, without files that the kernel can drop; 0 without a limit",
        merge: Merge::Max,
        since: Since::Latest,
        field: field!(memory_ratio),
    },
];

/// A row of the catalogue: how late a runner was.
#[derive(Clone, Copy, Debug)]
pub(super) struct LagInfo {
    /// The Prometheus histogram, in seconds.
    pub family: &'static str,
    /// What was late.
    pub description: &'static str,
    /// Reads the distribution.
    pub get: fn(&Metrics) -> &LatencyHistogram,
    /// Borrows the distribution to write it.
    pub get_mut: fn(&mut Metrics) -> &mut LatencyHistogram,
}

/// Every kind of lag.
pub(super) const LAGS: [LagInfo; 2] = [
    LagInfo {
        family: "loadtest_schedule_lag_seconds",
        description: "Delay between the planned and the real start of a user's action",
        get: |metrics| &metrics.schedule_lag,
        get_mut: |metrics| &mut metrics.schedule_lag,
    },
    LagInfo {
        family: "loadtest_event_loop_lag_seconds",
        description: "Delay between a timer of a load thread and the moment the thread ran it",
        get: |metrics| &metrics.event_loop_lag,
        get_mut: |metrics| &mut metrics.event_loop_lag,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_enum() {
        for (index, info) in LATENCIES.iter().enumerate() {
            assert_eq!(info.metric as usize, index, "{:?}", info.metric);
        }
    }

    #[test]
    fn every_metric_has_one_name() {
        for metric in Metric::all() {
            assert_eq!(Metric::from_name(metric.as_str()), Some(metric));
            assert!(!metric.description().is_empty() && !metric.advice().is_empty());
        }
        let unknown = serde_json::from_str::<Metric>("\"latency\"").unwrap_err().to_string();
        assert!(unknown.contains("use one of responseTime, serviceTime"), "{unknown}");
    }

    #[test]
    fn no_two_rows_share_family_and_label() {
        let mut keys: Vec<_> = LATENCIES.iter().map(|info| (info.family, info.label)).collect();
        keys.extend(COUNTERS.iter().map(|info| (info.family, info.label)));
        keys.extend(RUNNER.iter().map(|info| (info.family, None)));
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
