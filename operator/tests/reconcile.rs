//! Reconciliations against a mocked API server: API calls, their order, and the handling of the
//! responses 404, 409 and 503.

#![allow(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::{cell::OnceCell, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, client::Body, core::DeserializeGuard, runtime::controller::Action};
use loadtest_children::{Settings, child_name};
use loadtest_core::resource::LoadTest;
use loadtest_operator::{
    context::Context,
    error::Error,
    reconcile::{on_error, reconcile},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tower_test::mock::Handle;

#[path = "reconcile/earlier_versions.rs"]
mod earlier_versions;
#[path = "reconcile/endings.rs"]
mod endings;
#[path = "reconcile/fairness.rs"]
mod fairness;
#[path = "reconcile/foreign_pods.rs"]
mod foreign_pods;
#[path = "reconcile/retries.rs"]
mod retries;
#[path = "reconcile/start_orders.rs"]
mod start_orders;
#[path = "reconcile/unchanged_objects.rs"]
mod unchanged_objects;
#[path = "reconcile/unread_api_server.rs"]
mod unread_api_server;

const UID: &str = "0a1b2c3d-1111-4222-8333-444455556666";
const TEST: &str = "/apis/loadtest.cell0.io/v1alpha1/namespaces/default/loadtests/burst";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

/// Result and API calls of one reconciliation.
struct Reconciled {
    result: Result<Action, Error>,
    /// Method and path of every call, in order.
    calls: Vec<String>,
    /// Request bodies of the calls.
    bodies: Vec<Value>,
}

fn context_with(client: Client) -> Context {
    let settings = Settings {
        runner_image: "loadtest-runner:test".into(),
        start_timeout: loadtest_core::Duration::from_secs(300),
        release_grace: loadtest_core::Duration::from_secs(300),
        metrics_linger: loadtest_core::Duration::from_secs(35),
        runner_peers: None,
    };
    Context::with_token_key(client, settings, vec![7; 32]).unwrap()
}

/// A context and the API server behind it.
type MockedContext = (Arc<Context>, Mutex<Handle<Request<Body>, Response<Body>>>);

/// Runs one reconciliation. API call *n* gets response *n*, and all later calls get a 500.
async fn run_reconcile(object: Value, responses: Vec<(u16, Value)>) -> Reconciled {
    run_reconcile_again(&OnceCell::new(), object, responses).await
}

/// Runs one reconciliation in a context that several reconciliations share.
async fn run_reconcile_again(
    context: &OnceCell<MockedContext>,
    object: Value,
    responses: Vec<(u16, Value)>,
) -> Reconciled {
    let (context, handle) = context.get_or_init(|| {
        let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        (Arc::new(context_with(Client::new(service, "default"))), Mutex::new(handle))
    });
    let mut handle = handle.lock().await;
    let guard: DeserializeGuard<LoadTest> = serde_json::from_value(object).unwrap();
    let mut work = Box::pin(reconcile(Arc::new(guard), Arc::clone(context)));
    let (mut calls, mut bodies) = (Vec::new(), Vec::new());
    let mut responses = responses.into_iter();
    loop {
        tokio::select! {
            result = &mut work => return Reconciled { result, calls, bodies },
            Some((request, send)) = handle.next_request() => {
                calls.push(format!("{} {}", request.method(), request.uri().path()));
                let bytes = request.into_body().collect_bytes().await.unwrap();
                bodies.push(serde_json::from_slice(&bytes).unwrap_or(Value::Null));
                let (code, body) = responses.next().unwrap_or((500, json!({})));
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

fn not_found() -> (u16, Value) {
    refusal(404, "NotFound")
}

/// Returns a test of 200 users on two runners.
fn test_with_status(status: Value) -> Value {
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

/// Returns a test that was launched.
fn test_in_phase(phase: &str) -> Value {
    let sizing = json!({
        "runners": 2, "usersPerRunner": 100, "ratePerRunner": "50/s", "threadsPerRunner": 1, "cpu": "100m", "memory": "64Mi",
    });
    let mut test =
        test_with_status(json!({"observedGeneration": 1, "phase": phase, "plan": sizing}));
    test["metadata"]["annotations"] = json!({"loadtest.cell0.io/run-uid": UID});
    test
}

fn job_name() -> String {
    child_name(&serde_json::from_value(test_with_status(Value::Null)).unwrap())
}

fn job_path() -> String {
    format!("{JOBS}/{}", job_name())
}

/// Returns a child object that the test with this UID owns.
fn child_object(api_version: &str, kind: &str, owner_uid: &str) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {
            "name": job_name(), "namespace": "default", "uid": "child", "resourceVersion": "7",
            "creationTimestamp": Timestamp::now().to_string(),
            "ownerReferences": [{
                "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest", "name": "burst",
                "uid": owner_uid, "controller": true,
            }],
        },
    })
}

fn ready_pod(index: u32) -> Value {
    json!({
        "metadata": {
            "name": format!("{}-{index}", job_name()), "uid": format!("pod-{index}"),
            "creationTimestamp": Timestamp::now().to_string(),
            "labels": {"batch.kubernetes.io/job-completion-index": index.to_string()},
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": job_name(), "uid": "child",
                "controller": true,
            }],
        },
        "status": {
            "phase": "Running", "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn pod_list(pods: &[Value]) -> (u16, Value) {
    (200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods}))
}

fn ok(object: Value) -> (u16, Value) {
    (200, object)
}

#[tokio::test]
async fn admission_write_carries_uid_and_resource_version() {
    let new = test_with_status(Value::Null);
    let job = (201, child_object("batch/v1", "Job", UID));
    let responses =
        vec![ok(new.clone()), not_found(), job, ok(test_in_phase("Pending")), (201, json!({}))];
    let Reconciled { result, calls, bodies } = run_reconcile(new, responses).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::ZERO));
    let job = job_path();
    assert_eq!(
        calls,
        [
            format!("GET {TEST}"),
            format!("GET {job}"),
            // A dry run.
            format!("POST {JOBS}"),
            format!("PATCH {TEST}/status"),
            format!("POST {EVENTS}"),
        ]
    );
    assert_eq!(bodies[3]["metadata"]["uid"], UID);
    assert_eq!(bodies[3]["metadata"]["resourceVersion"], "42");
    assert_eq!(bodies[3]["status"]["phase"], "Pending");
    assert_eq!(bodies[3]["status"]["plan"]["runners"], 2);
    assert_eq!(bodies[4]["reason"], "Accepted");
}

