//! The result of `loadtest run --json`: plain numbers for programs. Durations are in seconds, rates
//! are per second, and shares are fractions from 0 to 1.

use loadtest_core::{
    metrics::{
        LatencyHistogram, LatencyMetric, Metrics, Outcome, TaskMetrics, Tokens, catalog::LATENCIES,
    },
    resource::{LoadTest, LoadTestStatus},
};
use serde_json::{Value, json};

/// Version of the format. Increase it when the meaning of a field changes.
const FORMAT_VERSION: u32 = 2;

/// Returns the whole result of a run.
pub(crate) fn build_json_result(
    test: &LoadTest,
    status: &LoadTestStatus,
    metrics: &Metrics,
) -> Value {
    let elapsed = metrics.elapsed_seconds;
    let tasks: Vec<Value> = test
        .spec
        .scenario
        .tasks
        .iter()
        .map(|task| {
            let empty = TaskMetrics::default();
            let measured = metrics.tasks.get(&task.name).unwrap_or(&empty);
            let mut value = task_to_json(measured, elapsed);
            value["name"] = task.name.clone().into();
            value
        })
        .collect();
    json!({
        "version": FORMAT_VERSION,
        "name": test.metadata.name,
        "spec": test.spec,
        "status": status,
        "elapsedSeconds": elapsed,
        "userSeconds": metrics.user_seconds,
        "usersPeak": metrics.users_peak,
        "scheduleLag": latency_to_json(&metrics.schedule_lag),
        "eventLoopLag": latency_to_json(&metrics.event_loop_lag),
        "total": task_to_json(&metrics.all_tasks(), elapsed),
        "tasks": tasks,
    })
}

fn task_to_json(task: &TaskMetrics, elapsed: f64) -> Value {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let per_second = |count: u64| if elapsed > 0.0 { count as f64 / elapsed } else { 0.0 };
    let errors = task.errors.iter().filter(|(_, count)| **count > 0);
    let Tokens { output, reasoning, tool, prompt } = task.tokens;
    let mut value = json!({
        "requests": task.completed_requests(),
        "failures": task.failed_requests(),
        "timeouts": task.requests_with(Outcome::Timeout),
        "interrupted": task.requests_with(Outcome::Interrupted),
        "dropped": task.dropped,
        "errorRate": share(task.errors_and_dropped(), task.judged_requests()),
        "throughput": per_second(task.successes_in_load),
        "tokensPerSecond": per_second(task.tokens_in_load),
        "tokens": {"output": output, "reasoning": reasoning, "tool": tool, "prompt": prompt},
        "good": task.good,
        "messagesSent": task.messages_sent,
        "messagesReceived": task.messages_received,
        "connections": connections_to_json(task),
        "errors": errors.collect::<std::collections::BTreeMap<_, _>>(),
        "statuses": task.statuses,
        "finishReasons": task.finish_reasons,
        "webSocketCloses": task.websocket_closes,
        "addresses": task.addresses,
        "resent": task.resent,
        "sentBytes": task.sent_bytes,
        "receivedBytes": task.received_bytes,
    });
    for (metric, judged) in LatencyMetric::all_judged() {
        value[judged.name] = latency_to_json(&task.latencies.samples(metric));
    }
    value
}

fn connections_to_json(task: &TaskMetrics) -> Value {
    let mut value = json!({
        "opened": task.connections,
        "reconnects": task.reconnects,
        "tlsResumed": task.tls_resumed,
    });
    for info in &LATENCIES {
        if let Some(("step", step)) = info.label {
            value[step] = latency_to_json(&task.latencies.samples(info.metric));
        }
    }
    value
}

/// Returns the distribution of a latency, or null if it has no samples.
fn latency_to_json(histogram: &LatencyHistogram) -> Value {
    let (Some(mean), Some(min)) = (histogram.mean(), histogram.quantile(0.0)) else {
        return Value::Null;
    };
    let mut value = json!({
        "count": histogram.count(),
        "mean": mean.as_secs_f64(),
        "min": min.as_secs_f64(),
    });
    for (name, p) in
        [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)]
    {
        value[name] = histogram.quantile(p).map(loadtest_core::Duration::as_secs_f64).into();
    }
    value
}
