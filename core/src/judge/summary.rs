//! Counts and response times as the status shows them. Pure.

use std::collections::BTreeMap;

use crate::{
    metrics::{LatencyMetric, Outcome, TaskMetrics},
    resource::Summary,
    values::{Duration, Percent, Rate},
};

/// Maximum of statuses, finish reasons and close codes that a summary tells apart.
const MAX_VALUES: usize = 16;

/// The most frequent values of a label, with their counts.
fn most_frequent(counts: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut pairs: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    pairs.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    pairs.into_iter().take(MAX_VALUES).map(|(value, count)| (value.clone(), *count)).collect()
}

/// The counts and response times of a task, or of all tasks merged.
pub fn summarize(task: &TaskMetrics, elapsed_seconds: f64) -> Summary {
    let response_time = task.latencies.samples(LatencyMetric::ResponseTime);
    let quantile = |p: f64| response_time.quantile(p).map(Duration::rounded);
    let successes = task.successes_in_load as f64;
    let rate = if elapsed_seconds > 0.0 { successes / elapsed_seconds } else { 0.0 };
    Summary {
        requests: task.completed_requests(),
        failures: task.failed_requests(),
        interrupted: task.requests_with(Outcome::Interrupted),
        dropped: task.dropped,
        error_rate: Percent::of(task.errors_and_dropped(), task.judged_requests()).rounded(),
        throughput: Rate::per_second(rate).rounded(),
        min: quantile(0.0),
        mean: response_time.mean().map(Duration::rounded),
        p50: quantile(0.5),
        p90: quantile(0.9),
        p95: quantile(0.95),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: quantile(1.0),
        statuses: most_frequent(&task.statuses),
        finish_reasons: most_frequent(&task.finish_reasons),
        web_socket_closes: most_frequent(&task.websocket_closes),
    }
}
