//! What failed is tried again, and told.

use super::*;

#[tokio::test]
async fn launch_that_fails_three_times_is_told() {
    let pending = test_in_phase("Pending");
    let context = OnceCell::new();
    for attempt in 1..=3 {
        let webhook = refusal(500, "failed calling webhook");
        let mut responses = vec![ok(pending.clone()), not_found(), webhook];
        responses.extend([ok(test_in_phase("Pending")), (201, json!({}))]);
        let Reconciled { result, calls, bodies } =
            run_reconcile_again(&context, pending.clone(), responses).await;
        assert!(result.is_err());
        if attempt < 3 {
            assert_eq!(calls.len(), 3, "{calls:?}");
            continue;
        }
        assert_eq!(calls[3..], [format!("PATCH {TEST}/status"), format!("POST {EVENTS}")]);
        let conditions = bodies[3]["status"]["conditions"].as_array().unwrap();
        let started = conditions.iter().find(|c| c["type"] == "Started").unwrap();
        assert_eq!(started["reason"], "RetryingLaunch");
        assert!(started["message"].as_str().unwrap().contains("webhook"), "{started}");
    }
}

#[tokio::test]
async fn job_that_is_not_checked_three_times_is_told() {
    let new = test_with_status(Value::Null);
    let context = OnceCell::new();
    for attempt in 1..=3 {
        let webhook = refusal(500, "failed calling webhook");
        let mut responses = vec![ok(new.clone()), not_found(), webhook];
        responses.extend([ok(new.clone()), (201, json!({}))]);
        let Reconciled { result, calls, bodies } =
            run_reconcile_again(&context, new.clone(), responses).await;
        assert!(result.is_err());
        if attempt < 3 {
            assert_eq!(calls.len(), 3, "{calls:?}");
            continue;
        }
        assert_eq!(calls[3..], [format!("PATCH {TEST}/status"), format!("POST {EVENTS}")]);
        let status = &bodies[3]["status"];
        assert_eq!((&status["phase"], &status["plan"]), (&json!("Pending"), &Value::Null));
        let conditions = status["conditions"].as_array().unwrap();
        let accepted = conditions.iter().find(|c| c["type"] == "Accepted").unwrap();
        assert_eq!(accepted["status"], "Unknown");
        assert_eq!(accepted["reason"], "RetryingLaunch");
        assert!(accepted["message"].as_str().unwrap().contains("webhook"), "{accepted}");
        assert_eq!(bodies[4]["reason"], "RetryingLaunch");
    }
}

#[tokio::test]
async fn an_edit_during_the_launch_does_not_end_the_test() {
    let mut pending = test_in_phase("Pending");
    pending["metadata"]["annotations"] = json!({});
    let responses = vec![ok(pending.clone()), not_found(), refusal(409, "Conflict")];
    let Reconciled { result, calls, .. } = run_reconcile(pending, responses).await;
    assert!(matches!(result, Err(Error::Conflict(_))), "{result:?}");
    assert_eq!(calls[2..], [format!("PATCH {TEST}")]);
}

#[tokio::test]
async fn retry_delay_doubles_up_to_ten_seconds() {
    let (service, _handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let context = Arc::new(context_with(Client::new(service, "default")));
    let guard: DeserializeGuard<LoadTest> =
        serde_json::from_value(test_with_status(Value::Null)).unwrap();
    let guard = Arc::new(guard);
    let delays = [1, 2, 4, 8, 10, 10];
    for seconds in delays {
        let action = on_error(
            Arc::clone(&guard),
            &Error::Timeout(Duration::from_secs(150)),
            Arc::clone(&context),
        );
        assert_eq!(action, Action::requeue(Duration::from_secs(seconds)));
    }
}
