//! A test under load while the API server fails every read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing};
use loadtest_core::{
    control::{HISTORY_HEADER, HistoryReply, PORT, path},
    metrics::{HistoryStep, Identity, Metrics, RunnerMetrics, RunnerState, encode_step},
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

/// Returns the history of a runner. All its requests fail, and each scrape is 5 s later.
fn history(scrape: u32) -> Vec<u8> {
    let seconds = 5.0 * f64::from(scrape);
    let mut metrics =
        Metrics { elapsed_seconds: seconds, user_seconds: 100.0 * seconds, ..Metrics::default() };
    metrics.tasks.entry("health".into()).or_default().requests = [0, u64::from(scrape) * 100, 0, 0];
    let identity = Identity { run_uid: UID.into(), index: 0, pod_uid: "pod-0".into() };
    let runner = RunnerMetrics { identity, state: RunnerState::Running, metrics };
    let step = HistoryStep { number: u64::from(scrape), is_cumulative: true, runner };
    encode_step(step, None).unwrap()
}

/// Starts a runner that takes all orders.
async fn start_runner() -> Arc<Asked> {
    let asked = Arc::<Asked>::default();
    let (scraped, stopped) = (Arc::clone(&asked), Arc::clone(&asked));
    let scrape = move || async move {
        let scrape = scraped.scrapes.fetch_add(1, Ordering::Relaxed) + 1;
        let identity = Identity { run_uid: UID.into(), index: 0, pod_uid: "pod-0".into() };
        let elapsed_seconds = 5.0 * f64::from(scrape);
        let about = HistoryReply { identity, elapsed_seconds, work_seconds: 0.0 };
        ([(HISTORY_HEADER, about.to_string())], history(scrape))
    };
    let stop = move || async move {
        stopped.stops.fetch_add(1, Ordering::Relaxed);
    };
    let router = Router::new()
        .route(path::HISTORY, routing::get(scrape))
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
    // The collector of the run asks the runner on its own clock.
    let deadline = Instant::now() + Duration::from_secs(20);
    while asked.scrapes.load(Ordering::Relaxed) < 4 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..3 {
        let slow = vec![refusal(429, "TooManyRequests")];
        let Reconciled { result, .. } = run_reconcile_again(&context, test.clone(), slow).await;
        assert_eq!(result.unwrap_err().to_string(), "failed to get loadtest burst");
    }
    assert_eq!(asked.stops.load(Ordering::Relaxed), 1);
}
