//! Passes against a mocked API server: which calls, in which order, and what becomes of
//! 404, 409 and 503.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, client::Body, core::DeserializeGuard, runtime::controller::Action};
use loadtest_core::resource::LoadTest;
use loadtest_operator::{
    context::Context,
    error::Error,
    reconcile::{on_error, reconcile},
    resources::{Settings, child_name},
};
use serde_json::{Value, json};

const UID: &str = "0a1b2c3d-1111-4222-8333-444455556666";
const TEST: &str = "/apis/loadtest.cell0.io/v1alpha1/namespaces/default/loadtests/burst";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

/// What a pass did and what came of it.
struct Passed {
    result: Result<Action, Error>,
    /// Method and path of every call, in order.
    calls: Vec<String>,
    /// The calls' bodies.
    bodies: Vec<Value>,
}

fn context(client: Client) -> Context {
    let settings = Settings {
        runner_image: "loadtest-runner:test".into(),
        start_timeout: loadtest_core::Duration::from_secs(300),
        release_grace: loadtest_core::Duration::from_secs(300),
        metrics_linger: loadtest_core::Duration::from_secs(35),
    };
    Context::with_key(client, settings, vec![7; 32]).unwrap()
}

/// Runs one pass; call *n* gets answer *n*, later ones a 500.
async fn pass(object: Value, answers: Vec<(u16, Value)>) -> Passed {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let context = context(Client::new(service, "default"));
    let guard: DeserializeGuard<LoadTest> = serde_json::from_value(object).unwrap();
    let mut work = Box::pin(reconcile(Arc::new(guard), Arc::new(context)));
    let (mut calls, mut bodies) = (Vec::new(), Vec::new());
    let mut answers = answers.into_iter();
    loop {
        tokio::select! {
            result = &mut work => return Passed { result, calls, bodies },
            Some((request, send)) = handle.next_request() => {
                calls.push(format!("{} {}", request.method(), request.uri().path()));
                let bytes = request.into_body().collect_bytes().await.unwrap();
                bodies.push(serde_json::from_slice(&bytes).unwrap_or(Value::Null));
                let (code, body) = answers.next().unwrap_or((500, json!({})));
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let code = StatusCode::from_u16(code).unwrap();
                send.send_response(Response::builder().status(code).body(body).unwrap());
            }
        }
    }
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code,
    });
    (code, status)
}

fn missing() -> (u16, Value) {
    refusal(404, "NotFound")
}

/// 200 users on two runners.
fn test(status: Value) -> Value {
    let mut object = json!({
        "apiVersion": "loadtest.cell0.io/v1alpha1",
        "kind": "LoadTest",
        "metadata": {
            "name": "burst", "namespace": "default", "uid": UID, "generation": 1,
            "resourceVersion": "42", "creationTimestamp": Timestamp::now().to_string(),
        },
        "spec": {
            "target": {"http": "http://cell0:18800"},
            "load": {"users": 200, "spawnRate": 50, "duration": "2m"},
            "runners": {"usersPerRunner": 100},
            "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
        },
    });
    if !status.is_null() {
        object["status"] = status;
    }
    object
}

fn in_phase(phase: &str) -> Value {
    let sizing = json!({
        "runners": 2, "usersPerRunner": 100, "ratePerRunner": "50/s", "workers": 1, "cpu": "100m", "memory": "64Mi",
    });
    test(json!({"observedGeneration": 1, "phase": phase, "plan": sizing}))
}

fn name() -> String {
    child_name(&serde_json::from_value(test(Value::Null)).unwrap())
}

fn job_path() -> String {
    format!("{JOBS}/{}", name())
}

/// A child with the given owner.
fn child(api: &str, kind: &str, owner: &str) -> Value {
    json!({
        "apiVersion": api, "kind": kind,
        "metadata": {
            "name": name(), "namespace": "default", "uid": "child", "resourceVersion": "7",
            "creationTimestamp": Timestamp::now().to_string(),
            "ownerReferences": [{
                "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest", "name": "burst",
                "uid": owner, "controller": true,
            }],
        },
    })
}

fn pod(index: u32) -> Value {
    json!({
        "metadata": {
            "name": format!("{}-{index}", name()), "uid": format!("pod-{index}"),
            "creationTimestamp": Timestamp::now().to_string(),
            "labels": {"batch.kubernetes.io/job-completion-index": index.to_string()},
        },
        "status": {
            "phase": "Running", "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn pods(list: &[Value]) -> (u16, Value) {
    (200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": list}))
}

fn ok(object: Value) -> (u16, Value) {
    (200, object)
}

#[tokio::test]
async fn a_new_test_is_admitted_in_one_write_of_its_very_version() {
    let new = test(Value::Null);
    let answers = vec![ok(new.clone()), missing(), ok(in_phase("Pending")), (201, json!({}))];
    let Passed { result, calls, bodies } = pass(new, answers).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::ZERO));
    let job = job_path();
    assert_eq!(
        calls,
        [
            format!("GET {TEST}"),
            format!("GET {job}"),
            format!("PATCH {TEST}/status"),
            format!("POST {EVENTS}"),
        ]
    );
    assert_eq!(bodies[2]["metadata"]["uid"], UID);
    assert_eq!(bodies[2]["metadata"]["resourceVersion"], "42");
    assert_eq!(bodies[2]["status"]["phase"], "Pending");
    assert_eq!(bodies[2]["status"]["plan"]["runners"], 2);
    assert_eq!(bodies[3]["reason"], "Accepted");
}

#[tokio::test]
async fn an_event_that_is_refused_changes_nothing_else() {
    let new = test(Value::Null);
    let answers =
        vec![ok(new.clone()), missing(), ok(in_phase("Pending")), refusal(403, "Forbidden")];
    let Passed { result, .. } = pass(new, answers).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::ZERO));
}