#[tokio::test]
async fn rejected_event_changes_nothing_else() {
    let new = test_with_status(Value::Null);
    let job = (201, child_object("batch/v1", "Job", UID));
    let forbidden = refusal(403, "Forbidden");
    let responses =
        vec![ok(new.clone()), not_found(), job, ok(test_in_phase("Pending")), forbidden];
    let Reconciled { result, .. } = run_reconcile(new, responses).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::ZERO));
}

#[tokio::test]
async fn edit_during_admission_fails_the_status_write() {
    let new = test_with_status(Value::Null);
    let job = (201, child_object("batch/v1", "Job", UID));
    let responses = vec![ok(new.clone()), not_found(), job, refusal(409, "Conflict")];
    let Reconciled { result, calls, .. } = run_reconcile(new, responses).await;
    assert_eq!(
        result.unwrap_err().to_string(),
        "burst has changed since it was read; trying again"
    );
    assert_eq!(calls.len(), 4, "{calls:?}");
}

#[tokio::test]
async fn children_are_created_before_the_status_is_written() {
    let mut pending = test_in_phase("Pending");
    let mut launched = pending.clone();
    launched["metadata"]["resourceVersion"] = "43".into();
    pending["metadata"]["annotations"] = json!({});
    let responses = vec![
        ok(pending.clone()),
        not_found(),
        ok(launched),
        (201, child_object("v1", "ConfigMap", UID)),
        (201, child_object("batch/v1", "Job", UID)),
        ok(test_in_phase("Starting")),
        (201, json!({})),
    ];
    let Reconciled { result, calls, bodies } = run_reconcile(pending, responses).await;
    result.unwrap();
    assert_eq!(
        calls[2..6],
        [
            format!("PATCH {TEST}"),
            format!("POST {CONFIG_MAPS}"),
            format!("POST {JOBS}"),
            format!("PATCH {TEST}/status"),
        ]
    );
    // A backup keeps the record of the launch.
    assert_eq!(bodies[2]["metadata"]["resourceVersion"], "42");
    assert_eq!(bodies[2]["metadata"]["annotations"]["loadtest.cell0.io/run-uid"], UID);
    for child in &bodies[3..5] {
        assert_eq!(child["metadata"]["ownerReferences"][0]["uid"], UID);
    }
    assert_eq!(bodies[4]["spec"]["completions"], 2);
    assert_eq!(bodies[5]["status"]["phase"], "Starting");
    // Also a write that does not judge the spec: another replica may have written a later status.
    assert_eq!(bodies[5]["metadata"]["resourceVersion"], "43");
}

