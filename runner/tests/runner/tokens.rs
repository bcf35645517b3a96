//! Token counts, inter-token latency and goodput, against a target with known token times.

use loadtest_core::metrics::{LatencyMetric, Outcome};
use serde_json::json;

use crate::harness::{build_plan, only_task, run_plan, start_simulator};

#[tokio::test]
async fn token_counts_and_gaps_match_the_simulator() {
    let simulator = start_simulator("{chat: {tokens: 8, latency: 30ms, tokenGap: 10ms}}").await;
    let chat = json!({"models": ["cell0-small"], "messages": ["Hello"], "stream": true});
    let tasks = json!([{"name": "chat", "chat": chat}]);
    let metrics = run_plan(build_plan(&simulator, 4, "2s", &tasks)).await.metrics;
    let task = only_task(&metrics);
    let responses = task.completed_requests();
    assert!(responses > 8 && task.failed_requests() == 0, "{:?}", task.errors);
    assert_eq!(task.tokens.output, 8 * responses);
    assert!(task.tokens.prompt > 0, "`usage` of the response was not read: {:?}", task.tokens);
    assert_eq!(
        task.latencies.get(LatencyMetric::InterTokenLatency, Outcome::Success).count(),
        7 * responses
    );
    assert_eq!(
        task.latencies.get(LatencyMetric::TimePerOutputToken, Outcome::Success).count(),
        responses
    );
    for (name, times) in [
        (
            "inter-token latency",
            task.latencies.get(LatencyMetric::InterTokenLatency, Outcome::Success),
        ),
        ("time per token", task.latencies.get(LatencyMetric::TimePerOutputToken, Outcome::Success)),
    ] {
        let median = times.quantile(0.5).unwrap().as_millis_f64();
        assert!((9.5..13.0).contains(&median), "{name}: {median} ms");
    }
    // The plan has no latency threshold, so every success counts for goodput.
    assert_eq!(task.good, responses);
}

#[tokio::test]
async fn goodput_counts_requests_within_the_laxest_target() {
    let latency = "{uniform: {min: 50ms, max: 550ms}}";
    let simulator = start_simulator(&format!("{{health: {{latency: {latency}}}}}")).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = build_plan(&simulator, 40, "2s", &tasks);
    plan.test.thresholds = serde_json::from_value(json!([
        {"task": "health", "metric": "responseTime", "statistic": "p50", "target": "< 100ms"},
        {"task": "health", "metric": "responseTime", "statistic": "p95", "target": "< 300ms"},
    ]))
    .unwrap();
    let metrics = run_plan(plan).await.metrics;
    let task = only_task(&metrics);
    let share = task.good as f64 / task.completed_requests() as f64;
    // With two targets on one metric, goodput uses the laxer one: half of the responses take
    // less than 300 ms.
    assert!((0.35..0.65).contains(&share), "{share} of {} are good", task.completed_requests());
}