#[tokio::test]
async fn an_edit_in_between_is_looked_at_first() {
    let new = test(Value::Null);
    let answers = vec![ok(new.clone()), missing(), refusal(409, "Conflict")];
    let Passed { result, calls, .. } = pass(new, answers).await;
    assert_eq!(result.unwrap_err().to_string(), "failed to write the status of loadtest burst");
    assert_eq!(calls.len(), 3, "{calls:?}");
}

#[tokio::test]
async fn children_are_created_before_the_status_tells_of_them() {
    let pending = in_phase("Pending");
    let answers = vec![
        ok(pending.clone()),
        missing(),
        (201, child("v1", "ConfigMap", UID)),
        (201, child("batch/v1", "Job", UID)),
        ok(in_phase("Starting")),
        (201, json!({})),
    ];
    let Passed { result, calls, bodies } = pass(pending, answers).await;
    result.unwrap();
    assert_eq!(
        calls[2..5],
        [format!("POST {CONFIG_MAPS}"), format!("POST {JOBS}"), format!("PATCH {TEST}/status"),]
    );
    for child in &bodies[2..4] {
        assert_eq!(child["metadata"]["ownerReferences"][0]["uid"], UID);
    }
    assert_eq!(bodies[3]["spec"]["completions"], 2);
    assert_eq!(bodies[4]["status"]["phase"], "Starting");
}

#[tokio::test]
async fn a_child_that_exists_is_ours_when_its_owner_is() {
    let pending = in_phase("Pending");
    let answers = vec![
        ok(pending.clone()),
        missing(),
        refusal(409, "AlreadyExists"),
        ok(child("v1", "ConfigMap", UID)),
        refusal(409, "AlreadyExists"),
        ok(child("batch/v1", "Job", UID)),
        ok(in_phase("Starting")),
        (201, json!({})),
    ];
    let Passed { result, bodies, .. } = pass(pending, answers).await;
    result.unwrap();
    assert_eq!(bodies[6]["status"]["phase"], "Starting");
}

#[tokio::test]
async fn a_child_of_a_predecessor_is_never_adopted() {
    let pending = in_phase("Pending");
    let answers = vec![
        ok(pending.clone()),
        missing(),
        refusal(409, "AlreadyExists"),
        ok(child("v1", "ConfigMap", "another")),
        ok(in_phase("Error")),
        (201, json!({})),
    ];
    let Passed { result, calls, bodies } = pass(pending, answers).await;
    result.unwrap();
    assert!(!calls.contains(&format!("POST {JOBS}")), "{calls:?}");
    let told = bodies[4]["status"].to_string();
    assert!(told.contains("belongs to another owner") && told.contains("Refused"), "{told}");
}

#[tokio::test]
async fn a_job_that_the_api_server_refuses_ends_the_test_in_its_words() {
    let pending = in_phase("Pending");
    let answers = vec![
        ok(pending.clone()),
        missing(),
        (201, child("v1", "ConfigMap", UID)),
        refusal(422, "spec.template.spec.containers[0].resources.requests: Invalid value"),
        ok(in_phase("Error")),
        (201, json!({})),
    ];
    let Passed { result, bodies, calls } = pass(pending.clone(), answers).await;
    result.unwrap();
    assert_eq!(bodies[4]["status"]["phase"], "Error", "{calls:?}");
    assert!(bodies[4]["status"].to_string().contains("resources.requests: Invalid value"));
    assert_eq!(bodies[5]["reason"], "Refused");
    // One that may be taken later is tried again.
    let answers = vec![
        ok(pending.clone()),
        missing(),
        (201, child("v1", "ConfigMap", UID)),
        refusal(503, "later"),
    ];
    let Passed { result, .. } = pass(pending, answers).await;
    assert!(result.unwrap_err().to_string().starts_with("failed to create"));
}

#[tokio::test]
async fn a_predecessors_job_is_not_seen() {
    let starting = in_phase("Starting");
    let answers = vec![
        ok(starting.clone()),
        ok(child("batch/v1", "Job", "another")),
        ok(in_phase("Error")),
        (201, json!({})),
    ];
    let Passed { result, bodies, calls } = pass(starting, answers).await;
    result.unwrap();
    assert_eq!(bodies[2]["status"]["phase"], "Error", "{calls:?}");
    assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:?}");
}