#[tokio::test]
async fn existing_child_with_the_same_owner_is_accepted() {
    let pending = test_in_phase("Pending");
    let responses = vec![
        ok(pending.clone()),
        not_found(),
        refusal(409, "AlreadyExists"),
        ok(child_object("v1", "ConfigMap", UID)),
        refusal(409, "AlreadyExists"),
        ok(child_object("batch/v1", "Job", UID)),
        ok(test_in_phase("Starting")),
        (201, json!({})),
    ];
    let Reconciled { result, bodies, .. } = run_reconcile(pending, responses).await;
    result.unwrap();
    assert_eq!(bodies[6]["status"]["phase"], "Starting");
}

#[tokio::test]
async fn child_of_a_predecessor_is_never_adopted() {
    let pending = test_in_phase("Pending");
    let responses = vec![
        ok(pending.clone()),
        not_found(),
        refusal(409, "AlreadyExists"),
        ok(child_object("v1", "ConfigMap", "another")),
        ok(test_in_phase("Error")),
        (201, json!({})),
    ];
    let Reconciled { result, calls, bodies } = run_reconcile(pending, responses).await;
    result.unwrap();
    assert!(!calls.contains(&format!("POST {JOBS}")), "{calls:?}");
    let status = bodies[4]["status"].to_string();
    assert!(status.contains("belongs to another owner") && status.contains("Refused"), "{status}");
}

#[tokio::test]
async fn refused_job_fails_the_test_with_the_api_servers_message() {
    let pending = test_in_phase("Pending");
    let responses = vec![
        ok(pending.clone()),
        not_found(),
        (201, child_object("v1", "ConfigMap", UID)),
        refusal(422, "spec.template.spec.containers[0].resources.requests: Invalid value"),
        ok(test_in_phase("Error")),
        (201, json!({})),
    ];
    let Reconciled { result, bodies, calls } = run_reconcile(pending.clone(), responses).await;
    result.unwrap();
    assert_eq!(bodies[4]["status"]["phase"], "Error", "{calls:?}");
    assert!(bodies[4]["status"].to_string().contains("resources.requests: Invalid value"));
    assert_eq!(bodies[5]["reason"], "Refused");
    // After a 503 the API server may accept the Job later, so the operator retries.
    let responses = vec![
        ok(pending.clone()),
        not_found(),
        (201, child_object("v1", "ConfigMap", UID)),
        refusal(503, "later"),
    ];
    let Reconciled { result, .. } = run_reconcile(pending, responses).await;
    assert!(result.unwrap_err().to_string().starts_with("failed to create"));
}

#[tokio::test]
async fn job_of_a_predecessor_is_ignored() {
    let starting = test_in_phase("Starting");
    let responses = vec![
        ok(starting.clone()),
        ok(child_object("batch/v1", "Job", "another")),
        ok(test_in_phase("Error")),
        (201, json!({})),
    ];
    let Reconciled { result, bodies, calls } = run_reconcile(starting, responses).await;
    result.unwrap();
    assert_eq!(bodies[2]["status"]["phase"], "Error", "{calls:?}");
    assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:?}");
}

#[tokio::test]
async fn start_record_is_written_before_any_start_order() {
    let starting = test_in_phase("Starting");
    let job = child_object("batch/v1", "Job", UID);
    let responses = vec![
        ok(starting.clone()),
        ok(job.clone()),
        pod_list(&[ready_pod(0), ready_pod(1)]),
        ok(job),
    ];
    let Reconciled { result, calls, bodies } = run_reconcile(starting, responses).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::ZERO));
    assert_eq!(calls[3..], [format!("PATCH {}", job_path())]);
    assert_eq!(bodies[3]["metadata"]["resourceVersion"], "7");
    let record = bodies[3]["metadata"]["annotations"]["loadtest.cell0.io/start"].as_str().unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    assert_eq!(record["pods"], json!(["pod-0", "pod-1"]));
}

