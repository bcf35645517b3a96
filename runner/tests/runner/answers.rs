//! What an answer must be: followed, taken out of its compression, and checked.

use std::collections::BTreeMap;

use loadtest_core::{metrics::TaskNumbers, resource::HttpVersion};
use serde_json::{Value, json};

use crate::{
    load::{only, run},
    target::{Target, Tls},
};

/// A short run of one task; its numbers, and what was told of its errors.
async fn result(
    target: &Target,
    task: Value,
    gzip: bool,
    version: HttpVersion,
) -> (TaskNumbers, BTreeMap<String, String>) {
    let mut plan = target.plan(2, task).await;
    (plan.target.gzip, plan.target.http_version) = (gzip, version);
    let found = run(plan).await;
    let task = only(&found.numbers).clone();
    assert!(task.completed() > 5, "{:?}", task.requests);
    (task, found.examples.into_iter().map(|((_, kind), told)| (kind, told)).collect())
}

/// The only kind of error that all requests ended in, with what was told of it.
async fn failure(target: &Target, task: Value) -> (String, String) {
    let (task, told) = result(target, task, false, HttpVersion::Http1).await;
    assert_eq!(task.completed(), task.failures());
    assert_eq!(told.len(), 1, "{told:?}");
    told.into_iter().next().unwrap()
}

#[tokio::test]
async fn redirects_are_followed_as_often_as_the_spec_allows() {
    let target = Target::start(Tls::None).await;
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let task = json!({"path": "/moved-for-good", "maxRedirects": 2, "expectStatus": [200]});
        let before = target.count(|seen| &seen.requests);
        let (task, told) = result(&target, task, false, version).await;
        assert_eq!(task.failures(), 0, "{told:?}");
        assert_eq!(target.count(|seen| &seen.requests) - before, task.completed());
    }
    let task = json!({"path": "/moved-for-good", "maxRedirects": 1});
    let (kind, told) = failure(&target, task).await;
    assert_eq!(kind, "redirect");
    assert!(told.contains("one redirect too many, to \"ok\""), "{told}");
    let (kind, _) = failure(&target, json!({"path": "/loop", "maxRedirects": 20})).await;
    assert_eq!(kind, "redirect");
}

#[tokio::test]
async fn a_redirect_is_an_answer_as_any_other_unless_the_spec_says_so() {
    let target = Target::start(Tls::None).await;
    let task = json!({"path": "/moved", "expectStatus": [303]});
    let (task, told) = result(&target, task, false, HttpVersion::Http1).await;
    assert_eq!(task.failures(), 0, "{told:?}");
    assert_eq!(target.count(|seen| &seen.requests), 0);
}

#[tokio::test]
async fn load_never_leaves_the_target() {
    let target = Target::start(Tls::None).await;
    let (kind, told) = failure(&target, json!({"path": "/away", "maxRedirects": 5})).await;
    assert_eq!(kind, "redirect");
    assert!(told.contains("out of the target"), "{told}");
}

#[tokio::test]
async fn checks_read_what_was_compressed() {
    let target = Target::start(Tls::None).await;
    let task = json!({"path": "/json", "checks": [
        {"header": "content-type", "contains": "json"},
        {"jsonPath": "$.items[*].id", "equals": "7"},
        {"bodyContains": "\"status\":\"ok\""},
    ]});
    let mut received = Vec::new();
    for (gzip, version) in
        [(false, HttpVersion::Http1), (true, HttpVersion::Http1), (true, HttpVersion::Http2)]
    {
        let (task, told) = result(&target, task.clone(), gzip, version).await;
        assert_eq!(task.failures(), 0, "{told:?}");
        received.push(task.received_bytes / task.completed());
    }
    assert!(received[0] > 5000 && received[1] < 1000 && received[2] < 1000, "{received:?}");
}

#[tokio::test]
async fn an_answer_that_fails_a_check_has_failed_and_keeps_its_connection() {
    let target = Target::start(Tls::None).await;
    for (check, kind, says) in [
        (json!({"bodyContains": "nope"}), "check_body", "bodyContains \"nope\": it is not in the"),
        (json!({"header": "etag"}), "check_header", "the answer has no such header"),
        (json!({"jsonPath": "$.status", "equals": "no"}), "check_json", "it is \"ok\""),
    ] {
        let task = json!({"path": "/json", "checks": [check]});
        let before = target.count(|seen| &seen.connections);
        let (found, told) = failure(&target, task).await;
        assert_eq!(found, kind);
        assert!(told.contains(says), "{told}");
        assert_eq!(target.count(|seen| &seen.connections) - before, 2, "{kind}");
    }
}
