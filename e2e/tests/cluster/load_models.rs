//! Arrivals, stages, windows: load that is not just a number of users, and what ends it early.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::resource::{Phase, Verdict};
use serde_json::{Value, json};

use crate::story::Story;

/// GETs on /health under a load, judged by the given thresholds, on runners of so many users.
fn health(load: &Value, thresholds: &Value, users_per_runner: u32) -> Value {
    json!({
        "target": {"http": "http://cell0:18800"},
        "load": load,
        "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
        "thresholds": thresholds,
        "runners": {"usersPerRunner": users_per_runner},
    })
}

#[tokio::test]
async fn arrivals_come_at_their_rate_over_two_runners_to_the_last_one() -> Result<()> {
    Story::tell("arrivals", async |story| {
        let target = story.simulator(json!({"health": {"latency": "200ms"}})).await?;
        // Nine at once are enough, but where the machine stands still for a while.
        let load = json!({"arrivalRate": "45/s", "maxUsers": 400, "duration": "8s"});
        let errors = json!([{"metric": "errorRate", "target": "< 20%"}]);
        let (test, status) = story.judged("arrivals", health(&load, &errors, 200), 90).await?;
        ensure!(status.verdict == Some(Verdict::Pass), "{status:#?}");
        ensure!(status.plan.as_ref().is_some_and(|plan| plan.runners == 2), "{:?}", status.plan);
        let summary = status.summary.context("no summary")?;
        ensure!(summary.requests + summary.dropped == 360, "{summary:?}");
        // Those that the end overtakes while the machine stands still.
        ensure!(summary.dropped <= 45, "{summary:?}");
        let received = target.received(&test.uid().context("no UID")?).await?;
        ensure!(received == summary.requests.cast_unsigned(), "{received} came, {summary:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn arrivals_that_find_no_user_are_dropped_and_counted_and_never_pass() -> Result<()> {
    Story::tell("dropped", async |story| {
        let target = story.simulator(json!({"health": {"latency": "2s"}})).await?;
        let load = json!({"arrivalRate": "20/s", "maxUsers": 10, "duration": "8s"});
        let thresholds = json!([
            {"metric": "responseTime", "statistic": "p95", "target": "< 10s"},
            {"metric": "errorRate", "target": "< 1%", "critical": "> 5%"},
        ]);
        let (test, status) = story.judged("dropped", health(&load, &thresholds, 20), 90).await?;
        ensure!(status.verdict == Some(Verdict::Critical), "{status:#?}");
        ensure!(status.thresholds[0].verdict == Verdict::Inconclusive, "{:?}", status.thresholds);
        let summary = status.summary.context("no summary")?;
        ensure!(summary.dropped > 50, "{summary:?}");
        ensure!(summary.requests + summary.dropped == 160, "{summary:?}");
        let received = target.received(&test.uid().context("no UID")?).await?;
        ensure!(summary.requests.cast_unsigned() == received, "{summary:?}, {received} came");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_critical_window_stops_all_runners_and_the_status_says_which_when_and_why() -> Result<()>
{
    Story::tell("abort", async |story| {
        let target = story.simulator(json!({"health": {"latency": "50ms"}})).await?;
        let load = json!({"users": 30, "spawnRate": 30, "duration": "5m", "gracefulStop": "5s"});
        let thresholds = json!([
            {"metric": "errorRate", "target": "< 1%"},
            {
                "task": "health", "metric": "responseTime", "statistic": "p50", "window": "5s",
                "target": "< 100ms", "critical": "> 400ms", "abort": {"after": "5s"},
            },
        ]);
        let test = story.start("abort", health(&load, &thresholds, 20)).await?;
        let run = test.uid().context("no UID")?;
        story
            .until("abort", 60, |s| {
                s.progress.as_ref().is_some_and(|p| p.elapsed.as_secs_f64() > 6.0)
            })
            .await?;
        target.set(json!({"health": {"latency": "800ms"}})).await?;
        let told = story.until("abort", 30, |status| status.aborted.is_some()).await?;
        let aborted = told.aborted.context("no abort")?;
        ensure!(aborted.row == 1 && aborted.threshold.contains("over 5s"), "{aborted:?}");
        let status = story.finished("abort", 30).await?;
        // By the runners' own clocks: so long after the breach was seen, none made load any more.
        let ran = status.progress.as_ref().context("no progress")?.elapsed;
        let took = ran.as_secs_f64() - aborted.elapsed.as_secs_f64();
        ensure!((-0.05..5.0).contains(&took), "load went on for {took} s: {status:#?}");
        // None is begun after.
        let received = target.truth(&run).await?.totals.counts.received;
        ensure!(status.phase == Some(Phase::Finished), "{status:#?}");
        ensure!(status.verdict == Some(Verdict::Critical), "{status:#?}");
        ensure!(status.thresholds[1].verdict == Verdict::Critical, "{:?}", status.thresholds);
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "Aborted", "{finished:?}");
        let summary = status.summary.context("no summary")?;
        ensure!(summary.requests.cast_unsigned() == received, "{summary:?}, {received} came");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_growing_load_finds_where_the_target_breaks() -> Result<()> {
    Story::tell("breaking", async |story| {
        // 5 users make 10 requests a second, 10 users 20, 20 users 40.
        story
            .simulator(json!({"health": {"latency": "5ms", "limits": {"maxRate": "30/s"}}}))
            .await?;
        let stage = |users: u32, duration: &str| json!({"duration": duration, "users": users, "ramp": "step"});
        // The last one long enough that a moment in which the machine stands still is not what the
        // target needs to catch up.
        let load = json!({"stages": [stage(5, "6s"), stage(10, "6s"), stage(20, "15s")]});
        let mut spec = health(&load, &json!([{"metric": "errorRate", "target": "< 5%"}]), 20);
        spec["scenario"]["pacing"] = "500ms".into();
        story.start("breaking", spec).await?;
        let status = story.finished("breaking", 90).await?;
        let verdicts: Vec<_> = status.stages.iter().map(|row| row.verdict).collect();
        let wanted = [Verdict::Pass, Verdict::Pass, Verdict::Fail];
        ensure!(verdicts == wanted, "{:#?}", status.stages);
        let found = status.breaking_point.context("no breaking point")?;
        ensure!(found.held.as_deref() == Some("10 users"), "{found:?}");
        ensure!(found.broke.as_deref() == Some("20 users"), "{found:?}");
        ensure!(found.threshold.as_deref() == Some("errorRate"), "{found:?}");
        Ok(())
    })
    .await
}
