//! The Event about the end of a test.

use super::*;

/// Returns a test that has just passed.
fn passed_test() -> Value {
    let mut over = test_in_phase("Finished");
    over["status"]["verdict"] = "Pass".into();
    over["status"]["finishTime"] = Timestamp::now().to_string().into();
    over["status"]["conditions"] = json!([{
        "type": "Finished", "status": "True", "reason": "ThresholdsPassed", "observedGeneration": 1,
        "message": "all thresholds passed", "lastTransitionTime": Timestamp::now().to_string(),
    }]);
    over
}

#[tokio::test]
async fn event_that_the_last_leader_did_not_publish_is_published_once() {
    let (context, over) = (OnceCell::new(), passed_test());
    let objects = || vec![ok(over.clone()), not_found()];
    // The API server is overloaded, so the Event comes later.
    let responses = [objects(), vec![refusal(429, "TooManyRequests")]].concat();
    let first = run_reconcile_again(&context, over.clone(), responses).await;
    assert!(first.result.unwrap_err().to_string().contains("Event about the end of burst"));
    let responses = [objects(), vec![(201, json!({}))]].concat();
    let second = run_reconcile_again(&context, over.clone(), responses).await;
    assert_eq!(second.result.unwrap(), Action::await_change());
    let event = &second.bodies[2];
    assert_eq!(second.calls[2], format!("POST {EVENTS}"));
    assert_eq!((&event["reason"], &event["type"]), (&json!("Finished"), &json!("Normal")));
    assert_eq!(event["note"], "Pass: all thresholds passed");
    assert_eq!(event["metadata"]["name"], first.bodies[2]["metadata"]["name"]);
    let third = run_reconcile_again(&context, over.clone(), objects()).await;
    assert_eq!(third.calls.len(), 2, "{:?}", third.calls);
    // Another process has published it already.
    let responses = [objects(), vec![refusal(409, "AlreadyExists")]].concat();
    let other = run_reconcile(over, responses).await;
    assert_eq!(other.result.unwrap(), Action::await_change());
}
