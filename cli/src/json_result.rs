//! The result of `loadtest run --json`: plain numbers for programs. Durations are in seconds, rates
//! are per second, and shares are fractions from 0 to 1.

use loadtest_core::{
    metrics::{ConnectStep, Connections, LatencyHistogram, Numbers, Outcome, TaskNumbers, judged},
    resource::{LoadTest, LoadTestStatus},
};
use serde_json::{Value, json};

/// Version of the format. Increase it when the meaning of a field changes.
const FORMAT_VERSION: u32 = 1;

/// Returns the whole result of a run.
pub(crate) fn build_json_result(
    test: &LoadTest,
    status: &LoadTestStatus,
    numbers: &Numbers,
) -> Value {
    let elapsed = numbers.elapsed_seconds;
    let tasks: Vec<Value> = test
        .spec
        .scenario
        .tasks
        .iter()
        .map(|task| {
            let empty = TaskNumbers::default();
            let measured = numbers.tasks.get(&task.name).unwrap_or(&empty);
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
        "userSeconds": numbers.user_seconds,
        "usersPeak": numbers.users_peak,
        "scheduleLag": latency_to_json(&numbers.schedule_lag),
        "eventLoopLag": latency_to_json(&numbers.loop_lag),
        "total": task_to_json(&numbers.total(), elapsed),
        "tasks": tasks,
    })
}

fn task_to_json(task: &TaskNumbers, elapsed: f64) -> Value {
    let successes = task.of(Outcome::Success);
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    json!({
        "requests": task.completed(),
        "failures": task.failures(),
        "timeouts": task.of(Outcome::Timeout),
        "interrupted": task.of(Outcome::Interrupted),
        "dropped": task.dropped,
        "errorRate": share(task.missed(), task.wanted()),
        "throughput": if elapsed > 0.0 { successes as f64 / elapsed } else { 0.0 },
        "responseTime": latency_to_json(&judged(&task.response_time)),
        "serviceTime": latency_to_json(&judged(&task.service_time)),
        "timeToFirstResponse": latency_to_json(&judged(&task.first_response)),
        "interTokenLatency": latency_to_json(&task.inter_token),
        "timePerOutputToken": latency_to_json(&task.token_time),
        "tokens": task.tokens.by_kind().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "good": task.good,
        "timeToFirstByte": latency_to_json(&task.first_byte),
        "webSocketConnect": latency_to_json(&judged(&task.web_socket_connect)),
        "webSocketRoundTrip": latency_to_json(&task.round_trip),
        "messagesSent": task.messages_sent,
        "messagesReceived": task.messages_received,
        "connections": connections_to_json(&task.connections),
        "errors": task.errors.iter().filter(|(_, n)| **n > 0).collect::<std::collections::BTreeMap<_, _>>(),
        "sentBytes": task.sent_bytes,
        "receivedBytes": task.received_bytes,
    })
}

fn connections_to_json(connections: &Connections) -> Value {
    let Connections { opened, again, steps } = connections;
    let mut value = json!({"opened": opened, "reconnects": again});
    for step in ConnectStep::ALL {
        value[step.as_str()] = latency_to_json(&steps[step.index()]);
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
