//! Tests that an earlier version of the operator accepted.

use super::*;

#[tokio::test]
async fn plan_of_an_earlier_build_is_still_readable() {
    let mut over = test_in_phase("Finished");
    over["status"]["plan"].as_object_mut().unwrap().remove("threadsPerRunner");
    let Reconciled { calls, .. } = run_reconcile(over.clone(), vec![ok(over), not_found()]).await;
    assert_eq!(calls, [format!("GET {TEST}"), format!("GET {}", job_path())]);
}

/// Returns a test in a phase with a plan. Its spec has become invalid: two tasks have one name.
fn invalid_test_in_phase(phase: &str) -> Value {
    let mut object = test_in_phase(phase);
    let task = object["spec"]["scenario"]["tasks"][0].clone();
    object["spec"]["scenario"]["tasks"].as_array_mut().unwrap().push(task);
    object
}

#[tokio::test]
async fn test_with_an_invalid_spec_runs_on_by_its_plan() {
    let admitted = test_in_phase("Pending");
    let responses = vec![ok(admitted.clone()), not_found(), (201, json!({})), (201, json!({}))];
    let Reconciled { bodies, .. } = run_reconcile(admitted, responses).await;
    let mut config_map = child_object("v1", "ConfigMap", UID);
    config_map["data"] = bodies[2]["data"].clone();
    let starting = invalid_test_in_phase("Starting");
    let responses = vec![
        ok(starting.clone()),
        ok(child_object("batch/v1", "Job", UID)),
        pod_list(&[ready_pod(0)]),
        ok(config_map),
        ok(starting.clone()),
    ];
    let Reconciled { result, bodies, calls } = run_reconcile(starting, responses).await;
    result.unwrap();
    assert_eq!(calls[3], format!("GET {CONFIG_MAPS}/{}", job_name()));
    assert_eq!(bodies[4]["status"]["progress"]["runners"], 1, "{calls:?}");
}

#[tokio::test]
async fn test_with_an_invalid_spec_and_no_plan_fails() {
    let starting = invalid_test_in_phase("Starting");
    let responses = vec![
        ok(starting.clone()),
        ok(child_object("batch/v1", "Job", UID)),
        pod_list(&[]),
        not_found(),
        ok(starting.clone()),
        (201, json!({})),
    ];
    let Reconciled { result, bodies, calls } = run_reconcile(starting, responses).await;
    result.unwrap();
    let status = &bodies[4]["status"];
    assert_eq!(status["phase"], "Error", "{calls:?}");
    let conditions = status["conditions"].as_array().unwrap();
    let finished = conditions.iter().find(|c| c["type"] == "Finished").unwrap();
    assert_eq!((&finished["status"], &finished["reason"]), (&json!("True"), &json!("InvalidSpec")));
}
