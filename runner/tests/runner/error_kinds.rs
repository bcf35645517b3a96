//! The error kind of each failure that a request can meet.

use std::{collections::BTreeMap, time::Duration};

use cell0_simulator::Simulator;
use loadtest_core::plan::Plan;
use loadtest_runner::Snapshot;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};

use crate::harness::{build_plan, only_task, run_plan, start_simulator};

/// Runs a plan and asserts that all requests fail. Returns one message per error kind.
async fn run_failing_plan(plan: Plan) -> BTreeMap<String, String> {
    let Snapshot { metrics, examples } = run_plan(plan).await;
    let task = only_task(&metrics);
    assert_eq!(
        task.completed_requests(),
        task.failed_requests(),
        "every request must fail: {:?}",
        task.errors
    );
    let kinds = task.errors.iter().filter(|(_, count)| **count > 0);
    let example = |kind: &String| {
        examples
            .values()
            .zip(examples.keys())
            .find_map(|(message, key)| (key.1 == *kind).then(|| message.clone()))
    };
    kinds.map(|(kind, _)| (kind.clone(), example(kind).expect("an example per kind"))).collect()
}

/// Starts a simulator and builds a plan with one task, named `it`.
async fn prepare_task(settings: &str, mut task_spec: Value) -> (Simulator, Plan) {
    let simulator = start_simulator(settings).await;
    task_spec["name"] = "it".into();
    let plan = build_plan(&simulator, 2, "1s", &json!([task_spec]));
    (simulator, plan)
}

fn chat_task(stream: bool, timeout: &str) -> Value {
    json!({"chat": {
        "models": ["cell0-small"], "messages": ["Hello"], "stream": stream, "timeout": timeout,
    }})
}

fn web_socket_task(timeout: &str) -> Value {
    json!({"webSocket": {"path": "/", "send": ["ping"], "replies": 1, "timeout": timeout}})
}

/// Timeout for a task that meets `failure`: short if the response never comes, otherwise long
/// enough for a machine that stalls.
fn timeout_for(failure: &str) -> &'static str {
    if failure == "hang" { "400ms" } else { "5s" }
}

#[tokio::test]
async fn chat_failures_have_their_error_kinds() {
    let cases = [
        ("status: 503", true, "http_503"),
        ("status: 429", false, "http_429"),
        ("reset", true, "reset"),
        ("hang", true, "timeout_response"),
        ("garbage", true, "protocol"),
        ("streamError", true, "stream_error"),
        ("streamError", false, "http_500"),
        ("cutShort", true, "stream_cut"),
        ("cutShort", false, "reset"),
        ("malformedEvent", true, "stream_malformed"),
        ("malformedEvent", false, "protocol"),
    ];
    for (failure, stream, kind) in cases {
        let errors = format!("errors: {{rate: 100%, kinds: [{failure}]}}");
        let settings = format!("{{chat: {{tokens: 4, latency: 1ms, tokenGap: 1ms, {errors}}}}}");
        let (_simulator, plan) =
            prepare_task(&settings, chat_task(stream, timeout_for(failure))).await;
        let kinds = run_failing_plan(plan).await;
        assert_eq!(
            kinds.keys().collect::<Vec<_>>(),
            [kind],
            "{failure}, stream {stream}: {kinds:?}"
        );
    }
}

#[tokio::test]
async fn web_socket_failures_have_their_error_kinds() {
    let cases = [
        ("closeCode: 1011", "websocket_close_1011"),
        ("rejectUpgrade: 503", "http_503"),
        ("reset", "reset"),
        ("hang", "timeout_response"),
    ];
    for (failure, kind) in cases {
        let settings = format!("{{webSocket: {{errors: {{rate: 100%, kinds: [{failure}]}}}}}}");
        let (_simulator, plan) =
            prepare_task(&settings, web_socket_task(timeout_for(failure))).await;
        let kinds = run_failing_plan(plan).await;
        assert_eq!(kinds.keys().collect::<Vec<_>>(), [kind], "{failure}: {kinds:?}");
    }
}

#[tokio::test]
async fn stalled_response_body_is_a_timeout_body_error() {
    let settings = "{chat: {tokens: 4, latency: 1ms, tokenGap: 1m}}";
    let (_simulator, plan) = prepare_task(settings, chat_task(true, "2s")).await;
    assert_eq!(run_failing_plan(plan).await.into_keys().collect::<Vec<_>>(), ["timeout_body"]);
}

#[tokio::test]
async fn unexpected_status_is_a_failure() {
    let task = json!({"http": {"path": "/health", "expectStatus": [204]}});
    let (_simulator, plan) = prepare_task("{}", task).await;
    assert_eq!(run_failing_plan(plan).await.into_keys().collect::<Vec<_>>(), ["http_200"]);
}

#[tokio::test]
async fn unreachable_target_is_named_in_the_error() {
    let task = json!({"http": {"path": "/health", "timeout": "2s"}});
    let (_simulator, plan) = prepare_task("{}", task).await;
    // The bound socket does not listen, and it keeps other processes from this port.
    let bound = TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed_address = bound.local_addr().unwrap();
    // A DNS label has at most 63 characters, so the resolver rejects this name without a query.
    let invalid_name = format!("{}.invalid", "a".repeat(64));
    let cases = [
        (format!("http://{closed_address}"), "connect", closed_address.to_string()),
        (format!("http://{invalid_name}:80"), "dns", invalid_name),
    ];
    for (url, kind, expected_name) in cases {
        let mut plan = plan.clone();
        plan.test.target.http = Some(url);
        let kinds = run_failing_plan(plan).await;
        assert_eq!(kinds.keys().collect::<Vec<_>>(), [kind], "{kinds:?}");
        assert!(kinds[kind].contains(&expected_name), "{kinds:?}");
    }
}

#[tokio::test]
async fn silent_tls_target_is_a_timeout_connect_error() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let task = json!({"http": {"path": "/health", "timeout": "300ms"}});
    let (_simulator, mut plan) = prepare_task("{}", task).await;
    plan.test.target.http = Some(format!("https://{}", silent.local_addr().unwrap()));
    let failures = run_failing_plan(plan).await;
    let message = &failures["timeout_connect"];
    assert!(failures.len() == 1 && message.ends_with("did not end the TLS handshake"), "{message}");
}

#[tokio::test]
async fn unresolvable_name_does_not_delay_the_end() {
    let task = json!({"http": {"path": "/health", "timeout": "20s"}});
    let (_simulator, mut plan) = prepare_task("{}", task).await;
    plan.test.target.http = Some("http://nowhere.invalid".into());
    let result = tokio::time::timeout(Duration::from_secs(15), run_plan(plan)).await;
    assert!(result.is_ok(), "1 s of load and 5 s of graceful stop took longer than 15 s");
}
