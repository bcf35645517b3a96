//! The result that tests of reports start from.

use loadtest_core::{
    judge::{RunContext, Timeline, report},
    metrics::{LatencyMetric, Metrics, Outcome, TaskMetrics},
    plan::validate,
    resource::{LoadTest, LoadTestStatus},
    result::{RunFacts, RunResult, SeriesRecorder, build_result},
};
use serde_json::json;

/// The metrics after a number of seconds of at most 20: 50 chats per second, 4 % of which fail.
fn snapshot(seconds: u32) -> Metrics {
    let count = u64::from(seconds) * 2;
    let mut chat = TaskMetrics::default();
    for (outcome, count) in [
        (Outcome::Success, 24 * count),
        (Outcome::Failure, count / 2),
        (Outcome::Timeout, count - count / 2),
    ] {
        chat.requests[outcome.index()] = count;
        for metric in [LatencyMetric::ResponseTime, LatencyMetric::TimeToFirstResponse] {
            chat.latencies.get_mut(metric, outcome).record(0.75, count);
        }
    }
    chat.successes_in_load = chat.requests[Outcome::Success.index()];
    chat.errors.insert("http_503".into(), count / 2);
    chat.received_bytes = 1000 * count;
    let mut metrics = Metrics {
        elapsed_seconds: f64::from(seconds),
        users: 200,
        users_peak: 200,
        ..Metrics::default()
    };
    metrics.tasks.insert("chat".into(), chat);
    metrics
}

/// A run of 20 s with two tasks, one of which made 1,000 requests, and three thresholds, two of which
/// fail.
pub(crate) fn example() -> RunResult {
    let test: LoadTest = serde_json::from_value(json!({
        "apiVersion": "loadtest.cell0.io/v1alpha1",
        "kind": "LoadTest",
        "metadata": {"name": "burst"},
        "spec": {
            "target": {"http": "http://cell0:18800"},
            "load": {"users": 200, "spawnRate": "50", "duration": "20s"},
            "scenario": {"tasks": [
                {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hello"]}},
                {"name": "health", "http": {"path": "/health"}},
            ]},
            "thresholds": [
                {"task": "chat", "metric": "timeToFirstResponse", "statistic": "p50", "target": "< 500ms"},
                {"metric": "errorRate", "target": "< 0.1%"},
                {"metric": "throughput", "target": "> 10/s"},
            ],
        },
    }))
    .expect("the test's spec is well-formed");
    let valid = validate(&test.spec).expect("the test's spec is valid");
    let metrics = snapshot(20);
    let mut recorder = SeriesRecorder::new(&valid.load);
    (1..=20).for_each(|second| recorder.record(&snapshot(second)));
    let report = report(&valid, &metrics, &Timeline::default(), &RunContext::default());
    let status = LoadTestStatus {
        verdict: Some(report.verdict.into()),
        thresholds: report.thresholds,
        errors: report.errors,
        ..LoadTestStatus::default()
    };
    let facts = RunFacts {
        generator: "loadtest 0.1.0".into(),
        uid: "local-1".into(),
        test: &test,
        valid: &valid,
        status: &status,
        losses: std::collections::BTreeMap::new(),
    };
    build_result(&facts, &metrics, recorder.finish(&metrics))
}
