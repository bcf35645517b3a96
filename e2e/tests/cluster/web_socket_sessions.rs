//! WebSocket sessions with `session: PerUser` on a real cluster.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::{metrics::LatencyMetric, resource::Verdict};
use serde_json::json;

use loadtest_e2e::test_namespace::TestNamespace;

#[tokio::test]
async fn per_user_sessions_outlive_their_tasks() -> Result<()> {
    TestNamespace::run("sessions", async |namespace| {
        let target = namespace.deploy_simulator(json!({"webSocket": {"latency": "20ms"}})).await?;
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
        let (test, status) = namespace.run_until_judged("sessions", spec, 90).await?;
        ensure!(status.known_verdict() == Some(Verdict::Pass), "{status:#?}");
        // The spec has no `usersPerRunner`, and by default one runner is enough for 20 users.
        ensure!(status.plan.as_ref().is_some_and(|plan| plan.runners == 1), "{:?}", status.plan);
        let task = status.tasks.first().context("no task")?;
        let connections = task.connections.clone().context("no connections")?;
        ensure!((connections.opened, connections.reconnects) == (20, 0), "{connections:?}");
        ensure!(connections.upgrade.is_some(), "{connections:?}");
        let trips =
            task.latencies.get(LatencyMetric::WebSocketRoundTrip).context("no round trips")?;
        ensure!(trips.count == task.summary.requests, "{trips:?} {:?}", task.summary);
        // The simulator counts a session as one request.
        let received = target.count_received(&test.uid().context("no UID")?).await?;
        ensure!(received == 20, "the simulator received {received} sessions");
        Ok(())
    })
    .await
}
