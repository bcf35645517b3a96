//! The metrics in a status match the simulator's own record of the run.

use anyhow::{Context, Result, ensure};
use cell0_simulator::{EndpointTruth, Quantiles, RunTruth};
use kube::ResourceExt;
use loadtest_core::{
    Duration,
    metrics::LatencyMetric,
    resource::{LoadTestStatus, Verdict},
};
use serde_json::json;

use loadtest_e2e::test_namespace::{MAX_ATTEMPTS, Target, TestNamespace, health_spec, pod_ip};

fn parse_seconds(text: &str) -> Result<f64> {
    Ok(text
        .parse::<Duration>()
        .with_context(|| format!("{text:?} is not a duration"))?
        .as_secs_f64())
}

/// Checks a latency of the status against the simulator's value. The allowed difference is 0.5 %
/// plus 10 ms, for the network round trip and the noise of the machine.
fn check_latency(name: &str, status_value: &str, truth_nanos: u64) -> Result<()> {
    let (status, truth) = (parse_seconds(status_value)?, truth_nanos as f64 / 1e9);
    let allowed = truth * 0.005 + 0.010;
    ensure!((status - truth).abs() <= allowed, "{name}: status {status} s, simulator {truth} s");
    Ok(())
}

fn check_task(status: &LoadTestStatus, task: &str, truth: &Quantiles) -> Result<()> {
    let row = status.tasks.iter().find(|row| row.name == task).context("no such task")?;
    let percentile = |text: &Option<String>| text.clone().context("no percentile");
    check_latency(&format!("{task} p50"), &percentile(&row.summary.p50)?, truth.p50)?;
    check_latency(&format!("{task} p95"), &percentile(&row.summary.p95)?, truth.p95)
}

fn request_count(status: &LoadTestStatus) -> u64 {
    status.summary.as_ref().map_or(0, |summary| summary.requests)
}

/// Checks the latencies of all tasks against the simulator's record.
fn check_latencies(status: &LoadTestStatus, truth: &RunTruth) -> Result<()> {
    let endpoints: [(&str, &EndpointTruth); 4] = [
        ("chat", &truth.endpoints.chat),
        ("health", &truth.endpoints.health),
        ("models", &truth.endpoints.models),
        ("websocket", &truth.endpoints.web_socket),
    ];
    for (task, endpoint) in endpoints {
        check_task(status, task, &endpoint.successful.service_time)?;
    }
    let first = &truth.endpoints.chat.successful.time_to_first_response;
    let chat = &status.tasks[0];
    let measured =
        chat.latencies.get(LatencyMetric::TimeToFirstResponse).context("no first response")?;
    check_latency("first response p50", &measured.p50, first.p50)?;
    check_latency("first response p95", &measured.p95, first.p95)?;
    let gap =
        chat.latencies.get(LatencyMetric::InterTokenLatency).context("no inter-token latency")?;
    check_latency("inter-token latency p50", &gap.p50, 10_000_000)?;
    ensure!(chat.goodput.as_deref() == Some("100%"), "{:?}", chat.goodput);
    Ok(())
}

