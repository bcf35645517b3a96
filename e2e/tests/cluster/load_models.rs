//! Arrivals, stages, windows and abort on a real cluster.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::resource::{Phase, Verdict};
use serde_json::{Value, json};

use loadtest_e2e::test_namespace::TestNamespace;

/// Builds a spec for GET requests to `/health` with any load model.
fn health_spec(load: &Value, thresholds: &Value, users_per_runner: u32) -> Value {
    json!({
        "target": {"http": "http://cell0:18800"},
        "load": load,
        "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
        "thresholds": thresholds,
        "runners": {"usersPerRunner": users_per_runner},
    })
}

#[tokio::test]
async fn arrivals_keep_their_rate_over_two_runners() -> Result<()> {
    TestNamespace::run("arrivals", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "200ms"}})).await?;
        // At 45/s and 200 ms, nine users are enough. The spec allows more, because arrivals pile
        // up when the machine stalls.
        let load = json!({"arrivalRate": "45/s", "maxUsers": 400, "duration": "8s"});
        let errors = json!([{"metric": "errorRate", "target": "< 20%"}]);
        let (test, status) =
            namespace.run_until_judged("arrivals", health_spec(&load, &errors, 200), 90).await?;
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        ensure!(status.plan.as_ref().is_some_and(|plan| plan.runners == 2), "{:?}", status.plan);
        let summary = status.summary.context("no summary")?;
        ensure!(summary.requests + summary.dropped == 360, "{summary:?}");
        // Late arrivals are dropped at the end of the load when the machine stalls.
        ensure!(summary.dropped <= 45, "{summary:?}");
        let received = target.count_received(&test.uid().context("no UID")?).await?;
        ensure!(received == summary.requests, "received {received}, {summary:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn arrivals_without_an_idle_user_are_dropped_and_never_pass() -> Result<()> {
    TestNamespace::run("dropped", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "2s"}})).await?;
        let load = json!({"arrivalRate": "20/s", "maxUsers": 10, "duration": "8s"});
        let thresholds = json!([
            {"metric": "responseTime", "statistic": "p95", "target": "< 10s"},
            {"metric": "errorRate", "target": "< 1%", "critical": "> 5%"},
        ]);
        let (test, status) =
            namespace.run_until_judged("dropped", health_spec(&load, &thresholds, 20), 90).await?;
        ensure!(status.known_verdict() == Some(Verdict::Critical), "{status:#?}");
        ensure!(status.thresholds[0].verdict == Verdict::Inconclusive, "{:?}", status.thresholds);
        let summary = status.summary.context("no summary")?;
        ensure!(summary.dropped > 50, "{summary:?}");
        ensure!(summary.requests + summary.dropped == 160, "{summary:?}");
        let received = target.count_received(&test.uid().context("no UID")?).await?;
        ensure!(summary.requests == received, "{summary:?}, received {received}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn critical_window_aborts_the_test_on_all_runners() -> Result<()> {
    TestNamespace::run("abort", async |namespace| {
        let target = namespace.deploy_simulator(json!({"health": {"latency": "50ms"}})).await?;
        let load = json!({"users": 30, "spawnRate": 30, "duration": "5m", "gracefulStop": "5s"});
        let thresholds = json!([
            {"metric": "errorRate", "target": "< 1%"},
            {
                "task": "health", "metric": "responseTime", "statistic": "p50", "window": "5s",
                "target": "< 100ms", "critical": "> 400ms", "abort": {"after": "5s"},
            },
        ]);
        let test = namespace.create_test("abort", health_spec(&load, &thresholds, 20)).await?;
        let run_uid = test.uid().context("no UID")?;
        namespace
            .wait_for_status("abort", 60, |s| {
                s.progress.as_ref().is_some_and(|p| p.elapsed.as_secs_f64() > 6.0)
            })
            .await?;
        target.patch_settings(json!({"health": {"latency": "800ms"}})).await?;
        let status = namespace.wait_for_status("abort", 30, |s| s.aborted.is_some()).await?;
        let aborted = status.aborted.context("no abort")?;
        ensure!(aborted.key.to_string().contains("over 5s"), "{aborted:?}");
        let status = namespace.wait_until_finished("abort", 30).await?;
        // By the runners' clocks, the load must end within 5 s after the detected breach.
        let ended = status.progress.as_ref().context("no progress")?.elapsed;
        let delay = ended.as_secs_f64() - aborted.elapsed.as_secs_f64();
        ensure!((-0.05..5.0).contains(&delay), "the load went on for {delay} s: {status:#?}");
        // No request starts after the abort.
        let received = target.get_truth(&run_uid).await?.totals.counts.received;
        ensure!(status.known_phase() == Some(Phase::Finished), "{status:#?}");
        ensure!(status.known_verdict() == Some(Verdict::Critical), "{status:#?}");
        ensure!(status.thresholds[1].verdict == Verdict::Critical, "{:?}", status.thresholds);
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "Aborted", "{finished:?}");
        let summary = status.summary.context("no summary")?;
        ensure!(summary.requests == received, "{summary:?}, received {received}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn growing_load_finds_the_breaking_point() -> Result<()> {
    TestNamespace::run("breaking", async |namespace| {
        // With a pacing of 500 ms, 5 users send 10 requests per second, 10 users send 20 and 20
        // users send 40.
        let health = json!({"latency": "5ms", "limits": {"maxRate": "30/s"}});
        namespace.deploy_simulator(json!({"health": health})).await?;
        let stage = |users: u32, duration: &str| {
            json!({"duration": duration, "users": users, "ramp": "Step"})
        };
        // The last stage is long, so that the target cannot catch up if the machine stalls for a
        // moment.
        let load = json!({"stages": [stage(5, "6s"), stage(10, "6s"), stage(20, "15s")]});
        let mut spec = health_spec(&load, &json!([{"metric": "errorRate", "target": "< 5%"}]), 20);
        spec["scenario"]["pacing"] = "500ms".into();
        namespace.create_test("breaking", spec).await?;
        let status = namespace.wait_until_finished("breaking", 90).await?;
        let verdicts: Vec<_> = status.stages.iter().map(|row| row.verdict.clone()).collect();
        let expected = [Verdict::Pass, Verdict::Pass, Verdict::Fail];
        ensure!(verdicts == expected, "{:#?}", status.stages);
        let breaking_point = status.breaking_point.context("no breaking point")?;
        ensure!(breaking_point.last_passed.as_deref() == Some("10 users"), "{breaking_point:?}");
        ensure!(breaking_point.first_failed.as_deref() == Some("20 users"), "{breaking_point:?}");
        ensure!(breaking_point.threshold.as_deref() == Some("errorRate"), "{breaking_point:?}");
        Ok(())
    })
    .await
}
