//! Redirects, gzip and response checks of `http` tasks.

use std::collections::BTreeMap;

use loadtest_core::{metrics::TaskMetrics, resource::HttpVersion};
use serde_json::{Value, json};

use crate::{
    harness::{only_task, run_plan},
    target::{Target, Tls},
};

/// Runs one task for a second. Returns the task's metrics and one message per error kind.
async fn run_task(
    target: &Target,
    task_spec: Value,
    gzip: bool,
    version: HttpVersion,
) -> (TaskMetrics, BTreeMap<String, String>) {
    let mut plan = target.build_plan(2, task_spec).await;
    (plan.test.target.gzip, plan.test.target.http_version) = (gzip, version);
    let result = run_plan(plan).await;
    let task = only_task(&result.metrics).clone();
    assert!(task.completed_requests() > 5, "{:?}", task.requests);
    let messages =
        result.examples.into_iter().map(|((_, kind), message)| (kind, message)).collect();
    (task, messages)
}

/// Runs a task and asserts that all requests fail with one error kind. Returns the kind and its
/// message.
async fn run_failing_task(target: &Target, task_spec: Value) -> (String, String) {
    let (task, messages) = run_task(target, task_spec, false, HttpVersion::Http1).await;
    assert_eq!(task.completed_requests(), task.failed_requests());
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages.into_iter().next().unwrap()
}

#[tokio::test]
async fn redirects_are_followed_up_to_max_redirects() {
    let target = Target::start(Tls::None).await;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let task_spec =
            json!({"path": "/moved-for-good", "maxRedirects": 2, "expectStatus": [200]});
        let before = target.count(|stats| &stats.requests);
        let (task, messages) = run_task(&target, task_spec, false, version).await;
        assert_eq!(task.failed_requests(), 0, "{messages:?}");
        assert_eq!(target.count(|stats| &stats.requests) - before, task.completed_requests());
    }
    let task_spec = json!({"path": "/moved-for-good", "maxRedirects": 1});
    let (kind, message) = run_failing_task(&target, task_spec).await;
    assert_eq!(kind, "redirect");
    assert!(message.contains("one redirect too many, to \"ok\""), "{message}");
    let task_spec = json!({"path": "/loop", "maxRedirects": 20});
    let (kind, _) = run_failing_task(&target, task_spec).await;
    assert_eq!(kind, "redirect");
}

#[tokio::test]
async fn redirects_are_not_followed_by_default() {
    let target = Target::start(Tls::None).await;
    let task_spec = json!({"path": "/moved", "expectStatus": [303]});
    let (task, messages) = run_task(&target, task_spec, false, HttpVersion::Http1).await;
    assert_eq!(task.failed_requests(), 0, "{messages:?}");
    assert_eq!(target.count(|stats| &stats.requests), 0);
}

#[tokio::test]
async fn redirects_to_another_host_are_not_followed() {
    let target = Target::start(Tls::None).await;
    let task_spec = json!({"path": "/away", "maxRedirects": 5});
    let (kind, message) = run_failing_task(&target, task_spec).await;
    assert_eq!(kind, "redirect");
    assert!(message.contains("out of the target"), "{message}");
}

#[tokio::test]
async fn checks_read_the_decompressed_body() {
    let target = Target::start(Tls::None).await;
    let task_spec = json!({"path": "/json", "checks": [
        {"header": "content-type", "contains": "json"},
        {"jsonPath": "$.items[*].id", "equals": "7"},
        {"bodyContains": "\"status\":\"ok\""},
    ]});
    let mut received = Vec::new();
    for (gzip, version) in
        [(false, HttpVersion::Http1), (true, HttpVersion::Http1), (true, HttpVersion::Http2)]
    {
        let (task, messages) = run_task(&target, task_spec.clone(), gzip, version).await;
        assert_eq!(task.failed_requests(), 0, "{messages:?}");
        received.push(task.received_bytes / task.completed_requests());
    }
    assert!(received[0] > 5000 && received[1] < 1000 && received[2] < 1000, "{received:?}");
}

#[tokio::test]
async fn failed_check_fails_the_request_and_keeps_the_connection() {
    let target = Target::start(Tls::None).await;
    for (check, expected_kind, expected_message) in [
        (json!({"bodyContains": "nope"}), "check_body", "bodyContains \"nope\": not found in the"),
        (json!({"header": "etag"}), "check_header", "the response has no such header"),
        (json!({"jsonPath": "$.status", "equals": "no"}), "check_json", "the value is \"ok\""),
    ] {
        let task_spec = json!({"path": "/json", "checks": [check]});
        let before = target.count(|stats| &stats.connections);
        let (kind, message) = run_failing_task(&target, task_spec).await;
        assert_eq!(kind, expected_kind);
        assert!(message.contains(expected_message), "{message}");
        assert_eq!(target.count(|stats| &stats.connections) - before, 2, "{kind}");
    }
}