/// Runs the burst example. Fails if a count is wrong; the inner result says if the latencies match.
async fn run_burst(namespace: &TestNamespace, target: &Target<'_>) -> Result<Result<()>> {
    let yaml = include_str!("../../../examples/loadtest-burst.yaml");
    namespace.apply(&yaml.replace("duration: 2m", "duration: 20s")).await?;
    let run_uid = namespace.load_tests.get("burst").await?.uid().context("no UID")?;

    let running = namespace.wait_for_status("burst", 60, |s| s.start_time.is_some()).await?;
    let plan = running.plan.context("no plan")?;
    ensure!((plan.runners, plan.users_per_runner) == (2, 100), "{plan:?}");
    let status = namespace.wait_until_finished("burst", 90).await?;

    let runners = namespace.list_runners("burst").await?;
    ensure!(runners.len() == 2, "{} runner pods", runners.len());
    for runner in &runners {
        let ip = pod_ip(runner).context("no address")?;
        let url = format!("http://{ip}:9464/metrics");
        let text = namespace.http.get(url).send().await?.text().await?;
        ensure!(text.contains("loadtest_users_peak{loadtest=\"burst\"} 100"), "{text}");
    }

    let truth = target.get_truth(&run_uid).await?;
    let counts = &truth.totals.counts;
    ensure!(request_count(&status) > 500, "only {} requests", request_count(&status));
    ensure!(request_count(&status) == counts.received, "{status:?} and {counts:?}");
    ensure!(counts.failed == 0 && counts.aborted == 0, "{counts:?}");
    let chat = &status.tasks[0];
    let tokens = chat.tokens.as_ref().context("no tokens")?;
    ensure!(tokens.output == 8 * chat.summary.requests, "{tokens:?} of {:?}", chat.summary);
    let gap =
        chat.latencies.get(LatencyMetric::InterTokenLatency).context("no inter-token latency")?;
    ensure!(gap.count == 7 * chat.summary.requests, "{gap:?}");
    Ok(check_latencies(&status, &truth))
}

#[tokio::test]
async fn burst_metrics_match_the_target_on_two_runners() -> Result<()> {
    TestNamespace::run_alone("burst", async |namespace| {
        let target = namespace
            .deploy_simulator(json!({
                "chat": {"latency": "300ms", "tokens": 8, "tokenGap": "10ms"},
                "health": {"latency": {"uniform": {"min": "200ms", "max": "400ms"}}},
                "models": {"latency": "250ms"},
                "webSocket": {"connectLatency": "5ms", "latency": "200ms"},
            }))
            .await?;
        // When the machine stalls, users send late. The simulator does not see this delay, so the
        // latencies differ.
        for _ in 1..MAX_ATTEMPTS {
            if run_burst(&namespace, &target).await?.is_ok() {
                return Ok(());
            }
            namespace.delete_test("burst").await?;
        }
        run_burst(&namespace, &target).await?
    })
    .await
}

#[tokio::test]
async fn requests_in_flight_at_the_end_count_as_interrupted() -> Result<()> {
    TestNamespace::run("interrupted", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "3s"}})).await?;
        let mut spec = health_spec(10, "5s", &json!([]));
        spec["load"]["gracefulStop"] = "0s".into();
        let test = namespace.create_test("interrupted", spec).await?;
        let status = namespace.wait_until_finished("interrupted", 60).await?;
        let truth = target.get_truth(&test.uid().context("no UID")?).await?;
        let summary = status.summary.as_ref().context("no summary")?;
        ensure!(summary.interrupted > 0, "{summary:?}");
        let received = truth.totals.counts.received;
        let difference = received.saturating_sub(summary.requests);
        ensure!(
            received >= summary.requests && difference <= summary.interrupted,
            "{summary:?}, {received}"
        );
        ensure!(status.known_verdict() == Some(Verdict::NotJudged), "{:?}", status.verdict);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn concurrent_tests_do_not_mix_their_metrics() -> Result<()> {
    TestNamespace::run("two", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
        let mut runs = Vec::new();
        for (name, users) in [("one", 4), ("other", 9)] {
            let test = namespace.create_test(name, health_spec(users, "8s", &json!([]))).await?;
            runs.push((name, users, test.uid().context("no UID")?));
        }
        for (name, users, run_uid) in runs {
            let status = namespace.wait_until_finished(name, 90).await?;
            let truth = target.get_truth(&run_uid).await?;
            ensure!(request_count(&status) > 50, "{status:?}");
            ensure!(request_count(&status) == truth.totals.counts.received, "{name}");
            let peak = status.progress.context("no progress")?.users;
            ensure!(peak == u64::from(users), "{name} had {peak} users");
        }
        Ok(())
    })
    .await
}
