//! What must hold after every fault.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use loadtest_core::resource::{LoadTest, LoadTestStatus, Phase, Verdict};
use loadtest_e2e::test_namespace::{Target, TestNamespace, health_spec};
use serde_json::{Value, json};

/// How long the target is watched for requests after the end of a run.
const QUIET: Duration = Duration::from_secs(1);

/// A load with a threshold for errors, and one whose windows show any gap.
pub(crate) fn watched_spec(users: u32, duration: &str) -> Value {
    let thresholds = json!([
        {"metric": "errorRate", "target": "< 1%"},
        {"metric": "responseTime", "statistic": "p50", "target": "< 1s", "window": "5s"},
    ]);
    health_spec(users, duration, &thresholds)
}

/// True once a test has numbers.
pub(crate) fn has_requests(status: &LoadTestStatus) -> bool {
    status.summary.as_ref().is_some_and(|summary| summary.requests > 0)
}

/// Waits for the end of a test that must not suffer from the fault: it has run once, with every number and
/// every window, and has passed. Returns this in words.
pub(crate) async fn check_whole_run(
    namespace: &TestNamespace,
    target: &Target<'_>,
    test: &LoadTest,
    seconds: u64,
) -> Result<String> {
    let name = test.name_any();
    let status = namespace.wait_until_finished(&name, seconds).await?;
    ensure!(status.known_phase() == Some(Phase::Finished), "{name}: {status:#?}");
    ensure!(status.known_verdict() == Some(Verdict::Pass), "{name}: {status:#?}");
    let measured = status.measurement.as_ref().context("no measurement")?;
    ensure!(measured.runners_lost == 0 && measured.unobserved.is_none(), "{name}: {measured:?}");
    let received = check_counts(target, test, &status, 0).await?;
    Ok(format!("Pass, {received} of {received} requests"))
}

/// Checks that every request that the target received is counted, but for at most `lost`, and that no more come.
/// Returns the number.
pub(crate) async fn check_counts(
    target: &Target<'_>,
    test: &LoadTest,
    status: &LoadTestStatus,
    lost: u64,
) -> Result<u64> {
    let uid = test.uid().context("no UID")?;
    let received = target.get_truth(&uid).await?.totals.counts.received;
    let summary = status.summary.as_ref().context("no summary")?;
    let counted = summary.requests + summary.interrupted;
    ensure!(
        // A request that was interrupted during its connect did not reach the target.
        received > 0 && summary.requests <= received && counted + lost >= received,
        "{}: {counted} requests counted, {received} received: {summary:?}",
        test.name_any()
    );
    tokio::time::sleep(QUIET).await;
    let later = target.received(&uid).await?;
    ensure!(later == received, "load goes on: {} more requests", later - received);
    Ok(received)
}

/// Checks that the target has received nothing from a test.
pub(crate) async fn check_no_load(target: &Target<'_>, test: &LoadTest) -> Result<()> {
    let received = target.count_received(&test.uid().context("no UID")?).await?;
    ensure!(received == 0, "the target received {received} requests");
    Ok(())
}

/// Waits for a test that could not run, and checks its reason. Returns the message.
pub(crate) async fn wait_for_error(
    namespace: &TestNamespace,
    name: &str,
    seconds: u64,
    reason: &str,
) -> Result<String> {
    let status = namespace.wait_until_finished(name, seconds).await?;
    let finished = status.condition("Finished").context("no condition Finished")?;
    ensure!(status.known_phase() == Some(Phase::Error), "{name}: {status:#?}");
    ensure!(finished.reason == reason, "{name}: {finished:?}");
    Ok(finished.message.clone())
}

/// Shortens a message for the table.
pub(crate) fn short(message: &str) -> String {
    message.chars().take(140).collect()
}
