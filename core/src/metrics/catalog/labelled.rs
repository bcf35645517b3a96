//! The catalogue of counters whose label has an open set of values.

use std::collections::BTreeMap;

use super::TaskScope;
use crate::metrics::task::TaskMetrics;

/// A row of the catalogue: counters of a task by the value of a label.
#[derive(Debug)]
pub(crate) struct LabelledInfo {
    /// The Prometheus counter, with its `_total`.
    pub family: &'static str,
    /// The name of the label.
    pub label: &'static str,
    /// The events that are counted.
    pub description: &'static str,
    /// The tasks that have these counters.
    pub tasks: TaskScope,
    /// Reads the counts.
    pub get: fn(&TaskMetrics) -> &BTreeMap<String, u64>,
    /// Borrows the counts to write them.
    pub get_mut: fn(&mut TaskMetrics) -> &mut BTreeMap<String, u64>,
}

/// Every counter with an open set of label values.
pub(crate) const LABELLED: [LabelledInfo; 5] = [
    LabelledInfo {
        family: "loadtest_errors_total",
        label: "kind",
        description: "Errors by kind",
        tasks: TaskScope::All,
        get: |task| &task.errors,
        get_mut: |task| &mut task.errors,
    },
    LabelledInfo {
        family: "loadtest_responses_total",
        label: "status",
        description: "Responses by HTTP status; with redirects that were followed, by the last one",
        tasks: TaskScope::All,
        get: |task| &task.statuses,
        get_mut: |task| &mut task.statuses,
    },
    LabelledInfo {
        family: "loadtest_finish_reasons_total",
        label: "reason",
        description: "Successful chat responses by finish reason; `none` without one",
        tasks: TaskScope::Chats,
        get: |task| &task.finish_reasons,
        get_mut: |task| &mut task.finish_reasons,
    },
    LabelledInfo {
        family: "loadtest_websocket_closes_total",
        label: "code",
        description: "WebSocket sessions that the target ended, by close code; 1006 without a close frame",
        tasks: TaskScope::WebSockets,
        get: |task| &task.websocket_closes,
        get_mut: |task| &mut task.websocket_closes,
    },
    LabelledInfo {
        family: "loadtest_requests_by_address_total",
        label: "address",
        description: "Requests by the address of the target that they were sent to",
        tasks: TaskScope::All,
        get: |task| &task.addresses,
        get_mut: |task| &mut task.addresses,
    },
];
