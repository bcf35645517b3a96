//! No request is lost, none is counted twice.

use loadtest_core::metrics::Outcome;
use serde_json::json;

use crate::load::{only, outcomes, plan, run, simulator, truth};

#[tokio::test]
async fn all_kinds_of_tasks_add_up_to_what_the_target_counted() {
    let simulator = simulator("{chat: {tokens: 4, latency: 20ms, tokenGap: 1ms}}").await;
    let tasks = json!([
        {"name": "chat", "weight": 3, "chat":
            {"models": ["cell0-small"], "messages": ["Hello"], "stream": true}},
        {"name": "whole", "chat": {"models": ["cell0-small"], "messages": ["Hello"]}},
        {"name": "health", "weight": 3, "http": {"path": "/health"}},
        {"name": "socket", "webSocket": {"path": "/", "send": ["ping"], "replies": 1}},
    ]);
    let numbers = run(plan(&simulator, 40, "1500ms", &tasks)).await.numbers;
    let truth = truth(&simulator).await;
    let total = numbers.total();
    assert_eq!(outcomes(&total)[1..], [0, 0, 0], "{:?}", total.errors);
    assert_eq!(total.completed(), truth.received);
    assert_eq!(total.completed(), truth.completed);
    for (name, task) in &numbers.tasks {
        let success = Outcome::Success.index();
        assert!(task.completed() > 0, "{name}");
        assert_eq!(task.response_time[success].count(), task.completed(), "{name}");
        assert_eq!(task.service_time[success].count(), task.completed(), "{name}");
        assert!(task.sent_bytes > 0 && task.received_bytes > 0, "{name}");
    }
    let first = |name: &str| numbers.tasks[name].first_response[0].count();
    assert_eq!(first("chat"), numbers.tasks["chat"].completed());
    let connects = numbers.tasks["socket"].web_socket_connect[0].count();
    assert_eq!(connects, numbers.tasks["socket"].completed());
    assert_eq!(numbers.users_peak, 40);
}

#[tokio::test]
async fn failures_are_counted_once_each() {
    let errors = "errors: {rate: 30%, kinds: [{status: 503}, reset]}";
    let simulator = simulator(&format!("{{health: {{latency: 0s, {errors}}}}}")).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let numbers = run(plan(&simulator, 10, "1s", &tasks)).await.numbers;
    let truth = truth(&simulator).await;
    let task = only(&numbers);
    assert_eq!(task.of(Outcome::Success), truth.completed);
    assert_eq!(task.failures(), truth.failed);
    assert_eq!(task.errors.values().sum::<u64>(), task.failures());
    assert!(task.errors["http_503"] > 0 && task.errors["reset"] > 0, "{:?}", task.errors);
}

#[tokio::test]
async fn requests_open_at_the_end_count_with_their_age() {
    let simulator = simulator("{health: {latency: 30s}}").await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = plan(&simulator, 8, "1s", &tasks);
    plan.load.graceful_stop = loadtest_core::Duration::from_millis(500);
    let numbers = run(plan).await.numbers;
    let task = only(&numbers);
    assert_eq!(outcomes(task), [0, 0, 0, 8]);
    let ages = &task.response_time[Outcome::Interrupted.index()];
    let youngest = ages.quantile(0.0).unwrap().as_secs_f64();
    assert!(youngest > 1.3, "{youngest} s for 1 s of load and 0.5 s of grace");
    let truth = truth(&simulator).await;
    assert_eq!((truth.received, truth.aborted), (8, 8));
}