#[tokio::test]
async fn conflict_on_the_start_record_fails_the_reconciliation() {
    let starting = test_in_phase("Starting");
    let responses = vec![
        ok(starting.clone()),
        ok(child_object("batch/v1", "Job", UID)),
        pod_list(&[ready_pod(0), ready_pod(1)]),
        refusal(409, "Conflict"),
    ];
    let Reconciled { result, calls, .. } = run_reconcile(starting, responses).await;
    assert!(result.unwrap_err().to_string().starts_with("failed to record the start in job"));
    assert_eq!(calls.len(), 4, "{calls:?}");
}

#[tokio::test]
async fn deleted_test_is_left_alone() {
    let object = test_in_phase("Starting");
    let Reconciled { result, calls, .. } = run_reconcile(object.clone(), vec![not_found()]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls.len(), 1);
    let mut deleting = object.clone();
    deleting["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z".into();
    let Reconciled { result, calls, .. } = run_reconcile(object, vec![ok(deleting)]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls.len(), 1);
}

#[tokio::test]
async fn finished_test_causes_only_reads() {
    let over = test_in_phase("Finished");
    let Reconciled { result, calls, .. } =
        run_reconcile(over.clone(), vec![ok(over), not_found()]).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls, [format!("GET {TEST}"), format!("GET {}", job_path())]);
}

#[tokio::test]
async fn unchanged_status_is_not_written_again() {
    let mut starting = test_in_phase("Starting");
    starting["status"]["progress"] =
        json!({"runners": 1, "users": 0, "elapsed": "0s", "percent": 0});
    starting["status"]["conditions"] = json!([{
        "type": "Started", "status": "False", "reason": "Pending", "observedGeneration": 1,
        "message": "1 of 2 runners ready", "lastTransitionTime": "2026-11-24T12:00:00Z",
    }]);
    let job = child_object("batch/v1", "Job", UID);
    let responses = vec![ok(starting.clone()), ok(job), pod_list(&[ready_pod(0)])];
    let Reconciled { result, calls, .. } = run_reconcile(starting, responses).await;
    assert_eq!(result.unwrap(), Action::requeue(Duration::from_secs(1)));
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
}

#[tokio::test]
async fn unavailable_api_server_fails_without_writes() {
    let object = test_in_phase("Pending");
    let down = refusal(503, "ServiceUnavailable");
    let Reconciled { result, calls, .. } = run_reconcile(object.clone(), vec![down.clone()]).await;
    assert_eq!(result.unwrap_err().to_string(), "failed to get loadtest burst");
    // The client may repeat a read.
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
    let Reconciled { result, calls, .. } =
        run_reconcile(object.clone(), vec![ok(object), down]).await;
    assert!(result.unwrap_err().to_string().starts_with("failed to get job"));
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
}

#[tokio::test]
async fn undecodable_object_is_left_untouched_in_every_phase() {
    for phase in [None, Some("Pending"), Some("Running"), Some("Finished"), Some("Error")] {
        let mut broken = phase.map_or_else(|| test_with_status(Value::Null), test_in_phase);
        broken["spec"]["load"]["users"] = "many".into();
        let responses = vec![ok(broken.clone()), (201, json!({}))];
        let Reconciled { result, calls, bodies } = run_reconcile(broken, responses).await;
        assert_eq!(result.unwrap(), Action::await_change());
        assert_eq!(calls, [format!("GET {TEST}"), format!("POST {EVENTS}")]);
        assert_eq!(
            (&bodies[1]["reason"], &bodies[1]["type"]),
            (&json!("Undecodable"), &json!("Warning"))
        );
        assert!(bodies[1]["note"].as_str().unwrap().contains("many"), "{}", bodies[1]);
    }
}

#[tokio::test]
async fn job_that_would_be_refused_is_rejected_before_the_launch() {
    let new = test_with_status(Value::Null);
    let responses = vec![
        ok(new.clone()),
        not_found(),
        refusal(422, "spec.template.spec.containers[0].resources.requests[cpu]: Invalid value"),
        ok(test_in_phase("Error")),
        (201, json!({})),
    ];
    let Reconciled { result, calls, bodies } = run_reconcile(new, responses).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert_eq!(calls[2..4], [format!("POST {JOBS}"), format!("PATCH {TEST}/status")]);
    let accepted = &bodies[3]["status"]["conditions"][0];
    assert_eq!((&accepted["type"], &accepted["status"]), (&json!("Accepted"), &json!("False")));
    assert!(accepted["message"].as_str().unwrap().contains("requests[cpu]"), "{accepted}");
}
