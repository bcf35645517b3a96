//! The runner counts every request exactly once.

use loadtest_core::metrics::Outcome;
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
    let metrics = run_plan(build_plan(&simulator, 40, "1500ms", &tasks)).await.numbers;
    let target_counts = final_counts(&simulator).await;
    let total = metrics.total();
    assert_eq!(outcome_counts(&total)[1..], [0, 0, 0], "{:?}", total.errors);
    assert_eq!(total.completed(), target_counts.received);
    assert_eq!(total.completed(), target_counts.completed);
    for (name, task) in &metrics.tasks {
        let success = Outcome::Success.index();
        assert!(task.completed() > 0, "{name}");
        assert_eq!(task.response_time[success].count(), task.completed(), "{name}");
        assert_eq!(task.service_time[success].count(), task.completed(), "{name}");
        assert!(task.sent_bytes > 0 && task.received_bytes > 0, "{name}");
    }
    let first_responses = metrics.tasks["chat"].first_response[0].count();
    assert_eq!(first_responses, metrics.tasks["chat"].completed());
    let connects = metrics.tasks["socket"].web_socket_connect[0].count();
    assert_eq!(connects, metrics.tasks["socket"].completed());
    assert_eq!(metrics.users_peak, 40);
}

#[tokio::test]
async fn each_failure_is_counted_once() {
    let errors = "errors: {rate: 30%, kinds: [{status: 503}, reset]}";
    let simulator = start_simulator(&format!("{{health: {{latency: 0s, {errors}}}}}")).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let metrics = run_plan(build_plan(&simulator, 10, "1s", &tasks)).await.numbers;
    let target_counts = final_counts(&simulator).await;
    let task = only_task(&metrics);
    assert_eq!(task.of(Outcome::Success), target_counts.completed);
    assert_eq!(task.failures(), target_counts.failed);
    assert_eq!(task.errors.values().sum::<u64>(), task.failures());
    assert!(task.errors["http_503"] > 0 && task.errors["reset"] > 0, "{:?}", task.errors);
}

#[tokio::test]
async fn interrupted_requests_count_with_their_age() {
    let simulator = start_simulator("{health: {latency: 30s}}").await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = build_plan(&simulator, 8, "1s", &tasks);
    plan.load.graceful_stop = loadtest_core::Duration::from_millis(500);
    let metrics = run_plan(plan).await.numbers;
    let task = only_task(&metrics);
    assert_eq!(outcome_counts(task), [0, 0, 0, 8]);
    let ages = &task.response_time[Outcome::Interrupted.index()];
    let youngest = ages.quantile(0.0).unwrap().as_secs_f64();
    assert!(youngest > 1.3, "{youngest} s for 1 s of load and 0.5 s of graceful stop");
    let target_counts = final_counts(&simulator).await;
    assert_eq!((target_counts.received, target_counts.aborted), (8, 8));
}
