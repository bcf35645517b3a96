//! Each verdict, by a run against a target that is set so.

use anyhow::{Context, Result, ensure};
use loadtest_core::resource::Verdict;
use serde_json::json;

use crate::story::{Story, health};

async fn judged(name: &str, latency: &str, verdict: Verdict, passed: &str) -> Result<()> {
    Story::tell(name, async |story| {
        story.simulator(json!({"health": {"latency": latency}})).await?;
        let thresholds = json!([{
            "task": "health", "metric": "responseTime", "statistic": "p50",
            "target": "< 200ms", "warning": "< 400ms", "critical": "> 800ms",
        }]);
        let mut spec = health(5, "10s", &thresholds);
        spec["scenario"]["pause"] = json!({"min": "1s", "max": "1500ms"});
        let (_, status) = story.judged(name, spec, 90).await?;
        ensure!(status.verdict == Some(verdict), "{status:#?}");
        let condition = status.condition("Passed").context("no condition")?;
        ensure!(condition.status == passed, "{condition:?}");
        ensure!(status.thresholds[0].observed.is_some(), "{:?}", status.thresholds);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_fast_target_passes() -> Result<()> {
    judged("pass", "100ms", Verdict::Pass, "True").await
}

#[tokio::test]
async fn a_target_past_its_target_bound_is_a_warning() -> Result<()> {
    judged("warning", "300ms", Verdict::Warning, "True").await
}

#[tokio::test]
async fn a_target_between_warning_and_critical_fails() -> Result<()> {
    judged("fail", "600ms", Verdict::Fail, "False").await
}

#[tokio::test]
async fn a_target_past_its_critical_bound_is_critical() -> Result<()> {
    judged("critical", "1s", Verdict::Critical, "False").await
}

#[tokio::test]
async fn no_data_is_inconclusive() -> Result<()> {
    Story::tell("nodata", async |story| {
        let errors = json!({"rate": "100%", "kinds": ["hang"]});
        story.simulator(json!({"health": {"errors": errors}})).await?;
        let mut spec = health(5, "4s", &json!([{"metric": "errorRate", "target": "< 1%"}]));
        spec["load"]["gracefulStop"] = "0s".into();
        story.start("nodata", spec).await?;
        let status = story.finished("nodata", 90).await?;
        ensure!(status.verdict == Some(Verdict::Inconclusive), "{status:#?}");
        ensure!(status.condition("Passed").is_some_and(|c| c.status == "Unknown"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_target_that_fails_is_critical_and_the_status_says_how() -> Result<()> {
    Story::tell("errors", async |story| {
        let errors = json!({"rate": "100%", "kinds": [{"status": 503}]});
        story.simulator(json!({"health": {"errors": errors}})).await?;
        let thresholds = json!([{"metric": "errorRate", "target": "< 1%", "critical": "> 5%"}]);
        story.start("errors", health(5, "4s", &thresholds)).await?;
        let status = story.finished("errors", 90).await?;
        ensure!(status.verdict == Some(Verdict::Critical), "{status:#?}");
        let error = status.errors.first().context("no error row")?;
        ensure!(error.kind == "http_503" && error.count > 10, "{error:?}");
        let example = error.example.clone().context("no example")?;
        ensure!(example == "GET /health answered 503", "{example}");
        Ok(())
    })
    .await
}
