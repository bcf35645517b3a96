//! Start orders to a runner that answers slowly at first.

use std::time::Instant;

use axum::{Json, Router, routing};
use k8s_openapi::jiff::SignedDuration;
use loadtest_core::control::{PORT, StartOrder, path};

use super::*;

/// An address of loopback that no other test uses.
const RUNNER_IP: &str = "127.0.0.72";
/// How long the runner takes for the answers to its first orders.
const SLOW: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(100)];

/// The start that each order has named.
type Starts = Arc<std::sync::Mutex<Vec<Instant>>>;

async fn start_runner() -> Starts {
    let starts = Starts::default();
    let known = Arc::clone(&starts);
    let start = move |Json(order): Json<StartOrder>| async move {
        let number = {
            let mut known = known.lock().unwrap();
            known.push(Instant::now() + Duration::from_secs_f64(order.in_seconds));
            known.len() - 1
        };
        if let Some(time) = SLOW.get(number) {
            tokio::time::sleep(*time).await;
        }
    };
    let router = Router::new().route(path::START, routing::post(start));
    let listener = tokio::net::TcpListener::bind((RUNNER_IP, PORT)).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    starts
}

#[tokio::test]
async fn start_orders_with_a_late_answer_are_repeated() {
    let starts = start_runner().await;
    let mut test = test_in_phase("Running");
    test["status"]["plan"]["runners"] = 1.into();
    let mut job = child_object("batch/v1", "Job", UID);
    let at = Timestamp::now() + SignedDuration::from_secs(5);
    let start = json!({"at": at.to_string(), "pods": ["pod-0"]});
    job["metadata"]["annotations"] = json!({"loadtest.cell0.io/start": start.to_string()});
    let mut pod = ready_pod(0);
    pod["status"]["podIP"] = RUNNER_IP.into();
    let seen = vec![ok(test.clone()), ok(job), pod_list(&[pod]), not_found()];
    // The rest of the reconciliation fails, after the orders.
    run_reconcile_again(&OnceCell::new(), test, seen).await;
    let starts = starts.lock().unwrap();
    assert!((3..=5).contains(&starts.len()), "{starts:?}");
    let (first, last) = (starts.iter().min().unwrap(), starts.iter().max().unwrap());
    let difference = last.duration_since(*first);
    assert!(difference < Duration::from_millis(90), "all name the same start: {difference:?}");
}
