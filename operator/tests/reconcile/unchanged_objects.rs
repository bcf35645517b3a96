//! A test with a Job that does not change is not read again.

use k8s_openapi::jiff::SignedDuration;

use super::*;

/// The responses of a first reconciliation, which finds no result, stores one, and gets `last` for its status.
fn first_responses(test: &Value, job: Value, last: (u16, Value)) -> Vec<(u16, Value)> {
    let result = child_object("loadtest.cell0.io/v1alpha1", "LoadTestResult", UID);
    let pods = pod_list(&[ready_pod(0), ready_pod(1)]);
    vec![ok(test.clone()), ok(job), pods, not_found(), ok(result), last]
}

/// Returns a running test whose runners can't be reached, and its Job.
fn running_test() -> (Value, Value) {
    let mut test = test_in_phase("Running");
    test["status"]["summary"] = json!({"requests": 7, "failures": 0, "errorRate": "0%"});
    let mut job = child_object("batch/v1", "Job", UID);
    // Start orders are no longer sent.
    let at = Timestamp::now() - SignedDuration::from_secs(30);
    let start = json!({"at": at.to_string(), "pods": ["pod-0", "pod-1"]});
    job["metadata"]["annotations"] = json!({"loadtest.cell0.io/start": start.to_string()});
    (test, job)
}

#[tokio::test]
async fn test_that_does_not_change_is_read_once() {
    let (test, job) = running_test();
    let context = OnceCell::new();
    let mut written = test.clone();
    written["metadata"]["resourceVersion"] = "43".into();
    let seen = first_responses(&test, job.clone(), ok(written.clone()));
    let first = run_reconcile_again(&context, test.clone(), seen).await;
    assert!(first.result.is_ok(), "{:?} {:?}", first.result, first.calls);
    assert_eq!(first.calls.last().unwrap(), &format!("PATCH {TEST}/status"));
    // The watch tells what was read, then what this process has written, then a change by others.
    for unchanged in [&test, &written] {
        let again = run_reconcile_again(&context, unchanged.clone(), Vec::new()).await;
        assert!(again.result.is_ok() && again.calls.is_empty(), "{:?}", again.calls);
    }
    let mut edited = written.clone();
    edited["metadata"]["resourceVersion"] = "44".into();
    let seen = vec![ok(edited.clone()), ok(job), pod_list(&[ready_pod(0), ready_pod(1)])];
    let last = run_reconcile_again(&context, edited, seen).await;
    assert_eq!(last.calls[0], format!("GET {TEST}"));
}

#[tokio::test]
async fn test_that_waits_for_its_runners_is_read_once() {
    let test = test_in_phase("Starting");
    let job = child_object("batch/v1", "Job", UID);
    let waiting = |index| {
        let mut pod = ready_pod(index);
        pod["status"] = json!({"phase": "Pending"});
        pod
    };
    let context = OnceCell::new();
    let mut written = test.clone();
    written["metadata"]["resourceVersion"] = "43".into();
    let pods = pod_list(&[waiting(0), waiting(1)]);
    let seen = vec![ok(test.clone()), ok(job), pods, ok(written.clone())];
    let first = run_reconcile_again(&context, test, seen).await;
    assert_eq!(first.calls.last().unwrap(), &format!("PATCH {TEST}/status"), "{:?}", first.calls);
    // This API server has not kept the condition that was written, so it is written again.
    let again = run_reconcile_again(&context, written.clone(), vec![ok(written)]).await;
    assert!(again.result.is_ok(), "{:?}", again.result);
    assert_eq!(again.calls, [format!("PATCH {TEST}/status")]);
}

#[tokio::test]
async fn test_is_read_again_after_a_failed_write() {
    let (test, job) = running_test();
    let context = OnceCell::new();
    let seen = first_responses(&test, job, refusal(409, "Conflict"));
    let first = run_reconcile_again(&context, test.clone(), seen).await;
    assert!(first.result.is_err(), "{:?}", first.calls);
    let again = run_reconcile_again(&context, test, Vec::new()).await;
    assert_eq!(again.calls[0], format!("GET {TEST}"));
}
