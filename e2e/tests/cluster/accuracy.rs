//! The numbers in a status are what really happened.

use anyhow::{Context, Result, ensure};
use cell0_simulator::{EndpointTruth, Quantiles, RunTruth};
use kube::ResourceExt;
use loadtest_core::{
    Duration,
    resource::{LoadTestStatus, Verdict},
};
use serde_json::json;

use crate::story::{ATTEMPTS, Story, Target, pod_ip};

fn time(text: &str) -> Result<f64> {
    Ok(text.parse::<Duration>().with_context(|| format!("{text:?} is no duration"))?.as_secs_f64())
}

/// Within 0.5 % and 10 ms: the way there and back, and the machine's noise.
fn close(what: &str, found: &str, truth_nanos: u64) -> Result<()> {
    let (found, truth) = (time(found)?, truth_nanos as f64 / 1e9);
    let allowed = truth * 0.005 + 0.010;
    ensure!((found - truth).abs() <= allowed, "{what}: status {found} s, truth {truth} s");
    Ok(())
}

fn agrees(status: &LoadTestStatus, task: &str, truth: &Quantiles) -> Result<()> {
    let row = status.tasks.iter().find(|row| row.name == task).context("no such task")?;
    let shown = |text: &Option<String>| text.clone().context("no percentile");
    close(&format!("{task} p50"), &shown(&row.summary.p50)?, truth.p50)?;
    close(&format!("{task} p95"), &shown(&row.summary.p95)?, truth.p95)
}

fn requests(status: &LoadTestStatus) -> i64 {
    status.summary.as_ref().map_or(0, |summary| summary.requests)
}

/// Times, against what the target knows of its own.
fn times_agree(status: &LoadTestStatus, truth: &RunTruth) -> Result<()> {
    let endpoints: [(&str, &EndpointTruth); 4] = [
        ("chat", &truth.endpoints.chat),
        ("health", &truth.endpoints.health),
        ("models", &truth.endpoints.models),
        ("websocket", &truth.endpoints.web_socket),
    ];
    for (task, endpoint) in endpoints {
        agrees(status, task, &endpoint.successful.service_time)?;
    }
    let first = &truth.endpoints.chat.successful.time_to_first_response;
    let chat = &status.tasks[0];
    let seen = chat.time_to_first_response.as_ref().context("no first response")?;
    close("first response p50", &seen.p50, first.p50)?;
    close("first response p95", &seen.p95, first.p95)?;
    let gap = chat.inter_token_latency.as_ref().context("no inter-token latency")?;
    close("inter-token latency p50", &gap.p50, 10_000_000)?;
    ensure!(chat.goodput.as_deref() == Some("100%"), "{:?}", chat.goodput);
    Ok(())
}

/// Runs the burst, whose counts have to be right. Whether its times were comes back.
async fn burst(story: &Story, target: &Target<'_>) -> Result<Result<()>> {
    let burst = include_str!("../../../examples/loadtest-burst.yaml");
    story.apply(&burst.replace("duration: 2m", "duration: 20s")).await?;
    let run = story.tests.get("burst").await?.uid().context("no UID")?;

    let running = story.until("burst", 60, |s| s.start_time.is_some()).await?;
    let plan = running.plan.context("no plan")?;
    ensure!((plan.runners, plan.users_per_runner) == (2, 100), "{plan:?}");
    let status = story.finished("burst", 90).await?;

    let runners = story.runners("burst").await?;
    ensure!(runners.len() == 2, "{} runner pods", runners.len());
    for runner in &runners {
        let ip = pod_ip(runner).context("no address")?;
        let url = format!("http://{ip}:9464/metrics");
        let text = story.http.get(url).send().await?.text().await?;
        ensure!(text.contains("loadtest_users_peak{loadtest=\"burst\"} 100"), "{text}");
    }

    let truth = target.truth(&run).await?;
    let counts = &truth.totals.counts;
    ensure!(requests(&status) > 500, "only {} requests", requests(&status));
    ensure!(requests(&status).cast_unsigned() == counts.received, "{status:?} and {counts:?}");
    ensure!(counts.failed == 0 && counts.aborted == 0, "{counts:?}");
    let chat = &status.tasks[0];
    let tokens = chat.tokens.as_ref().context("no tokens")?;
    ensure!(tokens.output == 8 * chat.summary.requests, "{tokens:?} of {:?}", chat.summary);
    let gap = chat.inter_token_latency.as_ref().context("no inter-token latency")?;
    ensure!(gap.count == 7 * chat.summary.requests, "{gap:?}");
    Ok(times_agree(&status, &truth))
}

#[tokio::test]
async fn a_burst_of_200_users_runs_on_two_runners_and_every_number_agrees_with_the_target()
-> Result<()> {
    Story::tell_alone("burst", async |story| {
        let target = story
            .simulator(json!({
                "chat": {"latency": "300ms", "tokens": 8, "tokenGap": "10ms"},
                "health": {"latency": {"uniform": {"min": "200ms", "max": "400ms"}}},
                "models": {"latency": "250ms"},
                "webSocket": {"connectLatency": "5ms", "latency": "200ms"},
            }))
            .await?;
        // A machine that stands still while users want to send makes them late, and the target
        // does not know.
        for _ in 1..ATTEMPTS {
            if burst(&story, &target).await?.is_ok() {
                return Ok(());
            }
            story.gone("burst").await?;
        }
        burst(&story, &target).await?
    })
    .await
}

#[tokio::test]
async fn requests_that_are_still_open_at_the_end_are_interrupted_and_counted() -> Result<()> {
    Story::tell("open", async |story| {
        let target = story.simulator(json!({"health": {"latency": "3s"}})).await?;
        let mut spec = crate::story::health(10, "5s", &json!([]));
        spec["load"]["gracefulStop"] = "0s".into();
        let test = story.start("open", spec).await?;
        let status = story.finished("open", 60).await?;
        let truth = target.truth(&test.uid().context("no UID")?).await?;
        let summary = status.summary.context("no summary")?;
        ensure!(summary.interrupted > 0, "{summary:?}");
        let received = i64::try_from(truth.totals.counts.received)?;
        let difference = received - summary.requests;
        ensure!((0..=summary.interrupted).contains(&difference), "{summary:?}, {received}");
        ensure!(status.verdict == Some(Verdict::NotJudged), "{:?}", status.verdict);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_tests_at_once_do_not_mix() -> Result<()> {
    Story::tell("two", async |story| {
        let target = story.simulator(json!({"health": {"latency": "20ms"}})).await?;
        let mut runs = Vec::new();
        for (name, users) in [("one", 4), ("other", 9)] {
            let test = story.start(name, crate::story::health(users, "8s", &json!([]))).await?;
            runs.push((name, users, test.uid().context("no UID")?));
        }
        for (name, users, run) in runs {
            let status = story.finished(name, 90).await?;
            let truth = target.truth(&run).await?;
            ensure!(requests(&status) > 50, "{status:?}");
            ensure!(requests(&status).cast_unsigned() == truth.totals.counts.received, "{name}");
            let peak = status.progress.context("no progress")?.users;
            ensure!(peak == i64::from(users), "{name} had {peak} users");
        }
        Ok(())
    })
    .await
}
