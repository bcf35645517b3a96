//! The catalogue of counters of a task.

use super::{
    TaskScope,
    field::{Field, field},
};
use crate::metrics::task::{Outcome, TaskMetrics};

/// A row of the catalogue: one counter of a task.
#[derive(Debug)]
pub(crate) struct CounterInfo {
    /// The Prometheus counter, with its `_total`.
    pub family: &'static str,
    /// The label and value that tell apart several counters of one family.
    pub label: Option<(&'static str, &'static str)>,
    /// The events that are counted.
    pub description: &'static str,
    /// The tasks that have this counter.
    pub tasks: TaskScope,
    /// The field with the count.
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
        description: "Requests by outcome: success, failure, timeout or interrupted",
        tasks: TaskScope::All,
        field,
    }
}

const fn tokens(kind: &'static str, field: Field<TaskMetrics, u64>) -> CounterInfo {
    CounterInfo {
        family: "loadtest_tokens_total",
        label: Some(("kind", kind)),
        description: "Tokens of chat responses by kind: output, reasoning, tool or prompt. The target's usage gives the count; without usage, each event counts as one token",
        tasks: TaskScope::Chats,
        field,
    }
}

const fn messages(direction: &'static str, field: Field<TaskMetrics, u64>) -> CounterInfo {
    CounterInfo {
        family: "loadtest_websocket_messages_total",
        label: Some(("direction", direction)),
        description: "WebSocket messages by direction: sent or received, awaited or not",
        tasks: TaskScope::WebSockets,
        field,
    }
}

/// Every counter of a task, but errors. Counters of one family stand together.
pub(crate) const COUNTERS: [CounterInfo; 20] = [
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
    plain(
        "loadtest_dropped_total",
        "Arrivals that were not sent: no idle user, or too late",
        field!(dropped),
    ),
    plain(
        "loadtest_sent_bytes_total",
        "Bytes written to sockets, without the overhead of TLS",
        field!(sent_bytes),
    ),
    plain(
        "loadtest_received_bytes_total",
        "Bytes read from sockets, without the overhead of TLS",
        field!(received_bytes),
    ),
    plain(
        "loadtest_load_successes_total",
        "Successful requests that ended while load was on: divided by loadtest_elapsed_seconds, this is the throughput",
        field!(successes_in_load),
    ),
    CounterInfo {
        family: "loadtest_load_tokens_total",
        label: None,
        description: "Generated tokens of successful requests that came while load was on: divided by loadtest_elapsed_seconds, these are the tokens per second",
        tasks: TaskScope::Chats,
        field: field!(tokens_in_load),
    },
    plain(
        "loadtest_resent_requests_total",
        "Requests that were sent again, because a kept connection had ended before the response began, or because the target had refused the HTTP/2 stream",
        field!(resent),
    ),
    plain(
        "loadtest_tls_resumptions_total",
        "TLS connections that resumed an earlier session, which makes the handshake shorter",
        field!(tls_resumed),
    ),
    plain("loadtest_connections_total", "Connections opened", field!(connections)),
    plain(
        "loadtest_reconnects_total",
        "Connections opened to replace one that the target or a failure had ended; loadtest_connections_total includes them",
        field!(reconnects),
    ),
];
