//! The catalogue of latencies.

use super::scope::TaskScope;

/// A duration that runners measure, as a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the row in `LATENCIES` describes each variant")]
pub enum LatencyMetric {
    ResponseTime,
    ServiceTime,
    TimeToFirstByte,
    TimeToFirstToken,
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
    /// True when each request has at most one sample, so that a dropped arrival counts as a
    /// sample slower than any other. False for latencies of tokens and messages.
    pub per_request: bool,
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
    /// True when the family has one histogram for each [`Outcome`](crate::metrics::Outcome) of what it measures. The first
    /// token of a request that times out later is a success.
    pub by_outcome: bool,
    /// False when the family is left out while it has no samples.
    pub always_exposed: bool,
    /// How the metric is judged; `None` when no threshold can use it.
    pub judged: Option<JudgedLatency>,
}

/// Every latency, in the order of [`LatencyMetric`].
pub const LATENCIES: [LatencyInfo; 13] = [
    LatencyInfo {
        metric: LatencyMetric::ResponseTime,
        family: "loadtest_response_time_seconds",
        label: None,
        description: "Time from the planned start of a request to its last byte",
        tasks: TaskScope::All,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "responseTime", per_request: true }),
    },
    LatencyInfo {
        metric: LatencyMetric::ServiceTime,
        family: "loadtest_service_time_seconds",
        label: None,
        description: "Time from the sending of a request to its last byte",
        tasks: TaskScope::All,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "serviceTime", per_request: true }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimeToFirstByte,
        family: "loadtest_time_to_first_byte_seconds",
        label: None,
        description: "Time from the sending of an http or chat request to the first byte of its response",
        tasks: TaskScope::Requests,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "timeToFirstByte", per_request: true }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimeToFirstToken,
        family: "loadtest_time_to_first_token_seconds",
        label: None,
        description: "Time from the planned start of a chat request to its first token of any kind: content, reasoning or tool call",
        tasks: TaskScope::Chats,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "timeToFirstToken", per_request: true }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimeToFirstResponse,
        family: "loadtest_time_to_first_response_seconds",
        label: None,
        description: "Time from the planned start of a chat request to its first token of content; a response without content has no sample",
        tasks: TaskScope::Chats,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "timeToFirstResponse", per_request: true }),
    },
    LatencyInfo {
        metric: LatencyMetric::InterTokenLatency,
        family: "loadtest_inter_token_latency_seconds",
        label: None,
        description: "Time between two tokens of a successful streamed chat; the tokens of one event share the time since the event before",
        tasks: TaskScope::StreamedChats,
        by_outcome: false,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "interTokenLatency", per_request: false }),
    },
    LatencyInfo {
        metric: LatencyMetric::TimePerOutputToken,
        family: "loadtest_time_per_output_token_seconds",
        label: None,
        description: "Time from the first to the last event with a token of a successful streamed chat, divided by the number of tokens after the first event",
        tasks: TaskScope::StreamedChats,
        by_outcome: false,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "timePerOutputToken", per_request: false }),
    },
    LatencyInfo {
        metric: LatencyMetric::WebSocketConnect,
        family: "loadtest_websocket_connect_seconds",
        label: None,
        description: "Time from the start of a WebSocket's connection to its upgrade",
        tasks: TaskScope::WebSockets,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "webSocketConnect", per_request: true }),
    },
    LatencyInfo {
        metric: LatencyMetric::WebSocketRoundTrip,
        family: "loadtest_websocket_round_trip_seconds",
        label: None,
        description: "Time from the sending of a WebSocket message to the last reply that it awaits",
        tasks: TaskScope::WebSocketReplies,
        by_outcome: true,
        always_exposed: true,
        judged: Some(JudgedLatency { name: "webSocketRoundTrip", per_request: false }),
    },
    connect_step(
        LatencyMetric::ConnectDns,
        "dns",
        "Time of the DNS lookup of a new connection; not measured when the addresses were cached",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_enum() {
        for (index, info) in LATENCIES.iter().enumerate() {
            assert_eq!(info.metric as usize, index, "{:?}", info.metric);
        }
    }
}
