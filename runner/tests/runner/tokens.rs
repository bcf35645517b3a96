//! Tokens, the times between them, and which requests are good, against a scripted target.

use serde_json::json;

use crate::load::{only, plan, run, simulator};

#[tokio::test]
async fn tokens_and_gaps_are_those_of_the_script() {
    let simulator = simulator("{chat: {tokens: 8, latency: 30ms, tokenGap: 10ms}}").await;
    let chat = json!({"models": ["cell0-small"], "messages": ["Hello"], "stream": true});
    let numbers = run(plan(&simulator, 4, "2s", &json!([{"name": "chat", "chat": chat}]))).await;
    let task = only(&numbers.numbers);
    let answers = task.completed();
    assert!(answers > 8 && task.failures() == 0, "{:?}", task.errors);
    assert_eq!(task.tokens.output, 8 * answers);
    assert!(task.tokens.prompt > 0, "the usage was not read: {:?}", task.tokens);
    assert_eq!(task.inter_token.count(), 7 * answers);
    assert_eq!(task.token_time.count(), answers);
    for (what, times) in [("gap", &task.inter_token), ("per token", &task.token_time)] {
        let middle = times.quantile(0.5).unwrap().as_millis_f64();
        assert!((9.5..13.0).contains(&middle), "{what}: {middle} ms");
    }
    // Without a goal every success is good.
    assert_eq!(task.good, answers);
}

#[tokio::test]
async fn good_requests_are_those_within_their_goals() {
    let latency = "{uniform: {min: 50ms, max: 550ms}}";
    let simulator = simulator(&format!("{{health: {{latency: {latency}}}}}")).await;
    let tasks = json!([{"name": "health", "http": {"path": "/health"}}]);
    let mut plan = plan(&simulator, 40, "2s", &tasks);
    plan.thresholds = serde_json::from_value(json!([
        {"task": "health", "metric": "responseTime", "statistic": "p50", "target": "< 100ms"},
        {"task": "health", "metric": "responseTime", "statistic": "p95", "target": "< 300ms"},
    ]))
    .unwrap();
    let numbers = run(plan).await.numbers;
    let task = only(&numbers);
    let share = task.good as f64 / task.completed() as f64;
    // Half of the script's answers come within 300 ms.
    assert!((0.35..0.65).contains(&share), "{share} of {} are good", task.completed());
}
