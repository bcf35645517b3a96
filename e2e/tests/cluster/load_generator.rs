//! A load generator that is too weak reports this instead of blaming the target.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::resource::{Phase, Verdict};
use serde_json::json;

use loadtest_e2e::test_namespace::{TestNamespace, health_spec};

#[tokio::test]
async fn starved_runner_is_inconclusive_and_names_the_remedy() -> Result<()> {
    TestNamespace::run("starved", async |namespace| {
        namespace.deploy_simulator(json!({"health": {"latency": "1ms"}})).await?;
        // 50 millicores can't send 4,000 requests per second. Without this check the target would
        // look slow, and arrivals that the runner dropped would look like errors of the target.
        let spec = json!({
            "target": {"http": "http://cell0:18800"},
            "load": {"arrivalRate": "4000/s", "maxUsers": 200, "duration": "10s"},
            "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
            "thresholds": [
                {
                    "metric": "responseTime", "statistic": "p95",
                    "target": "< 20ms", "critical": "> 50ms",
                },
                {"metric": "errorRate", "target": "< 1%", "critical": "> 5%"},
                {"metric": "throughput", "target": "> 3900/s", "critical": "< 100/s"},
            ],
            "runners": {"usersPerRunner": 200, "resources": {
                "requests": {"cpu": "50m", "memory": "64Mi"},
                "limits": {"cpu": "50m", "memory": "64Mi"},
            }},
        });
        namespace.create_test("starved", spec).await?;
        let status = namespace.wait_until_finished("starved", 120).await?;
        ensure!(status.known_verdict() == Some(Verdict::Inconclusive), "{status:#?}");
        ensure!(status.condition("Passed").is_some_and(|c| c.status == "Unknown"));
        let advice = status.thresholds[0].advice.clone().context("no advice")?;
        ensure!(advice.contains("load generator"), "{advice}");
        ensure!(advice.contains("CPU limit") || advice.contains("more CPU"), "{advice}");
        let measurement = status.measurement.context("no measurement")?;
        ensure!(measurement.throttled.is_some(), "{measurement:?}");
        let memory = measurement.memory.as_deref().unwrap_or_default();
        ensure!(memory.contains("of its limit"), "{measurement:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn too_small_memory_limit_is_reported_before_any_load() -> Result<()> {
    TestNamespace::run("too-small", async |namespace| {
        let target = namespace.deploy_simulator(json!({})).await?;
        let mut spec = health_spec(4000, "5s", &json!([]));
        spec["load"]["spawnRate"] = 1000.into();
        spec["runners"] = json!({"usersPerRunner": 4000, "resources": {
            "requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "48Mi"},
        }});
        let test = namespace.create_test("too-small", spec).await?;
        let status = namespace.wait_until_finished("too-small", 60).await?;
        ensure!(status.known_phase() == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "RunnerTooSmall", "{finished:?}");
        ensure!(finished.message.contains("4000 users need about"), "{finished:?}");
        ensure!(finished.message.contains("the limit is 48 MiB"), "{finished:?}");
        let received = target.count_received(&test.uid().context("no UID")?).await?;
        ensure!(received == 0, "the simulator received {received} requests");
        Ok(())
    })
    .await
}
