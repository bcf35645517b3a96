//! Counts and response times as a status shows them. Pure.

use crate::{
    metrics::{Outcome, TaskNumbers, judged},
    resource::Summary,
    values::{Duration, Rate, Share},
};

/// A count as the API has it.
pub(crate) fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Counts and response times of a task, or of all.
pub fn summarise(task: &TaskNumbers, elapsed_seconds: f64) -> Summary {
    let response = judged(&task.response_time);
    let at = |p: f64| response.quantile(p).map(Duration::rounded);
    let successes = task.completed() - task.failures();
    let rate = if elapsed_seconds > 0.0 { successes as f64 / elapsed_seconds } else { 0.0 };
    Summary {
        requests: count(task.completed()),
        failures: count(task.failures()),
        interrupted: count(task.of(Outcome::Interrupted)),
        dropped: count(task.dropped),
        error_rate: Share::of(task.missed(), task.wanted()).rounded(),
        throughput: Rate::per_second(rate).rounded(),
        min: at(0.0),
        mean: response.mean().map(Duration::rounded),
        p50: at(0.5),
        p90: at(0.9),
        p95: at(0.95),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
    }
}
