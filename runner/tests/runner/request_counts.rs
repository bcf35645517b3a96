//! The runner counts every request exactly once.

use loadtest_core::metrics::{LatencyMetric, Outcome};
use serde_json::json;

use crate::harness::{
    build_plan, final_counts, only_task, outcome_counts, run_plan, start_simulator,
};

#[tokio::test]
async fn request_counts_match_the_target_for_all_task_kinds() {
    let simulator = start_simulator("{chat: {tokens: 4, latency: 20ms, tokenGap: 1ms}}").await;
    let tasks = json!([
        {"name": "chat", "weight": 3, "chat":
            {"models": ["cell0-small"], "messages": ["Hello"], "stream": true}},
        {"name": "whole", "chat": {"models": ["cell0-small"], "messages": ["Hello"]}},
        {"name": "health", "weight": 3, "http": {"path": "/health"}},
        {"name": "socket", "webSocket": {"path": "/", "send": ["ping"], "replies": 1}},
    ]);
    let metrics = run_plan(build_plan(&simulator, 40, "1500ms", &tasks)).await.metrics;
    let target_counts = final_counts(&simulator).await;
    let total = metrics.all_tasks();
    assert_eq!(outcome_counts(&total)[1..], [0, 0, 0], "{:?}", total.errors);
    assert_eq!(total.completed_requests(), target_counts.received);
    assert_eq!(total.completed_requests(), target_counts.completed);
    for (name, task) in &metrics.tasks {
        assert!(task.completed_requests() > 0, "{name}");
        assert_eq!(
            task.latencies.get(LatencyMetric::ResponseTime, Outcome::Success).count(),
            task.completed_requests(),
            "{name}"
        );
        assert_eq!(
            task.latencies.get(LatencyMetric::ServiceTime, Outcome::Success).count(),
            task.completed_requests(),
            "{name}"
        );
        assert!(task.sent_bytes > 0 && task.received_bytes > 0, "{name}");
    }
    let first_responses = metrics.tasks["chat"]
        .latencies
        .get(LatencyMetric::TimeToFirstResponse, Outcome::Success)
        .count();
    assert_eq!(first_responses, metrics.tasks["chat"].completed_requests());
    let connects = metrics.tasks["socket"]
        .latencies
        .get(LatencyMetric::WebSocketConnect, Outcome::Success)
        .count();
    assert_eq!(connects, metrics.tasks["socket"].completed_requests());
    assert_eq!(metrics.users_peak, 40);
}

#[tokio::test]
async fn each_failure_is_counted_once() {
    let errors = "errors: {rate: 30%, kinds: [{status: 503}, reset]}";
    let simulator = start_simulator(&format!("{{health: {{latency: 0s, {errors}}}}}")).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let metrics = run_plan(build_plan(&simulator, 10, "1s", &tasks)).await.metrics;
    let target_counts = final_counts(&simulator).await;
    let task = only_task(&metrics);
    assert_eq!(task.requests_with(Outcome::Success), target_counts.completed);
    // A GET on a kept connection that is reset is sent once more.
    assert!(task.resent > 0, "{task:?}");
    assert_eq!(task.failed_requests() + task.resent, target_counts.failed);
    assert_eq!(task.errors.values().sum::<u64>(), task.failed_requests());
    assert!(task.errors["http_503"] > 0 && task.errors["reset"] > 0, "{:?}", task.errors);
}

#[tokio::test]
async fn interrupted_requests_count_with_their_age() {
    let simulator = start_simulator("{health: {latency: 30s}}").await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = build_plan(&simulator, 8, "1s", &tasks);
    plan.test.graceful_stop = loadtest_core::Duration::from_millis(500);
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    assert_eq!(outcome_counts(task), [0, 0, 0, 8]);
    let ages = task.latencies.get(LatencyMetric::ResponseTime, Outcome::Interrupted);
    let youngest = ages.quantile(0.0).unwrap().as_secs_f64();
    assert!(youngest > 1.3, "{youngest} s for 1 s of load and 0.5 s of graceful stop");
    let target_counts = final_counts(&simulator).await;
    assert_eq!((target_counts.received, target_counts.aborted), (8, 8));
}
