//! One load test per verdict, against a simulator that is set up for this verdict.

use anyhow::{Context, Result, ensure};
use loadtest_core::resource::Verdict;
use serde_json::json;

use loadtest_e2e::test_namespace::{TestNamespace, health_spec};

/// Runs a load test against a target with a fixed latency. Checks the verdict and the status of
/// the condition `Passed`.
async fn check_verdict(name: &str, latency: &str, verdict: Verdict, passed: &str) -> Result<()> {
    TestNamespace::run(name, async |namespace| {
        namespace.deploy_simulator(json!({"health": {"latency": latency}})).await?;
        let thresholds = json!([{
            "task": "health", "metric": "responseTime", "statistic": "p50",
            "target": "< 200ms", "warning": "< 400ms", "critical": "> 800ms",
        }]);
        let mut spec = health_spec(5, "10s", &thresholds);
        spec["scenario"]["pause"] = json!({"min": "1s", "max": "1500ms"});
        let (_, status) = namespace.run_until_judged(name, spec, 90).await?;
        ensure!(status.known_verdict() == Some(verdict), "{status:#?}");
        let condition = status.condition("Passed").context("no condition")?;
        ensure!(condition.status == passed, "{condition:?}");
        ensure!(status.thresholds[0].observed.is_some(), "{:?}", status.thresholds);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn fast_target_passes() -> Result<()> {
    check_verdict("pass", "100ms", Verdict::Pass, "True").await
}

#[tokio::test]
async fn value_between_target_and_warning_is_a_warning() -> Result<()> {
    check_verdict("warning", "300ms", Verdict::Warning, "True").await
}

#[tokio::test]
async fn value_between_warning_and_critical_fails() -> Result<()> {
    check_verdict("fail", "600ms", Verdict::Fail, "False").await
}

#[tokio::test]
async fn value_above_critical_is_critical() -> Result<()> {
    check_verdict("critical", "1s", Verdict::Critical, "False").await
}

#[tokio::test]
async fn no_data_is_inconclusive() -> Result<()> {
    TestNamespace::run("nodata", async |namespace| {
        let errors = json!({"rate": "100%", "kinds": ["hang"]});
        namespace.deploy_simulator(json!({"health": {"errors": errors}})).await?;
        let mut spec = health_spec(5, "4s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["load"]["gracefulStop"] = "0s".into();
        namespace.create_test("nodata", spec).await?;
        let status = namespace.wait_until_finished("nodata", 90).await?;
        ensure!(status.known_verdict() == Some(Verdict::Inconclusive), "{status:#?}");
        ensure!(status.condition("Passed").is_some_and(|c| c.status == "Unknown"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn failing_target_is_critical_with_an_error_example() -> Result<()> {
    TestNamespace::run("errors", async |namespace| {
        let errors = json!({"rate": "100%", "kinds": [{"status": 503}]});
        namespace.deploy_simulator(json!({"health": {"errors": errors}})).await?;
        let thresholds = json!([{"metric": "errorRate", "target": "< 1%", "critical": "> 5%"}]);
        namespace.create_test("errors", health_spec(5, "4s", &thresholds)).await?;
        let status = namespace.wait_until_finished("errors", 90).await?;
        ensure!(status.known_verdict() == Some(Verdict::Critical), "{status:#?}");
        let error = status.errors.first().context("no error row")?;
        ensure!(error.kind == "http_503" && error.count > 10, "{error:?}");
        let example = error.example.clone().context("no example")?;
        let expected = "GET /health returned status 503: injected by the simulator";
        ensure!(example == expected, "{example}");
        Ok(())
    })
    .await
}
