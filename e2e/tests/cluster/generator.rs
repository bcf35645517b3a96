//! A load generator that is itself too weak says so, and blames no target.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::resource::{Phase, Verdict};
use serde_json::json;

use crate::story::{Story, health};

#[tokio::test]
async fn a_starved_runner_is_inconclusive_and_says_what_to_change() -> Result<()> {
    Story::tell("starved", async |story| {
        story.simulator(json!({"health": {"latency": "1ms"}})).await?;
        // A twentieth of a core can't send 4,000 requests a second: the target would look slow, and
        // arrivals that the runner never came to would look like its errors.
        let spec = json!({
            "target": {"http": "http://cell0:18800"},
            "load": {"arrivalRate": "4000/s", "maxUsers": 200, "duration": "10s"},
            "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
            "thresholds": [
                {"metric": "responseTime", "statistic": "p95", "target": "< 20ms", "critical": "> 50ms"},
                {"metric": "errorRate", "target": "< 1%", "critical": "> 5%"},
                {"metric": "throughput", "target": "> 3900/s", "critical": "< 100/s"},
            ],
            "runners": {"usersPerRunner": 200, "resources": {
                "requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "50m", "memory": "64Mi"},
            }},
        });
        story.start("starved", spec).await?;
        let status = story.finished("starved", 120).await?;
        ensure!(status.verdict == Some(Verdict::Inconclusive), "{status:#?}");
        ensure!(status.condition("Passed").is_some_and(|c| c.status == "Unknown"));
        let advice = status.thresholds[0].advice.clone().context("no advice")?;
        ensure!(
            advice.contains("load generator") && (advice.contains("CPU limit") || advice.contains("more CPU")),
            "{advice}"
        );
        let measured = status.measurement.context("no measurement")?;
        ensure!(measured.throttled.is_some(), "{measured:?}");
        ensure!(measured.memory.as_ref().is_some_and(|m| m.contains("of its limit")), "{measured:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn limits_that_the_load_does_not_fit_into_are_told_before_any_load() -> Result<()> {
    Story::tell("preflight", async |story| {
        let target = story.simulator(json!({})).await?;
        let mut spec = health(4000, "5s", &json!([]));
        spec["load"]["spawnRate"] = 1000.into();
        spec["runners"] = json!({"usersPerRunner": 4000, "resources": {
            "requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "48Mi"},
        }});
        let test = story.start("preflight", spec).await?;
        let status = story.finished("preflight", 60).await?;
        ensure!(status.phase == Some(Phase::Error), "{status:#?}");
        let finished = status.condition("Finished").context("no condition")?;
        ensure!(finished.reason == "Preflight", "{finished:?}");
        let says = "4000 users need about";
        ensure!(finished.message.contains(says), "{finished:?}");
        ensure!(finished.message.contains("the limit is 48 MiB"), "{finished:?}");
        let received = target.received(&test.uid().context("no UID")?).await?;
        ensure!(received == 0, "{received} requests came");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sessions_of_users_outlive_their_tasks_and_the_status_shows_it() -> Result<()> {
    Story::tell("sessions", async |story| {
        let target = story.simulator(json!({"webSocket": {"latency": "20ms"}})).await?;
        let spec = json!({
            "target": {"webSocket": "ws://cell0:18801"},
            "load": {"users": 20, "spawnRate": 20, "duration": "6s"},
            "scenario": {"pause": {"min": "100ms", "max": "200ms"}, "tasks": [{
                "name": "chatter",
                "webSocket": {"send": ["hello"], "replies": 1, "session": "PerUser"},
            }]},
            "thresholds": [
                {"metric": "webSocketRoundTrip", "statistic": "p95", "target": "< 1m"},
                {"metric": "errorRate", "target": "< 1%"},
            ],
        });
        let (test, status) = story.judged("sessions", spec, 90).await?;
        ensure!(status.verdict == Some(Verdict::Pass), "{status:#?}");
        // Nobody said how many users a runner has: one is enough for these.
        ensure!(status.plan.as_ref().is_some_and(|plan| plan.runners == 1), "{:?}", status.plan);
        let task = status.tasks.first().context("no task")?;
        let connections = task.connections.clone().context("no connections")?;
        ensure!((connections.opened, connections.reconnects) == (20, 0), "{connections:?}");
        ensure!(connections.upgrade.is_some(), "{connections:?}");
        let trips = task.web_socket_round_trip.clone().context("no round trips")?;
        ensure!(trips.count == task.summary.requests, "{trips:?} {:?}", task.summary);
        // What the target counts as a request is a session.
        let received = target.received(&test.uid().context("no UID")?).await?;
        ensure!(received == 20, "{received} sessions came");
        Ok(())
    })
    .await
}
