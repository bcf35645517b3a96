//! Pods with the labels of a runner that somebody else has created.

use super::*;

#[tokio::test]
async fn a_pod_without_the_job_as_its_owner_is_no_runner() {
    let starting = test_in_phase("Starting");
    let mut foreign = ready_pod(1);
    foreign["metadata"]["ownerReferences"] = json!([]);
    let responses = vec![
        ok(starting.clone()),
        ok(child_object("batch/v1", "Job", UID)),
        pod_list(&[ready_pod(0), foreign]),
        ok(starting.clone()),
    ];
    let Reconciled { result, calls, bodies } = run_reconcile(starting, responses).await;
    result.unwrap();
    // The test does not start, and the status counts one runner.
    assert_eq!(calls[3..], [format!("PATCH {TEST}/status")]);
    assert_eq!(bodies[3]["status"]["progress"]["runners"], 1);
}
