//! A test under load while the API server fails every read.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::{Router, routing};
use loadtest_core::{
    control::{PORT, path},
    metrics::{ExpositionOptions, Format, Identity, Metrics, RunnerMetrics, RunnerState, encode},
};

use super::*;

/// An address of loopback that no other test uses.
const RUNNER_IP: &str = "127.0.0.71";
const START_ANNOTATION: &str = "loadtest.cell0.io/start";

/// Counts of the requests to a runner.
#[derive(Debug, Default)]
struct Asked {
    scrapes: AtomicU32,
    stops: AtomicU32,
}

/// Returns the exposition of a runner. All its requests fail, and each scrape is 5 s later.
fn exposition(scrape: u32) -> Vec<u8> {
    let seconds = 5.0 * f64::from(scrape);
    let mut metrics =
        Metrics { elapsed_seconds: seconds, user_seconds: 100.0 * seconds, ..Metrics::default() };
    metrics.tasks.entry("health".into()).or_default().requests = [0, u64::from(scrape) * 100, 0, 0];
    let identity = Identity { run_uid: UID.into(), index: 0, pod_uid: "pod-0".into() };
    let runner = RunnerMetrics { identity, state: RunnerState::Running, metrics };
    encode(runner, ExpositionOptions::default(), Format::Protobuf).unwrap()
}

/// Starts a runner that takes all orders.
async fn start_runner() -> Arc<Asked> {
    let asked = Arc::<Asked>::default();
    let (scraped, stopped) = (Arc::clone(&asked), Arc::clone(&asked));
    let scrape =
        move || async move { exposition(scraped.scrapes.fetch_add(1, Ordering::Relaxed) + 1) };
    let stop = move || async move {
        stopped.stops.fetch_add(1, Ordering::Relaxed);
    };
    let router = Router::new()
        .route(path::METRICS, routing::get(scrape))
        .route(path::STOP, routing::post(stop))
        .route(path::START, routing::post(|| async {}));
    let listener = tokio::net::TcpListener::bind((RUNNER_IP, PORT)).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    asked
}

/// Returns a running test of one runner with a threshold that aborts, and its Job.
fn running_test() -> (Value, Value) {
    let mut test = test_in_phase("Running");
    test["status"]["plan"]["runners"] = 1.into();
    test["spec"]["thresholds"] = json!([{
        "metric": "errorRate", "target": "< 1%", "critical": "> 50%",
        "abort": {"after": "5s", "for": "5s"},
    }]);
    let mut job = child_object("batch/v1", "Job", UID);
    let start = json!({"at": Timestamp::now().to_string(), "pods": ["pod-0"]});
    job["metadata"]["annotations"] = json!({START_ANNOTATION: start.to_string()});
    (test, job)
}

#[tokio::test]
async fn runners_are_scraped_and_stopped_all_the_same() {
    let asked = start_runner().await;
    let (test, job) = running_test();
    let mut pod = ready_pod(0);
    pod["status"]["podIP"] = RUNNER_IP.into();
    let context = OnceCell::new();
    let seen = vec![ok(test.clone()), ok(job), pod_list(&[pod])];
    // The status can't be written in any of these reconciliations.
    run_reconcile_again(&context, test.clone(), seen).await;
    assert_eq!(asked.scrapes.load(Ordering::Relaxed), 1);
    for scrapes in 2..=4 {
        let slow = vec![refusal(429, "TooManyRequests")];
        let Reconciled { result, .. } = run_reconcile_again(&context, test.clone(), slow).await;
        assert_eq!(result.unwrap_err().to_string(), "failed to get loadtest burst");
        assert_eq!(asked.scrapes.load(Ordering::Relaxed), scrapes);
    }
    assert_eq!(asked.stops.load(Ordering::Relaxed), 1);
}