#[tokio::test]
async fn the_start_is_durable_before_any_order() {
    let starting = in_phase("Starting");
    let job = child("batch/v1", "Job", UID);
    let answers = vec![ok(starting.clone()), ok(job.clone()), pods(&[pod(0), pod(1)]), ok(job)];
    let Passed { result, calls, bodies } = pass(starting, answers).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::ZERO));
    assert_eq!(calls[3..], [format!("PATCH {}", job_path())]);
    assert_eq!(bodies[3]["metadata"]["resourceVersion"], "7");
    let record = bodies[3]["metadata"]["annotations"]["loadtest.cell0.io/start"].as_str().unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    assert_eq!(record["pods"], json!(["pod-0", "pod-1"]));
}

#[tokio::test]
async fn a_start_that_another_has_made_is_read_again() {
    let starting = in_phase("Starting");
    let answers = vec![
        ok(starting.clone()),
        ok(child("batch/v1", "Job", UID)),
        pods(&[pod(0), pod(1)]),
        refusal(409, "Conflict"),
    ];
    let Passed { result, calls, .. } = pass(starting, answers).await;
    assert!(result.unwrap_err().to_string().starts_with("failed to record the start in job"));
    assert_eq!(calls.len(), 4, "{calls:?}");
}

#[tokio::test]
async fn a_test_that_is_gone_or_going_is_left_alone() {
    let object = in_phase("Starting");
    let Passed { result, calls, .. } = pass(object.clone(), vec![missing()]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls.len(), 1);
    let mut going = object.clone();
    going["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z".into();
    let Passed { result, calls, .. } = pass(object, vec![ok(going)]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls.len(), 1);
}

#[tokio::test]
async fn a_finished_test_costs_reads_only() {
    let over = in_phase("Finished");
    let Passed { result, calls, .. } = pass(over.clone(), vec![ok(over), missing()]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls, [format!("GET {TEST}"), format!("GET {}", job_path())]);
}

#[tokio::test]
async fn waiting_for_runners_writes_nothing_that_is_written_already() {
    let mut starting = in_phase("Starting");
    starting["status"]["progress"] =
        json!({"runners": 1, "users": 0, "elapsed": "0s", "percent": 0});
    let job = child("batch/v1", "Job", UID);
    let answers = vec![ok(starting.clone()), ok(job), pods(&[pod(0)])];
    let Passed { result, calls, .. } = pass(starting, answers).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::from_secs(1)));
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
}

#[tokio::test]
async fn an_api_server_that_is_down_fails_the_pass_and_nothing_is_written() {
    let object = in_phase("Pending");
    let down = refusal(503, "ServiceUnavailable");
    let Passed { result, calls, .. } = pass(object.clone(), vec![down.clone()]).await;
    assert_eq!(result.unwrap_err().to_string(), "failed to get loadtest burst");
    // The client itself asks again; all it does is ask.
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
    let Passed { result, calls, .. } = pass(object.clone(), vec![ok(object), down]).await;
    assert!(result.unwrap_err().to_string().starts_with("failed to get job"));
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
}

#[tokio::test]
async fn an_object_that_cannot_be_read_says_so_once() {
    let mut broken = test(Value::Null);
    broken["spec"]["load"]["users"] = "many".into();
    let answers = vec![ok(broken.clone()), ok(broken.clone()), ok(json!({}))];
    let Passed { result, calls, bodies } = pass(broken.clone(), answers).await;
    assert_eq!(result.unwrap(), Action::await_change());
    let event = format!("POST {EVENTS}");
    assert_eq!(calls[..3], [format!("GET {TEST}"), format!("PATCH {TEST}/status"), event]);
    assert_eq!(bodies[1]["status"]["conditions"][0]["reason"], "Undecodable");
    assert_eq!(
        (&bodies[2]["reason"], &bodies[2]["type"]),
        (&json!("Undecodable"), &json!("Warning"))
    );
    let message = bodies[1]["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("many"), "{message}");
    broken["status"] = bodies[1]["status"].clone();
    let Passed { result, calls, .. } = pass(broken.clone(), vec![ok(broken)]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls, [format!("GET {TEST}")]);
}

#[tokio::test]
async fn failed_passes_come_again_later_and_later() {
    let (service, _handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let context = Arc::new(context(Client::new(service, "default")));
    let guard: DeserializeGuard<LoadTest> = serde_json::from_value(test(Value::Null)).unwrap();
    let guard = Arc::new(guard);
    let pauses = [1, 2, 4, 8, 10, 10];
    for seconds in pauses {
        let action = on_error(
            Arc::clone(&guard),
            &Error::Timeout(Duration::from_secs(150)),
            Arc::clone(&context),
        );
        assert_eq!(action, Action::requeue(Duration::from_secs(seconds)));
    }
}
